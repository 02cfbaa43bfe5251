"""Errors of planned peaks against those measured on the pretend GPU, by family.

    python -m tests.benchmarks.planned_memory

Prints the median and the worst error of each family, and the one that is lowest: planned less than measured.
"""

import statistics
from collections.abc import Iterable

from tests.support.peak_cases import cases
from tests.support.peaks import measured, planned
from tests.support.ranks import run_ranks


def main() -> None:
    by_family: dict[str, list[float]] = {}
    for case in cases():
        (found,), *_ = run_ranks(measured, 1, [case], joined=False)
        error = planned(case).peak / found.peak - 1
        by_family.setdefault(case.family, []).append(error)
        if abs(error) > 0.01:
            print(f"{error:+.2%} {case.name}", flush=True)
    for family, errors in by_family.items():
        print(_line(family, errors))
    print(_line("all", (error for errors in by_family.values() for error in errors)))


def _line(name: str, errors: Iterable[float]) -> str:
    listed = list(errors)
    sizes = [abs(error) for error in listed]
    return (
        f"{name:24} {len(listed):4} median {statistics.median(sizes):.2%}, worst {max(sizes):.2%}, "
        f"lowest {min(listed):+.2%}"
    )


if __name__ == "__main__":
    main()
