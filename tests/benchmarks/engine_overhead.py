"""`pretrain train` against a plain PyTorch loop over the same Megatron model and batches, in one process.

    python -m tests.benchmarks.engine_overhead [overrides]

Both sides take the same steps in turn, A B A B ..., so that a machine whose speed drifts is fair to both. The plain
side has what any loop needs: forward, backward, clipping, torch's AdamW. Ours has all that `train` does at each step:
loader, Megatron's schedule, DeepSpeed's step, the message among ranks, the record, all sinks that the config names.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data_pipeline.loader import train_batches
from data_pipeline.shards.reader import PackedDataset
from pretrain.config.checks import check_run
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.layout.grid import ParallelLayout
from pretrain.layout.groups import ProcessGroups, build_groups
from pretrain.layout.runtime import runtime
from pretrain.layout.vendor_imports import megatron_imports

WARM_UP, TIMED = 5, 30


def plain_steps(
    config: RunConfig, dataset: PackedDataset, groups: ProcessGroups, device: torch.device
) -> Callable[[], None]:
    """One optimizer step a call, as a hand-written loop would do it."""
    from pretrain.engine.schedule import positions_of
    from pretrain.model.gpt import build_stage

    stage = build_stage(
        config.model,
        parallel=config.parallel,
        engine=config.engine,
        vocab_size=dataset.manifest.tokenizer.vocab_size,
        seed=config.run.seed,
        groups=groups,
        device=device,
    )
    adamw = torch.optim.AdamW(stage.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    micro = config.train.micro_batch_size
    batches = train_batches(
        dataset, seed=1, global_batch_size=config.train.global_batch_size, rank=0, size=1, position=0
    )

    def step() -> None:
        parts = next(batches).tokens.to(device).split(micro)
        for tokens in parts:
            inputs = tokens[:, :-1]
            loss = stage(0, inputs, positions_of(inputs), None, labels=tokens[:, 1:]).mean() / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(stage.parameters(), config.optim.clip_grad_norm)
        adamw.step()
        adamw.zero_grad()

    return step


class Pace:
    """Stands in the place of a sink: lets the plain loop take its step between two of ours, and keeps both times."""

    def __init__(self, other: Callable[[], None]) -> None:
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.began = time.perf_counter()

    def log(self, *_: object) -> None:
        now = time.perf_counter()
        self.ours.append(now - self.began)
        self.other()
        self.began = time.perf_counter()
        self.theirs.append(self.began - now)


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = WARM_UP + TIMED
        config = load_run_config(
            [
                f"run.dir={folder}",
                f"train.max_steps={steps}",
                "lr_schedule.warmup_steps=1",
                "tracking.log_every_steps=1",
                "evaluation.final_max_samples=1",
                *overrides,
            ]
        )
        check_run(config, world_size=1)
        dataset = PackedDataset.open(Path(config.data.path), "train")
        pace = run_both(config, dataset, Path(folder))
    ours, theirs = pace.ours[WARM_UP:steps], pace.theirs[WARM_UP:steps]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    tokens = config.train.global_batch_size * config.model.seq_length
    print(f"{config.model.name}, ZeRO-{config.engine.zero_stage}, {tokens} tokens a step, {TIMED} steps, medians")
    for name, times in (("pretrain train", ours), ("plain loop", theirs)):
        median = statistics.median(times)
        print(f"  {name:16} {1000 * median:8.1f} ms a step  {tokens / median:10,.0f} tokens/s")
    pairs, totals = statistics.median(ratios), sum(ours) / sum(theirs)
    print(f"  ratio of times, pair by pair: median {pairs:.4f}, of totals {totals:.4f}")


def run_both(config: RunConfig, dataset: PackedDataset, folder: Path) -> Pace:
    """Run our loop with `Pace` as the last of its sinks."""
    with megatron_imports():
        from pretrain.engine.build import build_engine
    from pretrain.loop import run_loop
    from pretrain.model.flops import token_flops
    from pretrain.run_state import RunState
    from pretrain.tracking.sinks import build_sinks
    from pretrain.tracking.speed import StepClock, device_peak

    vocab_size = dataset.manifest.tokenizer.vocab_size
    with runtime(config.engine) as here:
        groups = build_groups(ParallelLayout(1), config.run.seed, 5, here.device)
        engine = build_engine(config, vocab_size, groups, here.device, eod_id=dataset.manifest.tokenizer.eod_id)
        sinks = build_sinks(config, folder, 0, config.train.max_steps or 0, {})
        pace = Pace(plain_steps(config, dataset, groups, here.device))
        peak = device_peak(config.tracking.peak_tflops, None, config.engine.precision)

        def record(kind: str, step: int, values: object) -> None:
            for sink in sinks:
                sink.log(kind, step, values)  # type: ignore[arg-type]
            if kind == "train":
                pace.log()

        pace.began = time.perf_counter()
        run_loop(
            config=config,
            engine=engine,
            batches=train_batches(
                dataset, seed=1, global_batch_size=config.train.global_batch_size, rank=0, size=1, position=0
            ),
            state=RunState(),
            total_steps=config.train.max_steps or 0,
            lr_at=lambda step: 1e-4,
            samples_counted_here=True,
            clock=StepClock(token_flops(config.model, vocab_size), 1, peak),
            record=record,
            evaluate=lambda max_samples: {
                "loss": 0.0,
                "perplexity": 1.0,
                "bits_per_byte": 0.0,
                "samples": 0,
                "seconds": 0.0,
            },
            save=lambda state: None,
            stop_requested=lambda: False,
            control=groups.control,
            last_checkpoint=lambda: "none",
        )
        for sink in sinks:
            sink.close("finished")
    return pace


if __name__ == "__main__":
    main(sys.argv[1:])
