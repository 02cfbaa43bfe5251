"""The agreement of the ranks on a step, and its time."""

import io
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.stream.loader import Batch
from pretrain.config.errors import RunError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.model.flops import token_flops
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.tracking.speed import StepClock
from pretrain.training.loop import Agreement, PendingAgreement, agree, run_loop
from tests.support.models import run_config
from tests.support.ranks import run_ranks
from tests.support.training import join

CONFIG = run_config(tp=2)
BATCH = Batch(
    tokens=torch.zeros(2, 3, dtype=torch.int64),
    mask=None,
    position=40,
    next_position=44,
    epoch=0,
    digest=-(2**63) + 5,
    num_skipped=1,
)


def agreed(here: Runtime, config: RunConfig, damage: bool) -> Agreement | str:
    groups = join(here, config)
    batch = BATCH._replace(digest=7, num_skipped=2) if damage and here.rank == 3 else BATCH
    try:
        return agree(batch, groups.tp_rank == 0, False, int(here.rank == 1), groups.control)
    except RunError as error:
        return str(error)


def test_a_batch_is_counted_once_by_the_ranks_that_share_it() -> None:
    twice = f"{(2 * BATCH.digest) % 2**64:016x}"
    for found in run_ranks(agreed, 4, CONFIG, False):
        assert found == Agreement(batch_hash=twice, skipped_samples=2, stop=False, save=False)


def asked(here: Runtime, config: RunConfig) -> tuple[Agreement, str]:
    """Rank 3 is asked to stop; what is logged."""
    groups, lines = join(here, config), io.StringIO()
    logger, handler = logging.getLogger("pretrain.training.loop"), logging.StreamHandler(lines)
    logger.addHandler(handler)
    found = agree(BATCH, groups.tp_rank == 0, here.rank == 3, 0, groups.control)
    logger.removeHandler(handler)
    return found, lines.getvalue() if here.rank == 0 else ""


def test_a_rank_that_is_asked_to_stop_stops_all_and_is_named() -> None:
    results = run_ranks(asked, 4, CONFIG)
    assert all(found.stop for found, _ in results)
    assert results[0][1] == "rank 3 was asked by a signal to stop\n"


def test_ranks_of_one_group_with_different_batches_stop() -> None:
    for found in run_ranks(agreed, 4, CONFIG, True):
        assert "batch of samples 40 to 43: ranks of one group read different data" in found


STEPS, SIZE = 8, 6
EVERY = 3
"""Steps from one validation to the next."""
LOOP = run_config(
    "gpt",
    f"train.max_steps={STEPS}",
    f"train.global_batch_size={SIZE}",
    f"evaluation.every_steps={EVERY}",
    "tracking.log_every_steps=1",
)


@dataclass(frozen=True)
class Disturbance:
    """Events on one rank, by the number of the call: 0 before the first step, n in step n."""

    rank: int = 0
    stop_at: int = STEPS + 1
    """Asked to stop from then on."""
    batches: int = STEPS
    """It gets no more of them."""
    save_at: int = STEPS + 1
    """Its clock says so, once."""


