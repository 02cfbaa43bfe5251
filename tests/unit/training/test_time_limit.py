"""train.max_minutes on a clock that is a number: a fast run is left alone, a slow one ends in time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pretrain.config.load import load_run_config, with_overrides
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from pretrain.training.loop import length_record
from pretrain.training.time_limit import NO_LIMIT, ClockLimit, EarlierCuts, TimeLimit, earlier_cuts, time_limit_of

STEPS = 1000
CONFIG = load_run_config([f"train.max_steps={STEPS}", "train.max_minutes=5", "train.global_batch_size=4"])
LENGTH = RunLength.of(CONFIG)


@dataclass
class Trained:
    """The records of a run."""

    states: list[RunState]
    seconds: float
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rates(self) -> dict[int, float]:
        return {record["step"]: record["lr"] for record in self.records if record["kind"] == "train"}

    @property
    def cuts(self) -> list[int]:
        return [record["step"] for record in self.records if record["kind"] == "length"]


def trained(
    step_seconds: Callable[[int], float],
    limit: TimeLimit,
    state: RunState = RunState(),  # noqa: B008
    last_step: int = STEPS,
) -> Trained:
    """As the loop does it, which asks while a step is computed, with a clock that only steps move."""
    run = Trained([state], state.train_seconds)
    asked_at = state.train_seconds
    while not LENGTH.is_over(state) and state.step < last_step:
        if cut := limit.cut(state, asked_at):
            state = replace(state, cut_tokens=cut, cut_minutes=5)
            run.records.append({"kind": "length", "step": state.step, **length_record(state, LENGTH)})
        asked_at = run.seconds + (step_seconds(state.step) if state.step > run.states[0].step else 0)
        lr = LENGTH.lr(state)
        run.seconds += step_seconds(state.step + 1)
        tokens = state.tokens + LENGTH.step_tokens
        state = replace(state, step=state.step + 1, tokens=tokens, train_seconds=run.seconds)
        run.states.append(state)
        run.records.append({"kind": "train", "step": state.step, "tokens": tokens, "lr": lr})
    return run


def fresh(earlier: EarlierCuts = EarlierCuts()) -> ClockLimit:  # noqa: B008
    return ClockLimit(LENGTH, 5, earlier)


def test_a_run_that_is_fast_enough_is_left_alone() -> None:
    run = trained(lambda step: 20.0 if step == 1 else 0.25, fresh())
    assert run.states[-1].step == STEPS and not run.cuts
    assert run.rates == trained(lambda step: 0.25, NO_LIMIT).rates


@pytest.mark.parametrize("slow", [0.4, 1.0, 7.0, 40.0])
def test_a_slow_run_ends_in_time_at_the_last_learning_rate(slow: float) -> None:
    run = trained(lambda step: slow, fresh())
    assert run.states[-1].step < STEPS and abs(run.seconds - 300) <= max(0.03 * 300, slow)
    assert run.rates[run.states[-1].step] == pytest.approx(CONFIG.optim.lr * CONFIG.lr_schedule.final_ratio)
    assert run.cuts[0] <= max(6, 0.2 * 300 / slow)


def test_the_validation_after_the_last_step_has_its_time() -> None:
    def ends(samples: int) -> float:
        limit = ClockLimit(LENGTH, 5, EarlierCuts(), samples * CONFIG.model.seq_length)
        return trained(lambda step: 1.0, limit).seconds

    # Forward passes alone: a third of the 0.25 s that a sample takes in training. At most a quarter of the time.
    assert ends(480) == pytest.approx(300 - 40, abs=9)
    assert ends(10_000) == pytest.approx(300 - 75, abs=9)


def test_a_machine_that_slows_down_shortens_the_run_gradually() -> None:
    run = trained(lambda step: 0.2 if step < 500 else 1.0, fresh())
    assert 300 * 0.97 <= run.seconds <= 300 * 1.1 and len(run.cuts) > 1
    ends = [r["cut_tokens"] for r in run.records if r["kind"] == "length"]
    assert ends == sorted(ends, reverse=True)


def test_after_its_time_a_run_takes_one_more_step() -> None:
    state = RunState(step=500, tokens=500 * LENGTH.step_tokens, train_seconds=400)
    run = trained(lambda step: 31.0, fresh(), state)
    assert run.states[-1].step == 505  # after those that show the pace


def test_a_resume_takes_recorded_cuts_whatever_its_clock() -> None:
    """The attempt that was killed was slow, the one that repeats its steps is fast or slower still."""
    killed = trained(lambda step: 0.9, fresh(), last_step=120)
    assert len(killed.cuts) >= 1 and min(killed.cuts) > 30
    for pace in (0.01, 5.0):
        earlier = earlier_cuts(killed.records, killed.states[30], LENGTH)
        again = trained(lambda step, pace=pace: pace, fresh(earlier), killed.states[30])
        shared = [step for step in again.rates if step <= 120]
        assert shared[0] == 31 and shared[-1] == 120
        assert [again.rates[step] for step in shared] == [killed.rates[step] for step in shared]
        assert [step for step in again.cuts if step < 120] == killed.cuts
    replayed = trained(
        lambda step: 0.0, earlier_cuts(killed.records, killed.states[30], LENGTH), killed.states[30], last_step=120
    )
    assert replayed.rates == {step: lr for step, lr in killed.rates.items() if step > 30}


def test_a_cut_after_the_saved_step_is_repeated() -> None:
    killed = trained(lambda step: 0.9, fresh(), last_step=120)
    saved = killed.states[killed.cuts[0]]
    assert saved.cut_tokens is None  # it was saved before the decision
    again = trained(lambda step: 0.0, earlier_cuts(killed.records, saved, LENGTH), saved, last_step=120)
    assert again.rates == {step: lr for step, lr in killed.rates.items() if step > saved.step}


def test_decisions_for_another_limit_do_not_count() -> None:
    killed = trained(lambda step: 0.9, fresh(), last_step=120)
    other = RunLength.of(with_overrides(CONFIG, ["train.max_minutes=10"], ("train.",)))
    assert earlier_cuts(killed.records, killed.states[30], other) == EarlierCuts({}, 120)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_decisions_for_another_batch_do_not_count(size: int) -> None:
    """Its steps are others: a cut of a later step may even be in the past."""
    killed = trained(lambda step: 0.9, fresh(), last_step=120)
    other = RunLength.of(with_overrides(CONFIG, [f"train.global_batch_size={size}"], ("train.",)))
    assert earlier_cuts(killed.records, killed.states[30], other) == EarlierCuts({}, 30)


def test_without_a_limit_the_clock_is_not_read() -> None:
    assert time_limit_of(RunLength.of(load_run_config([])), EarlierCuts()) is NO_LIMIT
