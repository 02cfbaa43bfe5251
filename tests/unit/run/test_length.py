"""The length of a run and the position in it, also after changes of the batch size."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from pretrain.config.checks import check_run
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.run.length import RunLength, check_length
from pretrain.run.state import RunState

SEQ = 64


def configured(batch: int = 4, **values: Any) -> RunConfig:
    given = [f"{name.replace('__', '.')}={'null' if value is None else value}" for name, value in values.items()]
    return load_run_config([f"model.seq_length={SEQ}", f"train.global_batch_size={batch}", *given])


def in_tokens(tokens: int, batch: int = 4, **values: Any) -> RunConfig:
    return configured(batch, train__max_steps=None, train__max_tokens=tokens, **values)


def trained(config: RunConfig, state: RunState = RunState(), steps: int | None = None) -> list[tuple[RunState, float]]:  # noqa: B008
    """The states that follow, as the loop makes them, each with the learning rate that led to it."""
    length, passed = RunLength.of(config), []
    state = state.with_batches_of(length.step_tokens)
    while not length.is_over(state) and (steps is None or len(passed) < steps):
        lr, batch = length.lr(state), config.train.global_batch_size
        state = replace(state, step=state.step + 1, position=state.position + batch, tokens=state.tokens + batch * SEQ)
        passed.append((state, lr))
    return passed


def lr_by_steps(step: int, config: RunConfig, total: int) -> float:
    """The schedule as it was while it counted steps of a batch that never changes."""
    schedule, peak = config.lr_schedule, config.optim.lr
    warmup = total // 20 if schedule.warmup_steps is None else schedule.warmup_steps
    if schedule.warmup_tokens is not None:
        warmup = -(-schedule.warmup_tokens // (config.train.global_batch_size * SEQ))
    if step <= warmup:
        return peak * step / warmup
    start = warmup
    if schedule.name == "wsd":
        start = max(warmup, total - round(schedule.decay_fraction * total))
    done = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    share = 0.5 * (1 + math.cos(math.pi * done)) if schedule.name == "cosine" else 1 - done
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * share)


@pytest.mark.parametrize("warmup", [{}, {"lr_schedule__warmup_steps": 7}, {"lr_schedule__warmup_tokens": 1000}])
@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("length", [{"train__max_steps": 97}, {"train__max_steps": None, "train__max_tokens": 24_700}])
def test_with_one_batch_size_rates_are_exact(name: str, warmup: dict[str, int], length: dict[str, Any]) -> None:
    config = configured(batch=4, lr_schedule=name, **warmup, **length)
    rates = [lr for _, lr in trained(config)]
    assert rates == [lr_by_steps(step, config, 97) for step in range(1, 98)]


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (256, 1), (257, 2), (2048, 8)])
def test_max_tokens_ends_with_the_first_step_that_reaches_it(tokens: int, steps: int) -> None:
    length = RunLength.of(in_tokens(tokens))
    assert length.end_step(RunState()) == steps
    assert [length.is_over(state) for state, _ in trained(in_tokens(tokens))] == [False] * (steps - 1) + [True]


@pytest.mark.parametrize(("batch", "tokens", "steps"), [(8, 4096, 12), (2, 3072, 16), (8, 2048, 8), (3, 2049, 9)])
def test_past_tokens_of_another_batch_size_are_counted(batch: int, tokens: int, steps: int) -> None:
    (*_, (state, _)) = trained(in_tokens(2048))
    assert (state.step, state.tokens) == (8, 2048)
    states = [state, *(after for after, _ in trained(in_tokens(tokens, batch), state))]
    assert states[-1].step == steps == RunLength.of(in_tokens(tokens, batch)).end_step(state)
    assert tokens <= states[-1].tokens < tokens + batch * SEQ and states[-1].tokens == states[-1].position * SEQ


def test_a_length_in_steps_stays_in_steps() -> None:
    state = trained(configured(train__max_steps=10), steps=4)[-1][0]
    length = RunLength.of(configured(batch=16, train__max_steps=10))
    assert length.end_step(state) == 10 and length.end_tokens(state) == (4 * 4 + 6 * 16) * SEQ


@pytest.mark.parametrize(
    "warmup",
    [{}, {"lr_schedule__warmup_tokens": 5000}, {"lr_schedule__warmup_steps": 20}],
    ids=["share", "tokens", "steps"],
)
@pytest.mark.parametrize("batches", [(4, 16), (16, 4), (4, 6), (32, 1)])
@pytest.mark.parametrize("after", [1, 5, 15, 19])
def test_warmup_never_falls_and_never_restarts(batches: tuple[int, int], after: int, warmup: dict[str, int]) -> None:
    """Whatever the batch becomes, and whenever."""
    before, now = (in_tokens(60_000, batch, **warmup) for batch in batches)
    passed = trained(before, steps=after)
    passed += trained(now, passed[-1][0])
    rates = [lr for _, lr in passed]
    top = rates.index(max(rates))
    assert all(one <= other for one, other in itertools.pairwise(rates[: top + 1]))
    assert all(one >= other for one, other in itertools.pairwise(rates[top:]))


@pytest.mark.parametrize("warmup", [{"lr_schedule__warmup_tokens": 2048}, {"lr_schedule__warmup_steps": 8}])
@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_the_learning_rate_is_a_function_of_the_tokens_seen(name: str, warmup: dict[str, int]) -> None:
    """After the warmup, batches of any size lead to the same rate at the same number of tokens."""
    one = trained(in_tokens(16_384, 4, lr_schedule=name, **warmup))
    by_tokens = {state.tokens: lr for state, lr in one}
    state = one[11][0]
    for batch in (8, 2, 4, 2):  # with these the end is the same: no last step reaches beyond it
        passed = trained(in_tokens(16_384, batch, lr_schedule=name, **warmup), state, steps=4)
        shared = [(by_tokens[s.tokens], lr) for s, lr in passed if s.tokens in by_tokens]
        assert shared and all(lr == pytest.approx(expected, rel=1e-9) for expected, lr in shared)
        state = passed[-1][0]


def test_a_state_has_the_tokens_of_each_step_across_batch_sizes() -> None:
    states = [RunState()]
    for batch, steps in ((4, 3), (8, 2), (8, 1), (1, 4)):
        states += [state for state, _ in trained(configured(batch), states[-1], steps)]
    last = RunState.from_json({**states[-1].to_json(), "batch_changes": [list(c) for c in states[-1].batch_changes]})
    assert last == states[-1] and len(last.batch_changes) == 2
    assert [last.tokens_after(step) for step in range(11)] == [state.tokens for state in states]


def test_a_cut_holds_for_the_minutes_that_it_was_made_for() -> None:
    state = RunState(step=10, tokens=10 * 4 * SEQ, cut_tokens=20 * 4 * SEQ, cut_minutes=5)
    for minutes, end in ((5, 20), (6, 1000), (None, 1000)):
        length = RunLength.of(configured(train__max_minutes=minutes))
        assert length.end_step(state) == end and length.planned_end_step(state) == 1000
    assert RunLength.of(configured(train__max_minutes=5, train__max_steps=15)).end_step(state) == 15


CASES = {
    "lr_schedule.warmup_steps=21": ({"lr_schedule__warmup_steps": 21}, {"lr_schedule__warmup_steps": 20}),
    "lr_schedule.warmup_tokens=5121": ({"lr_schedule__warmup_tokens": 5121}, {"lr_schedule__warmup_tokens": 5120}),
    "profile.steps=[20,21]": ({"profile__steps": [20, 21]}, {"profile__steps": [19, 20]}),
}


@pytest.mark.parametrize("length", [{"train__max_steps": 20}, {"train__max_steps": None, "train__max_tokens": 5100}])
@pytest.mark.parametrize("key", CASES)
def test_warmup_and_profile_are_within_the_run(key: str, length: dict[str, Any]) -> None:
    too_long, fitting = ({**length, **values} for values in CASES[key])
    check_length(configured(**fitting), RunState())
    with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: .*(20|5100)"):
        check_run(configured(**too_long), 1)
        check_length(configured(**too_long), RunState())


def test_length_checks_count_past_steps_of_smaller_batches() -> None:
    """30 steps of 4 samples are done; the run of 40 such steps ends, with batches of 40, after one more."""
    state = trained(in_tokens(40 * 4 * SEQ), steps=30)[-1][0]
    later = in_tokens(40 * 4 * SEQ, 40, lr_schedule__warmup_steps=30, profile__steps=[30, 31])
    check_run(later, 1)
    check_length(later, state)
    with pytest.raises(ConfigError, match=r"profile\.steps=\[30,32\]: the run ends with step 31"):
        check_length(in_tokens(40 * 4 * SEQ, 40, profile__steps=[30, 32]), state)
