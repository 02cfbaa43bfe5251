"""How the next token is chosen."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from pretrain.config.commands import GenerateConfig
from pretrain.config.errors import RunError
from pretrain.config.load import load_generate_config
from pretrain.generation.sampling import choose

LOGITS = torch.log(torch.tensor([0.5, 0.1, 0.3, 0.06, 0.04]))


PLAIN = load_generate_config(["run=x", "temperature=1", "top_p=null"])


def config(**changes: Any) -> GenerateConfig:
    return replace(PLAIN, **changes)


def shares(num_draws: int = 2000, **changes: Any) -> dict[int, float]:
    generator = torch.Generator().manual_seed(1)
    drawn = Counter(choose(LOGITS, config(**changes), generator) for _ in range(num_draws))
    return {token: count / num_draws for token, count in sorted(drawn.items())}


def test_temperature_one_draws_from_the_model() -> None:
    assert shares() == pytest.approx({0: 0.5, 1: 0.1, 2: 0.3, 3: 0.06, 4: 0.04}, abs=0.03)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert shares(50, temperature=0.0) == {0: 1.0}


def test_the_lowest_temperatures_take_the_likeliest() -> None:
    assert shares(50, temperature=5e-324) == shares(50, temperature=1e-308) == {0: 1.0}


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(broken: float, temperature: float) -> None:
    with pytest.raises(RunError, match="NaN or infinite"):
        choose(torch.tensor([1.0, broken]), config(temperature=temperature), torch.Generator())


def test_low_temperature_sharpens() -> None:
    squares = {0: 0.25, 1: 0.01, 2: 0.09, 3: 0.0036, 4: 0.0016}
    total = sum(squares.values())
    found = shares(temperature=0.5)
    assert all(found.get(token, 0.0) == pytest.approx(value / total, abs=0.03) for token, value in squares.items())


@pytest.mark.parametrize(("top_k", "kept"), [(1, {0}), (2, {0, 2}), (3, {0, 1, 2}), (99, {0, 1, 2, 3, 4})])
def test_top_k_keeps_the_k_likeliest(top_k: int, kept: set[int]) -> None:
    assert set(shares(top_k=top_k)) == kept


def test_top_k_keeps_no_more_where_logits_are_equal() -> None:
    generator = torch.Generator().manual_seed(1)
    assert len({choose(torch.zeros(9), config(top_k=3), generator) for _ in range(200)}) == 3


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, {0}), (0.49, {0}), (0.6, {0, 2}), (0.85, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    assert set(shares(top_p=top_p)) == kept


def test_what_is_kept_keeps_its_proportions() -> None:
    assert shares(top_p=0.6) == pytest.approx({0: 5 / 8, 2: 3 / 8}, abs=0.03)
    assert shares(top_k=2) == pytest.approx({0: 5 / 8, 2: 3 / 8}, abs=0.03)


def test_the_same_seed_draws_the_same_tokens() -> None:
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [choose(LOGITS, config(), generator) for _ in range(30)]

    assert draw(3) == draw(3) != draw(4)
