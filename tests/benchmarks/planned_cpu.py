"""Planned against measured step times of tiny runs on this CPU.

A record of this machine is measured first, with as many ranks as the largest run has; then runs that it has not seen,
by `pretrain bench`, each planned from that record. The machine should be quiet; its load is printed beside each run.

    python -m tests.benchmarks.planned_cpu
    python -m tests.benchmarks.planned_cpu --record mine.yaml --only 4
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RANKS = 4
WARM_UP, STEPS = 5, 40


@dataclass(frozen=True)
class Case:
    ranks: int
    vocab_size: int
    words: str


CASES = (
    Case(1, 4096, "model=tiny train.global_batch_size=8"),
    Case(1, 2048, "experiment=quickstart"),
    Case(
        1,
        1000,
        "model=tiny_llama model.num_layers=5 model.hidden_size=192 model.num_heads=6 model.num_query_groups=6 "
        "model.ffn_hidden_size=512 engine=zero1_bf16 train.global_batch_size=4 train.micro_batch_size=2",
    ),
    Case(
        1,
        8192,
        "model=tiny model.num_layers=3 model.hidden_size=96 model.num_heads=3 model.ffn_hidden_size=320 "
        "model.seq_length=512 engine.zero_stage=3 train.global_batch_size=2 train.micro_batch_size=1",
    ),
    Case(2, 4096, "model=tiny_llama train.global_batch_size=16 engine.zero_stage=0"),
    Case(2, 3000, "model=tiny model.hidden_size=256 model.ffn_hidden_size=1024 engine.zero_stage=2"),
    Case(
        2,
        2048,
        "model=tiny_llama model.hidden_size=384 model.num_heads=6 model.num_query_groups=2 model.ffn_hidden_size=1024 "
        "model.seq_length=128 engine.zero_stage=3 train.global_batch_size=16 train.micro_batch_size=8",
    ),
    Case(2, 4096, "model=tiny model.hidden_size=256 model.ffn_hidden_size=1024 parallel.tp=2"),
    Case(2, 4096, "model=tiny model.num_layers=6 parallel.pp=2 train.global_batch_size=16 train.micro_batch_size=2"),
    Case(4, 2048, "model=tiny_llama model.num_layers=4 train.global_batch_size=16 engine.zero_stage=1"),
    Case(
        4,
        4096,
        "model=tiny model.num_layers=4 model.hidden_size=192 model.ffn_hidden_size=768 parallel.tp=2 parallel.pp=2",
    ),
    Case(
        4,
        2048,
        "model=tiny_llama model.hidden_size=256 model.ffn_hidden_size=704 parallel.tp=2 engine.zero_stage=2 "
        "train.global_batch_size=16",
    ),
)
"""Runs of several sizes and layouts; none is among the models that a record is measured with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="a record of this machine; default: measure one")
    parser.add_argument("--only", type=int, help="only runs on so many ranks")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps that are timed; default: {STEPS}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = given.record
        if record is None:
            record = Path(folder) / "machine.yaml"
            command(RANKS, ["--record", str(record), "engine.device=cpu"], Path(folder))
        print("ranks  planned ms  median ms  least ms  planned / median  / least  load  run")
        ratios = [
            compare(case, record, Path(folder) / str(n), given.steps)
            for n, case in enumerate(CASES)
            if given.only in (None, case.ranks)
        ]
    for name, column in (("median", 0), ("least", 1)):
        off = sorted(abs(ratio[column] - 1) for ratio in ratios)
        print(
            f"off from the {name} step: median {statistics.median(off):.1%}, largest {off[-1]:.1%} of {len(off)} runs"
        )


def compare(case: Case, record: Path, out: Path, steps: int) -> tuple[float, float]:
    """Planned time over the median and the least of the measured ones."""
    words = [f"--warmup={WARM_UP}", f"--steps={steps}", f"--vocab-size={case.vocab_size}", f"--out={out}"]
    words += ["engine.device=cpu", "tracking=off", f"cluster.hardware={record.absolute()}", *case.words.split()]
    command(case.ranks, words, out.parent)
    result = json.loads((out / "bench.json").read_text())
    measured, planned = result["step_seconds"], result["planned"]["seconds_step"]
    least = min(measured["all"])
    by_median, by_least = planned / measured["median"], planned / least
    print(
        f"{case.ranks:5}  {1e3 * planned:10.1f}  {1e3 * measured['median']:9.1f}  {1e3 * least:8.1f}  "
        f"{by_median:16.3f}  {by_least:7.3f}  {os.getloadavg()[0]:4.1f}  {case.words}",
        flush=True,
    )
    print("  " + next(note for note in result["notes"] if note.startswith("step time")).partition("; ")[2], flush=True)
    return by_median, by_least


def command(ranks: int, words: list[str], folder: Path) -> None:
    """`pretrain bench`, on one thread for each rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "-m"]
    start = launcher if ranks > 1 else [sys.executable, "-m"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*start, "pretrain", "bench", *words], env=variables, cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)


if __name__ == "__main__":
    main()
