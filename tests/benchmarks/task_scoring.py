"""The cost of a task in the loop: seconds of scoring against those of training up to the next validation.

    python -m tests.benchmarks.task_scoring [DATASET]

The task has 200 questions of 4 choices, made from the dataset's validation split, and the model the quickstart's shape
and random weights. Both are measured in processor time, in this process, and in turns.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pretrain.config.load import load_run_config

QUESTIONS, STEPS, TURNS = 200, 10, 5


def seconds(action: Callable[[], Any]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def measure(here: Any, folder: Path) -> list[str]:
    from data_pipeline.shards.reader import PackedDataset
    from pretrain.engine.build import build_engine
    from pretrain.evaluation.next_line import next_line_task
    from pretrain.evaluation.requests import asked_of
    from pretrain.evaluation.scoring import scoring_together
    from pretrain.evaluation.task_scorer import TaskScorer
    from tests.support.training import join

    config = load_run_config(["experiment=quickstart", "engine.device=cpu"])
    split = PackedDataset.open(folder, "validation")
    tokenizer = split.folder.tokenizer(split.manifest)
    groups = join(here, config)
    engine = build_engine(config, tokenizer.vocab_size, groups, here.device, eod_id=tokenizer.eod_id)
    asked = asked_of(next_line_task({"held out": split}, tokenizer, QUESTIONS), tokenizer, config.model.seq_length)
    length, rows = config.model.seq_length, config.train.global_batch_size
    scorer = TaskScorer([asked], scoring_together(groups, seq_length=length, batch_size=rows))
    tokens = torch.randint(tokenizer.vocab_size, (rows, length + 1))
    times: dict[str, list[float]] = {"step": [], "task": []}
    for _ in range(TURNS):
        times["step"].append(seconds(lambda: [engine.train_step(tokens, 1e-4) for _ in range(STEPS)]) / STEPS)
        times["task"].append(seconds(lambda: scorer.figures(engine, asked)))
    step, task = (statistics.median(values) for values in times.values())
    interval = load_run_config([]).evaluation.every_steps
    return [
        f"{len(asked.counts)} questions, {len(asked.requests)} requests",
        f"step {1000 * step:.1f} ms, task {task:.2f} s of processor time on {torch.get_num_threads()} threads",
        f"{task / (interval * step):.1%} of {interval} steps",
    ]


if __name__ == "__main__":
    from tests.benchmarks.task_scoring import measure as measure_on_rank  # ranks import it by this name
    from tests.support.ranks import run_ranks

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/stdlib").resolve()
    print("\n".join(run_ranks(measure_on_rank, 1, folder)[0]))
