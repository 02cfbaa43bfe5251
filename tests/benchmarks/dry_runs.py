"""Dry runs of every preset in its published layout: memory and traffic measured against planned, and their cost.

    python -m tests.benchmarks.dry_runs [--only NAME ...] [--data-parallel N] [overrides]

Each preset runs in its own layout of conf/parallel/, with N data-parallel ranks (default: 8), ZeRO-1 in bf16 and
sequence parallelism, one micro-batch of one sample at a time, four for each stage. Overrides go to all of them.
The last row is the largest one: GPT-3 175B on 16,384 ranks at ZeRO-3.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.errors import UserError
from pretrain.bench.table import columns
from pretrain.config.load import load_run_config
from pretrain.pretend.dry_run import DryRun, dry_run
from pretrain.pretend.dry_run_text import memory_rows, traffic_rows

COMMON = ("tokenizer.vocab_size=50257", "engine=zero1_bf16", "train.micro_batch_size=1")
LARGEST = (
    "gpt3_175b on 16,384 ranks",
    16_384,
    [
        "model=gpt3_175b",
        "parallel.tp=8",
        "parallel.pp=8",
        "parallel.sp=true",
        "engine=zero3_bf16",
        "engine.recompute.granularity=full",
        "engine.grad_reduction=per_step",
        "engine.param_gather=per_step",
        "train.global_batch_size=4096",
    ],
)
GIB = 2**30
CONF = Path(__file__).resolve().parents[2] / "conf"


def presets(data_parallel: int) -> Iterator[tuple[str, int, list[str]]]:
    """Name, number of ranks and overrides of each preset in each of its layouts."""
    for model in sorted(path.stem for path in (CONF / "model").glob("*.yaml")):
        for layout in sorted(path.stem for path in (CONF / "parallel").glob(f"{model}*.yaml")) or ["default"]:
            words = [f"model={model}", f"parallel={layout}"]
            parallel = load_run_config([*COMMON, *words]).parallel
            samples = 4 * parallel.pp * data_parallel
            more = [f"train.global_batch_size={samples}", f"parallel.sp={str(parallel.tp > 1).lower()}"]
            name = model if layout in (model, "default") else layout
            yield name, parallel.tp * parallel.pp * data_parallel, [*words, *more]


def row(name: str, done: DryRun) -> tuple[list[str], list[float]]:
    """The cells of a dry run, and how far off its planned peaks are."""
    peaks = [
        (measured, planned)
        for run in done.stages
        for kind, measured, planned in memory_rows(run)
        if kind == "peak of a step" and planned
    ]
    received = [item for run in done.stages for item in traffic_rows(run)]
    off = [planned / measured - 1 for measured, planned in peaks]
    traffic = sum(planned for *_, planned in received) / max(sum(measured for _, measured, _ in received), 1)
    resident = max(run.measured.resident for run in done.stages)
    largest, planned = max(peaks)
    cells = [
        name,
        f"{done.world_size:,}",
        str(len(done.stages)),
        f"{largest / GIB:.2f}",
        f"{planned / GIB:.2f}",
        f"{min(off):+.1%}",
        f"{max(off):+.1%}",
        f"{traffic - 1:+.1%}",
        f"{done.seconds:.0f}",
        f"{resident / GIB:.2f}",
    ]
    return cells, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--data-parallel", type=int, default=8, metavar="N")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    given = parser.parse_args()
    head = ["preset", "ranks", "stages", "peak GiB", "planned", "least off", "most off", "traffic off", "s", "host GiB"]
    rows, off = [head], []
    for name, ranks, words in (*presets(given.data_parallel), LARGEST):
        if given.only and name not in given.only:
            continue
        try:
            cells, found = row(name, dry_run(load_run_config([*COMMON, *words, *given.overrides]), ranks, None))
        except UserError as error:
            cells, found = [name, f"{ranks:,}", error.one_line, *[""] * 7], []
        rows.append(cells)
        off += found
        print("  ".join(cells), flush=True)
    print("\n".join(["", *columns(rows)]))
    if off:
        sizes = sorted(map(abs, off))
        print(f"planned peaks are off by {statistics.median(sizes):.1%} (median), {sizes[-1]:.1%} (most)")


if __name__ == "__main__":
    main()
