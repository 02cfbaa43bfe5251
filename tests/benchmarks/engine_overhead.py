"""`pretrain train` against a plain PyTorch loop over the same Megatron model and batches, in one process.

    python -m tests.benchmarks.engine_overhead [--hf] [--steps 30] [--warm-up 5] [overrides]

All sides take the same steps in turn, A B A B ..., so that a machine whose speed drifts is fair to all. The plain
side has what any loop needs, in the configured precision: forward, backward, clipping, torch's AdamW, over the same
stage with the same attention kernels, cross-entropy and graphs (engine.compile), master weights and sums of gradients
in fp32 where the engine has them so. It shards nothing, whatever the ZeRO stage. Ours has all that `train` does at each
step: loader, Megatron's schedule, DeepSpeed's step, the message among ranks, the record, all sinks that the config
names. Without a prepared dataset both read pseudo-random tokens.
With --hf, where transformers and accelerate are installed, Hugging Face's Trainer is a third side, with a Llama of the
same shape (hf_trainer.py). On a GPU each step ends when the device has done it.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.shards.manifest import MANIFEST_FILE
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from pretrain.bench.data import VOCAB_SIZE, write_synthetic
from pretrain.config.attention_kernels import attention_request
from pretrain.config.checks import check_run
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import ProcessGroups, build_groups
from pretrain.distributed.runtime import runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.optim.param_groups import parameter_groups
from pretrain.run.length import RunLength
from pretrain.run.state import RunState

with megatron_imports():
    from pretrain.engine.build import build_engine
    from pretrain.engine.deepspeed_config import sums_in_fp32
    from pretrain.engine.device import to_device
    from pretrain.engine.schedule import document_starts, positions_in_documents, positions_of
    from pretrain.model.compile import compile_stage
    from pretrain.model.gpt import build_stage

OURS = "pretrain train"
LR = 1e-4


class PlainLoop:
    """One optimizer step a call, as a hand-written loop would do it: what the configuration says of one device."""

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        batches: Iterator[Tensor],
        groups: ProcessGroups,
        device: torch.device,
        *,
        eod_id: int,
        lr: float = LR,
    ) -> None:
        """`batches`: tokens [n, s + 1] on the host."""
        engine, optim = config.engine, config.optim
        if engine.precision == "fp16":
            raise SystemExit("engine.precision=fp16: the plain loop scales no losses; take bf16 or fp32")
        self.batches, self.device = batches, device
        self.micro_batch_size, self.clip = config.train.micro_batch_size, optim.clip_grad_norm
        self.eod_id = eod_id if config.data.document_mask else None
        kind = "cuda" if device.type == "cuda" else "cpu"
        self.stage = build_stage(
            config.model,
            parallel=config.parallel,
            engine=engine,
            vocab_size=vocab_size,
            seed=config.run.seed,
            groups=groups,
            device=device,
            attention=attention_request(config.model, engine, kind, documents=config.data.document_mask),
        )
        if engine.compile != "none":
            compile_stage(self.stage, engine.compile, Path(config.run.dir) / "compile")
        if sums_in_fp32(engine):
            for parameter in self.stage.parameters():
                parameter.grad_dtype = torch.float32
        # In fp32 a parameter is its own master.
        self.masters = {
            parameter: parameter if engine.precision == "fp32" else torch.nn.Parameter(parameter.detach().float())
            for parameter in self.stage.parameters()
        }
        self.adamw = torch.optim.AdamW(
            parameter_groups(
                ((name, shape, self.masters[own]) for name, shape, own in self.stage.named()), config.model, optim
            ),
            lr=lr,
            betas=(optim.beta1, optim.beta2),
            fused=True,
        )

    def __call__(self) -> Tensor:
        """Train on the next batch. Returns its loss without waiting for it."""
        parts = next(self.batches).split(self.micro_batch_size)
        total = torch.zeros((), device=self.device)
        for tokens in parts:
            loss = self._loss(tokens) / len(parts)
            loss.backward()
            total += loss.detach()
        self._update()
        return total

    def _loss(self, tokens: Tensor) -> Tensor:
        there, starts = to_device(tokens, self.device), None
        inputs = there[:, :-1]
        positions = positions_of(inputs)
        if self.eod_id is not None:
            starts = document_starts(tokens[:, :-1], self.eod_id)
            positions = positions_in_documents(inputs, self.eod_id)
        losses: Tensor = self.stage(0, inputs, positions, starts, labels=there[:, 1:])
        return losses.mean()

    @torch.no_grad()
    def _update(self) -> None:
        apart = {own: master for own, master in self.masters.items() if own is not master}
        for own, master in apart.items():
            assert own.grad is not None
            master.grad, own.grad = own.grad.float(), None
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.masters.values(), self.clip)
        self.adamw.step()
        self.adamw.zero_grad()
        if apart:
            torch._foreach_copy_(list(apart), list(apart.values()))


class Pace:
    """Takes the place of a sink: lets the other sides take their steps between two of ours, and records all times."""

    def __init__(self, others: Mapping[str, Callable[[], object]], device: torch.device) -> None:
        self.others, self.device = others, device
        self.times: dict[str, list[float]] = {OURS: [], **{name: [] for name in others}}
        self.began = time.perf_counter()

    def log(self) -> None:
        self._end(OURS)
        for name, step in self.others.items():
            step()
            self._end(name)

    def _end(self, side: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.times[side].append(now - self.began)
        self.began = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf", action="store_true", help="Hugging Face's Trainer as a third side")
    parser.add_argument("--steps", type=int, default=30, help="steps of each side that are timed; default: 30")
    parser.add_argument("--warm-up", type=int, default=5, help="steps of each side before them; default: 5")
    options, overrides = parser.parse_known_args()
    steps = options.warm_up + options.steps
    with tempfile.TemporaryDirectory() as folder:
        config = load_run_config(
            [
                f"run.dir={folder}",
                f"train.max_steps={steps}",
                "lr_schedule=constant",
                "lr_schedule.warmup_steps=1",
                f"optim.lr={LR}",
                "tracking.log_every_steps=1",
                "evaluation.final_max_samples=1",
                *overrides,
            ]
        )
        check_run(config, world_size=1)
        path = Path(config.data.path)
        if not (path / MANIFEST_FILE).exists():
            path = Path(folder) / "data"
            write_synthetic(path, config, VOCAB_SIZE)
        dataset = PackedDataset.open(path, "train")
        times = run_all(config, dataset, Path(folder), options.hf)
    times = {side: values[options.warm_up : steps] for side, values in times.items()}
    tokens = config.train.global_batch_size * config.model.seq_length
    engine = config.engine
    precision = f"ZeRO-{engine.zero_stage} {engine.precision}, engine.compile={engine.compile}"
    print(f"{config.model.name}, {precision}, {tokens} tokens a step, {options.steps} steps, medians")
    for side, values in times.items():
        median = statistics.median(values)
        line = f"  {side:16} {1000 * median:8.1f} ms a step  {tokens / median:10,.0f} tokens/s"
        if side != OURS:
            pairs = statistics.median(ours / other for ours, other in zip(times[OURS], values, strict=True))
            totals = sum(times[OURS]) / sum(values)
            line += f"   time of ours to it, pair by pair: median {pairs:.4f}, of totals {totals:.4f}"
        print(line)


def run_all(config: RunConfig, dataset: PackedDataset, folder: Path, hf: bool) -> dict[str, list[float]]:
    """Run our loop with `Pace` as the last of its sinks; seconds of each side's steps."""
    from pretrain.model.flops import token_flops
    from pretrain.tracking.sinks import build_sinks
    from pretrain.tracking.speed import StepClock, device_peak
    from pretrain.training.loop import NeverSave, run_loop

    vocab_size, eod_id = dataset.manifest.tokenizer.vocab_size, dataset.manifest.tokenizer.eod_id
    size = config.train.global_batch_size
    batches = partial(train_batches, dataset, seed=1, global_batch_size=size, rank=0, size=1, position=0)
    with runtime(config.engine) as here, contextlib.ExitStack() as stack:
        groups = build_groups(ParallelLayout(1), config.run.seed, 5, here.device)
        engine = build_engine(config, vocab_size, groups, here.device, eod_id=eod_id)
        sinks = build_sinks(config, folder, 0, config.train.max_steps or 0, {})
        others: dict[str, Callable[[], object]] = {
            "plain loop": PlainLoop(
                config, vocab_size, (batch.tokens for batch in batches()), groups, here.device, eod_id=eod_id
            )
        }
        if hf:
            from tests.benchmarks.hf_trainer import HfTrainer

            trainer = HfTrainer(config, dataset, here.device)
            stack.callback(trainer.close)
            others["HF Trainer"] = trainer.step
        pace = Pace(others, here.device)
        peak = device_peak(config.tracking.peak_tflops, here.gpu_name, config.engine.precision)

        def record(kind: str, step: int, values: object) -> None:
            for sink in sinks:
                sink.log(kind, step, values)  # type: ignore[arg-type]
            if kind == "train":
                pace.log()

        pace.began = time.perf_counter()
        run_loop(
            config=config,
            engine=engine,
            batches=batches(),
            state=RunState(),
            length=RunLength.of(config),
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
            checkpoints=NeverSave(),
            stop_requested=lambda: False,
            control=groups.control,
        )
        for sink in sinks:
            sink.close("finished")
    return pace.times


if __name__ == "__main__":
    main()
