"""Predicted against published step times, by source: median, 90th percentile, worst, and the coverage of the band.

python -m tests.benchmarks.planned_time time_fit.csv [more.csv ...]
python -m tests.benchmarks.planned_time --rows time_fit.csv
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.published_steps import Published, read_published

DATA = "PRETRAIN_PLANNER_DATA"
"""Environment variable: the folder with time_fit.csv."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rows", action="store_true", help="print every row")
    given = parser.parse_args()
    files = given.files or [Path(os.environ[DATA]) / "time_fit.csv"]
    rows = [row for path in files for row in read_published(path)]
    began = time.perf_counter()
    steps = [row.predict() for row in rows]
    seconds = time.perf_counter() - began
    errors = [step.seconds / row.seconds - 1 for step, row in zip(steps, rows, strict=True)]
    inside = [step.low <= row.seconds <= step.high for step, row in zip(steps, rows, strict=True)]
    if given.rows:
        for row, step, error in zip(rows, steps, errors, strict=True):
            _print_row(row, step.parts, error)
    print(f"{'source':32} {'rows':>5} {'median':>7} {'p90':>7} {'worst':>7} {'bias':>7} {'in band':>8}")
    for source in [*dict.fromkeys(row.source for row in rows), "all"]:
        chosen = [index for index, row in enumerate(rows) if source in (row.source, "all")]
        print(_line(source, [errors[index] for index in chosen], [inside[index] for index in chosen]))
    print(f"{len(rows)} predictions in {seconds:.2f} s")


def _line(source: str, errors: Sequence[float], inside: Sequence[bool]) -> str:
    sizes = sorted(map(abs, errors))
    figures = (statistics.median(sizes), percentile(sizes, 0.9), max(errors, key=abs), statistics.median(errors))
    text = " ".join(f"{100 * figure:6.1f}%" for figure in figures)
    return f"{source:32} {len(errors):5} {text} {sum(inside) / len(inside):8.0%}"


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the nearest ranks."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def _print_row(row: Published, parts: object, error: float) -> None:
    assert isinstance(parts, dict)
    total = sum(parts.values())
    shares = " ".join(f"{name[:9]}:{value / total:.0%}" for name, value in parts.items() if value / total >= 0.01)
    print(f"{100 * error:+6.1f}% {row.seconds:9.4f}s {row.source} | {row.case} | {shares}")


if __name__ == "__main__":
    main()