@dataclass
class Watched:
    """A loop over steps that compute nothing, and what happens in it."""

    here: Runtime
    disturbance: Disturbance
    events: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    saves: list[tuple[int, bool]] = field(default_factory=list)
    calls: int = -1
    step: int = 0

    @property
    def disturbed(self) -> bool:
        return self.here.rank == self.disturbance.rank

    def batches(self) -> Iterator[Batch]:
        for number in itertools.count():
            if self.disturbed and number == self.disturbance.batches:
                return
            assert number < STEPS, "no batch is asked for that no step takes"
            position = number * SIZE
            yield Batch(torch.zeros(1, 2), None, position, position + SIZE, 0, position + self.here.rank, number % 2)

    def stop_requested(self) -> bool:
        self.calls += 1
        return self.disturbed and self.calls >= self.disturbance.stop_at

    def due_by_clock(self) -> int:
        return int(self.disturbed and self.calls == self.disturbance.save_at)

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        if by_clock or last:
            self.saves.append((state.step, last))

    def last_name(self) -> str:
        return "none"

    def train_step(self, tokens: Any, lr: float, mask: Any = None) -> StepResult:
        self.events.append("computed")
        return StepResult(1.0, 1.0, True, 1.0, 0.0, 0.0)

    def evaluate(self, max_samples: int | None) -> dict[str, float]:
        return {}

    def run(
        self,
        control: dist.ProcessGroup,
        state: RunState = RunState(),  # noqa: B008
        is_validated: bool = True,
    ) -> tuple[RunState, str]:
        return run_loop(
            config=LOOP,
            engine=self,
            batches=self.batches(),
            state=state,
            length=RunLength.of(LOOP),
            samples_counted_here=True,
            clock=StepClock(token_flops(LOOP.model, 100), self.here.world_size, None),
            record=lambda kind, step, values: self.records.append({"kind": kind, "step": step, **values}),
            evaluate=self.evaluate,
            checkpoints=self,
            stop_requested=self.stop_requested,
            control=control,
            is_validated=is_validated,
        )


@dataclass(frozen=True)
class Ended:
    outcome: str
    step: int
    position: int
    saves: list[tuple[int, bool]]
    hashes: list[str]
    skipped: list[int]


def ended(here: Runtime, disturbances: list[Disturbance]) -> list[Ended]:
    control, found = join(here, run_config()).control, []
    for disturbance in disturbances:
        loop = Watched(here, disturbance)
        state, outcome = loop.run(control)
        trained = [record for record in loop.records if record["kind"] == "train"]
        assert [record["step"] for record in trained] == list(range(1, state.step + 1))
        hashes, skipped = zip(*((r["batch_hash"], r["skipped_samples"]) for r in trained), strict=True)
        found.append(Ended(outcome, state.step, state.position, loop.saves, list(hashes), list(skipped)))
    return found


RANKS = 3
CASES: list[tuple[Disturbance, tuple[str, int, list[tuple[int, bool]]]]] = [
    (Disturbance(), ("finished", STEPS, [(STEPS, True)])),
    (Disturbance(rank=1, stop_at=4), ("stopped", 4, [(4, True)])),
    (Disturbance(rank=2, stop_at=STEPS), ("stopped", STEPS, [(STEPS, True)])),  # the validation is still missing
    (Disturbance(rank=1, batches=5), ("stopped", 5, [(5, True)])),
    (Disturbance(rank=0, save_at=3), ("finished", STEPS, [(3, False), (STEPS, True)])),
    (Disturbance(rank=1, save_at=3), ("finished", STEPS, [(STEPS, True)])),  # rank 0's clock decides
]


def test_all_ranks_stop_and_save_after_the_same_step() -> None:
    for rank in run_ranks(ended, RANKS, [case for case, _ in CASES]):
        for found, (case, expected) in zip(rank, CASES, strict=True):
            assert (found.outcome, found.step, found.saves) == expected, case
            assert found.position == found.step * SIZE
            sums = [sum(number * SIZE + rank for rank in range(RANKS)) for number in range(found.step)]
            assert found.hashes == [f"{total:016x}" for total in sums]
            skips = [RANKS * (number % 2) for number in range(found.step)]
            assert found.skipped == list(itertools.accumulate(skips))


@pytest.mark.parametrize("disturbance", [Disturbance(rank=1, stop_at=0), Disturbance(rank=1, batches=0)])
def test_a_stop_before_the_first_step_trains_and_saves_nothing(disturbance: Disturbance) -> None:
    for outcome, step, events, saves in run_ranks(started, 2, disturbance):
        assert (outcome, step, events, saves) == ("stopped", 0, [], [])


