"""One rank of a layout of any size, alone in its process: the program's own start-up and steps, without values.

Process groups are torch's fake ones, whose collectives return at once: what is measured is what the program asks for.
"""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.groups import ProcessGroups, build_groups
from pretrain.distributed.runtime import runtime
from pretrain.distributed.vendor_imports import megatron_imports
from pretrain.pretend.ledger import Collective, ledger
from pretrain.pretend.machine import on_pretend_gpu, replaced
from pretrain.pretend.measured import Measured, Step, Traffic

with megatron_imports():
    from pretrain.engine import build
    from pretrain.model import gpt
    from pretrain.model.init import InitialValue

KINDS = (
    ("allreduce", "all-reduce"),
    ("allgather", "all-gather"),
    ("reducescatter", "reduce-scatter"),
    ("alltoall", "all-to-all"),
    ("recv", "receive"),
)
"""Beginnings of torch's names, without underscores, where they are not ours."""
EOD_ID = 0
A_TOKEN = 1


@dataclass(frozen=True)
class Asked:
    """A rank, and the steps that it shall take."""

    config: RunConfig
    """Everything that `auto` may stand for is chosen."""
    vocab_size: int
    world_size: int
    rank: int
    memory: int
    """Bytes of its device."""
    steps: tuple[int, ...]
    """The number of micro-batches of each step."""


def measure(asked: Asked) -> Measured:
    """Build the rank's engine and take the steps. Changes this process for good."""
    place = {"RANK": asked.rank, "WORLD_SIZE": asked.world_size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    config, parallel = asked.config, asked.config.parallel
    layout = ParallelLayout.of(config.model, config.parallel, asked.world_size)
    clock = _Clock()
    with _alone(asked.memory), runtime(config.engine, FakeStore(), layout=layout) as here:
        clock.mark("joining")
        made = _Counted(dist.new_group)
        with replaced(dist, "new_group", made):
            groups = build_groups(layout, config.run.seed, here.group_timeout_minutes, here.device, vp=parallel.vp)
        clock.mark("process groups")

        def build_stage(*args: Any, **settings: Any) -> gpt.Stage:
            clock.mark("planning")
            stage = gpt.build_stage(*args, **settings)
            clock.mark("model")
            return stage

        with replaced(build, "build_stage", build_stage):
            engine: Any = build.build_engine(config, asked.vocab_size, groups, here.device, eod_id=EOD_ID)
        clock.mark("optimizer")
        names = _names(groups)
        at_start, peak, host = _traffic(ledger.collectives, names), ledger.peak, ledger.host_now
        started = ledger.now
        steps = tuple(_step(engine, config, number, names) for number in asked.steps)
        memory = engine.optimizer.memory()
        return Measured(
            seconds=clock.seconds,
            peak_start=peak,
            started=started,
            host_started=host,
            groups=tuple((names[group.group_name], group.size()) for group in _members()),
            groups_made=made.number,
            traffic_start=at_start,
            steps=steps,
            elements=sum(local.shape.numel() for local in engine.stage.local.values()),
            parameters=memory.parameters,
            master_weights=memory.master_weights,
            moments=memory.moments,
            gradients=memory.gradients,
            resident=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


@contextlib.contextmanager
def _alone(memory: int) -> Iterator[None]:
    """The device of a rank whose peers do not exist, and initial values that are not computed."""
    asked = build.attention_request
    with (
        on_pretend_gpu(compute=False, memory=memory, alone=True),
        replaced(InitialValue, "write", lambda self, out, rows, start=0: None),
        replaced(build, "attention_request", lambda model, engine, _, **more: asked(model, engine, "cuda", **more)),
        replaced(build, "smallest_memory", lambda *_: memory),
    ):
        yield


def _step(engine: Any, config: RunConfig, micro_batches: int, names: dict[str, str]) -> Step:
    samples, length = micro_batches * int(config.train.micro_batch_size), config.model.seq_length
    tokens = torch.full((samples, length + 1), A_TOKEN)
    mask = torch.ones(samples, length, dtype=torch.bool) if config.data.packing == "best_fit" else None
    ledger.begin()
    peak = 0

    def at_update() -> None:
        nonlocal peak
        peak, ledger.peak = ledger.peak, ledger.now

    engine.before_next_update(at_update)
    start = time.perf_counter()
    engine.train_step(tokens, config.optim.lr, mask)
    return Step(
        micro_batches=micro_batches,
        seconds=time.perf_counter() - start,
        peak_forward_backward=peak,
        peak_update=ledger.peak,
        between_steps=ledger.now,
        host_peak=ledger.host_peak,
        waits=dict(ledger.waits),
        operations=ledger.operations,
        traffic=_traffic(ledger.collectives, names),
    )


def _members() -> list[dist.ProcessGroup]:
    """The groups that this rank is a member of."""
    return list(dist.distributed_c10d._world.pg_map)


def _names(groups: ProcessGroups) -> dict[str, str]:
    """Our names of torch's groups."""
    named = {
        "tensor": groups.tensor_parallel,
        "data": groups.data_parallel,
        "pipeline": groups.pipeline_parallel,
        "model": groups.model_parallel,
        "embedding": groups.embedding,
        "control": groups.control,
        "saving": groups.saving,
        "world": groups.world,
    }
    ours = {group.group_name: name for name, group in named.items() if group is not None}
    return {group.group_name: ours.get(group.group_name, "other") for group in _members()}


def _traffic(collectives: Iterable[Collective], names: dict[str, str]) -> tuple[Traffic, ...]:
    """The collectives by group and kind."""
    found: dict[tuple[str, str, int], list[int]] = {}
    for item in collectives:
        sums = found.setdefault((names.get(item.group, "other"), _kind(item.operation), item.ranks), [0, 0])
        sums[0] += 1
        sums[1] += item.size
    return tuple(Traffic(*key, *sums) for key, sums in found.items())


def _kind(operation: str) -> str:
    plain = operation.replace("_", "")
    return next((kind for beginning, kind in KINDS if plain.startswith(beginning)), operation.strip("_"))


class _Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """The phase ends here."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class _Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.number = function, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.number += 1
        return self.function(*args, **kwargs)
