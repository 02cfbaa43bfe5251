"""The learning rate over a run."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.optim import LrScheduleConfig
from pretrain.optim.learning_rate import lr_at

NAMES = ["cosine", "linear", "constant", "wsd"]
FALLING = ["cosine", "linear", "wsd"]
PEAK = 3e-4


def schedule(**changes: Any) -> LrScheduleConfig:
    values = {"name": "cosine", "warmup_steps": 0, "warmup_tokens": None, "final_ratio": 0.1, "decay_fraction": 0.2}
    return LrScheduleConfig(**{**values, **changes})


def curve(config: LrScheduleConfig, total_steps: int, unit: float = 1) -> list[float]:
    """Learning rates of steps 1 to `total_steps`, each of size `unit`."""
    warmup = (config.warmup_steps or 0) * unit
    return [
        lr_at(step * unit, peak=PEAK, schedule=config, warmup=warmup, end=total_steps * unit)
        for step in range(1, total_steps + 1)
    ]


@st.composite
def runs(draw: st.DrawFn, names: list[str] = NAMES) -> tuple[LrScheduleConfig, int]:
    total = draw(st.integers(1, 200))
    return schedule(
        name=draw(st.sampled_from(names)),
        warmup_steps=draw(st.integers(0, total)),
        final_ratio=draw(st.floats(0, 1)),
        decay_fraction=draw(st.floats(0, 1)),
    ), total


@given(runs())
def test_warmup_rises_linearly_to_the_peak_at_its_last_step(run: tuple[LrScheduleConfig, int]) -> None:
    config, total = run
    assert config.warmup_steps is not None
    rates = curve(config, total)[: config.warmup_steps]
    assert rates == pytest.approx([PEAK * (n + 1) / len(rates) for n in range(len(rates))])


@given(runs())
def test_it_never_rises_after_warmup_nor_leaves_its_bounds(run: tuple[LrScheduleConfig, int]) -> None:
    config, total = run
    assert config.warmup_steps is not None
    rates = curve(config, total)[max(0, config.warmup_steps - 1) :]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates))
    assert all(PEAK * config.final_ratio * (1 - 1e-12) <= rate <= PEAK * (1 + 1e-12) for rate in rates)


@given(runs(FALLING))
def test_it_ends_at_the_final_ratio(run: tuple[LrScheduleConfig, int]) -> None:
    config, total = run
    if config.warmup_steps == total or (config.name == "wsd" and round(config.decay_fraction * total) == 0):
        return  # no steps are left for the decay
    assert curve(config, total)[-1] == pytest.approx(PEAK * config.final_ratio)


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_no_jumps(name: str) -> None:
    rates = [0.0, *curve(schedule(name=name, warmup_steps=100), 1000)]
    # The steepest part is the warmup, or a decay over the last fifth: at most a hundredth of the peak per step.
    assert max(abs(b - a) for a, b in itertools.pairwise(rates)) <= PEAK / 100 * (1 + 1e-9)


def test_constant_stays_at_its_peak() -> None:
    assert set(curve(schedule(name="constant", warmup_steps=3), 50)[2:]) == {PEAK}


def test_cosine_is_half_way_in_the_middle() -> None:
    rates = curve(schedule(name="cosine", warmup_steps=20), 120)
    assert rates[69] == pytest.approx(PEAK * (1 + 0.1) / 2)
    quarter = 0.5 * (1 + math.cos(math.pi / 4))
    assert rates[44] == pytest.approx(PEAK * (0.1 + 0.9 * quarter))


def test_linear_decays_linearly() -> None:
    rates = curve(schedule(name="linear", warmup_steps=20, final_ratio=0.0), 120)
    assert rates[19:] == pytest.approx([PEAK * (1 - n / 100) for n in range(101)])


def test_wsd_is_flat_until_its_decay() -> None:
    rates = curve(schedule(name="wsd", warmup_steps=10, decay_fraction=0.25), 200)
    assert set(rates[9:150]) == {PEAK}
    assert rates[149:] == pytest.approx([PEAK * (1 - 0.9 * n / 50) for n in range(51)])


def test_the_unit_does_not_matter() -> None:
    for name in NAMES:
        config = schedule(name=name, warmup_steps=7)
        assert curve(config, 90, unit=384) == pytest.approx(curve(config, 90), rel=1e-12)


def test_steps_beyond_the_end_stay_at_the_final_rate() -> None:
    beyond = lr_at(999, peak=PEAK, schedule=schedule(), warmup=0, end=100)
    assert beyond == pytest.approx(PEAK * 0.1)
