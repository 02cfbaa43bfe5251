"""Time of an optimizer step with documents kept apart, as a share of the same step without (data.document_mask).

    python -m tests.benchmarks.document_mask [overrides]

Through the product's engine on one process, both ways in turn, A B A B ..., so that a machine whose speed drifts is
fair to both. Tokens are random; the lengths of documents are log-normal with sigma 1 and the mean that is named. The
last line has one document in each sample: what the mask costs where it has nothing to leave out.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import build_groups
from pretrain.distributed.runtime import runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.engine.interface import Engine

DEFAULTS = (
    "model=tiny_llama",
    "model.seq_length=2048",
    "model.hidden_size=256",
    "model.num_layers=2",
    "train.global_batch_size=2",
    "train.micro_batch_size=1",
    "engine.device=cpu",
    "tracking=off",
)
MEAN_LENGTHS = (8, 64, 512, None)
VOCAB_SIZE, EOD_ID = 4096, 2
WARM_UP, TIMED = 1, 5


def draw_batch(config: RunConfig, mean_length: int | None) -> torch.Tensor:
    """Samples [n, s + 1]; None: without an end of a document."""
    random = np.random.default_rng(0)
    shape = (config.train.global_batch_size, config.model.seq_length + 1)
    tokens = random.integers(EOD_ID + 1, VOCAB_SIZE, shape)
    if mean_length is not None:
        lengths = random.lognormal(np.log(mean_length) - 0.5, 1.0, tokens.size).astype(np.int64) + 1
        ends = lengths.cumsum() - 1
        tokens.ravel()[ends[ends < tokens.size]] = EOD_ID
    return torch.from_numpy(tokens)


def compare(engines: Sequence[Engine], batch: torch.Tensor) -> list[float]:
    """Median seconds of a step by each."""
    seconds: list[list[float]] = [[] for _ in engines]
    for turn in range(WARM_UP + TIMED):
        for engine, times in zip(engines, seconds, strict=True):
            started = time.perf_counter()
            engine.train_step(batch, 1e-4)
            if turn >= WARM_UP:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]


def main() -> None:
    config = load_run_config([*DEFAULTS, *sys.argv[1:]])
    with runtime(config.engine) as here:
        with megatron_imports():
            from pretrain.engine.build import build_engine

        groups = build_groups(ParallelLayout(1), config.run.seed, 5, here.device)
        ways = [
            dataclasses.replace(config, data=dataclasses.replace(config.data, document_mask=apart))
            for apart in (False, True)
        ]
        engines = [build_engine(way, VOCAB_SIZE, groups, here.device, eod_id=EOD_ID) for way in ways]
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {here.device}, medians of {TIMED} steps"
        )
        model = config.model
        print(f"{model.num_layers} layers, hidden {model.hidden_size}, sequence {model.seq_length}")
        for mean_length in MEAN_LENGTHS:
            batch = draw_batch(config, mean_length)
            ends = int((batch[:, :-2] == EOD_ID).sum())
            plain, apart = compare(engines, batch)
            what = f"{ends / len(batch) + 1:.0f} document(s) a sample"
            print(f"{what}: plain {plain:.3f} s, apart {apart:.3f} s, ratio {apart / plain:.2f}")


if __name__ == "__main__":
    main()