def started(here: Runtime, disturbance: Disturbance) -> tuple[str, int, list[str], list[tuple[int, bool]]]:
    loop = Watched(here, disturbance)
    state, outcome = loop.run(join(here, run_config()).control)
    return outcome, state.step, loop.events, loop.saves


def order_of(here: Runtime) -> list[str]:
    loop, control = Watched(here, Disturbance()), join(here, run_config()).control
    reduce, wait = dist.all_reduce, PendingAgreement.wait

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        assert kwargs["async_op"] and tensor.nbytes < 100
        loop.events.append("sent")
        return reduce(tensor, *args, **kwargs)

    def waited(self: PendingAgreement) -> Agreement:
        loop.events.append("waited")
        return wait(self)

    dist.all_reduce, PendingAgreement.wait = all_reduce, waited  # type: ignore[method-assign]
    loop.run(control)
    return loop.events


def test_ranks_agree_while_the_step_is_computed() -> None:
    for events in run_ranks(order_of, 2):
        assert events == ["sent", "waited", *["sent", "computed", "waited"] * STEPS]


@dataclass
class Evaluating(Watched):
    """Notes validations and saves in their order; the validation after step `bad` fails or is left off."""

    bad: int = STEPS + 1
    fails: bool = False

    def evaluate(self, max_samples: int | None) -> dict[str, float] | None:  # type: ignore[override]
        self.events.append("final validation" if max_samples is None else "validation")
        if self.events.count("computed") + self.start == self.bad:
            if self.fails:
                raise RunError("a bad shard")
            return None
        return {}

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        if last:
            self.events.append(f"saved {state.step}")

    start: int = 0

    def course(self, control: dist.ProcessGroup, step: int = 0, is_validated: bool = True) -> tuple[list[str], str]:
        self.start = step
        tokens = step * SIZE * LOOP.model.seq_length
        try:
            _, outcome = self.run(control, RunState(step=step, position=step * SIZE, tokens=tokens), is_validated)
        except RunError as error:
            outcome = str(error)
        return self.events, outcome


def courses(here: Runtime) -> list[tuple[list[str], str]]:
    control = join(here, run_config()).control
    undisturbed = Disturbance(rank=-1)
    return [
        Evaluating(here, undisturbed).course(control),
        Evaluating(here, undisturbed, bad=STEPS, fails=True).course(control),
        Evaluating(here, undisturbed, bad=STEPS).course(control),
        Evaluating(here, undisturbed).course(control, STEPS, is_validated=False),
        Evaluating(here, undisturbed).course(control, STEPS),
        Evaluating(here, Disturbance(rank=1, stop_at=EVERY)).course(control),
        Evaluating(here, undisturbed, bad=EVERY).course(control),
        Evaluating(here, undisturbed, bad=EVERY).course(control, EVERY, is_validated=False),
        Evaluating(here, undisturbed).course(control, 2 * EVERY, is_validated=False),
        Evaluating(here, undisturbed).course(control, 2 * EVERY + 1, is_validated=False),
    ]


def test_the_last_step_is_saved_before_it_is_validated() -> None:
    between = [*["computed"] * EVERY, "validation"] * 2
    last = ["computed"] * (STEPS - 2 * EVERY)
    saved = f"saved {STEPS}"
    for found in run_ranks(courses, 2):
        assert found == [
            ([*between, *last, saved, "final validation"], "finished"),
            ([*between, *last, saved, "final validation"], "a bad shard"),
            ([*between, *last, saved, "final validation"], "stopped"),
            (["final validation"], "finished"),
            ([], "finished"),
            ([*["computed"] * EVERY, f"saved {EVERY}"], "stopped"),
            ([*["computed"] * EVERY, "validation", f"saved {EVERY}"], "stopped"),
            (["validation"], "stopped"),
            (["validation", *last, saved, "final validation"], "finished"),
            ([*last[1:], saved, "final validation"], "finished"),
        ]
