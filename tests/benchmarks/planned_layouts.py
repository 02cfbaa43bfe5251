"""Measure what it costs to choose a layout by planned instead of measured step times, on published runs of one problem.

    python -m tests.benchmarks.planned_layouts [time_fit.csv ...]

Rows are one problem if source, model, GPUs, global batch, recomputation and program are equal. The cost of a choice is
the measured time of the layout with the least planned time over the least measured time, minus 1. A choice by chance
is printed beside it, because groups are small: the mean over all layouts of a problem.
"""

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.planned_time import DATA
from tests.support.published_steps import Published, read_published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    given = parser.parse_args()
    files = given.files or [Path(os.environ[DATA]) / "time_fit.csv"]
    problems = problems_of([row for path in files for row in read_published(path)])
    for source in [*dict.fromkeys(rows[0].source for rows in problems), "all"]:
        chosen = [rows for rows in problems if source in (rows[0].source, "all")]
        costs = [cost(rows) for rows in chosen]
        by_chance = [statistics.mean(row.seconds for row in rows) / _least(rows) - 1 for rows in chosen]
        right = sum(each == 0 for each in costs)
        print(
            f"{source:16} {len(chosen):3} problems of {sum(map(len, chosen)):3} layouts: chosen costs "
            f"{statistics.median(costs):.2%} (median), {statistics.mean(costs):.2%} (mean), {max(costs):.2%} (worst) "
            f"more than the best, which was chosen {right} times; by chance {statistics.median(by_chance):.2%} (median)"
        )


def problems_of(rows: Sequence[Published]) -> list[list[Published]]:
    """The rows of each problem that has several layouts."""
    groups: dict[tuple[object, ...], list[Published]] = defaultdict(list)
    for row in rows:
        config = row.config
        batch, recompute = config.train.global_batch_size, config.engine.recompute
        key = row.source, config.model, row.vocab_size, row.ranks, batch, recompute, row.stack, row.hardware.name
        groups[key].append(row)
    return [group for group in groups.values() if len(group) > 1]


def cost(rows: Sequence[Published]) -> float:
    """Measured time of the layout that the plan takes for the fastest, over the least measured time, minus 1."""
    return min(rows, key=lambda row: row.predict().seconds).seconds / _least(rows) - 1


def _least(rows: Sequence[Published]) -> float:
    return min(row.seconds for row in rows)


if __name__ == "__main__":
    main()
