"""Scores of continuations are those of the whole logits, at every layout and batch size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.evaluation.requests import Request
from pretrain.evaluation.scoring import Scored, Scoring, score, scoring_together
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.randomised import randomise
from tests.support.ranks import run_ranks
from tests.support.training import start

MODEL = ("llama", "model.num_layers=4", "model.num_heads=4", "model.num_query_groups=2")
REQUESTS = [
    Request(tuple(range(5, 5 + context)), tuple(range(40, 40 + length)))
    for context, length in ((1, 1), (3, 2), (9, 7), (2, 9), (5, 1), (16, 1), (30, 3), (1, 16), (4, 4))
]
QUESTIONS = [
    Request(tuple(range(first, first + context)), tuple(range(60, 60 + length)))
    for first, context in ((5, 16), (7, 20), (5, 24), (20, 16))
    for length in (1, 5, 2, 8)
]
"""Contexts of several continuations, which are read once; 40 tokens are seen at once."""


def scored(here: Any, config: RunConfig, batch_size: int, requests: list[Request]) -> list[Scored]:
    engine = start(here, config)
    randomise(engine)
    how = scoring_together(engine.groups, seq_length=config.model.seq_length, batch_size=batch_size)
    found = score(engine, requests, how)
    assert found is not None
    return found


def by_logits(here: Any, config: RunConfig, requests: list[Request]) -> list[Scored]:
    engine = start(here, config)
    randomise(engine)
    results = []
    for request in requests:
        text = [*request.context, *request.continuation]
        text = text[-(config.model.seq_length + 1) :]
        logits = engine.logits(torch.tensor([text[:-1]]))[0][-len(request.continuation) :].double()
        targets = torch.tensor(request.continuation)
        values = logits.log_softmax(-1).gather(1, targets[:, None])
        results.append(Scored(float(values.sum()), bool((logits.argmax(-1) == targets).all())))
    return results


@pytest.fixture(scope="module")
def expected() -> list[Scored]:
    return run_ranks(by_logits, 1, run_config(*MODEL), REQUESTS)[0]


LAYOUTS = [
    (1, 1, {}, 1),
    (1, 1, {}, 4),
    (4, 2, {"tp": 2, "sp": True, "zero_stage": 3}, 3),
    (2, 1, {"pp": 2, "vp": 2}, 4),
    (2, 1, {"cp": 2}, 4),
    pytest.param(8, 2, {"tp": 2, "pp": 2, "zero_stage": 1}, 2, marks=pytest.mark.full),
    pytest.param(3, 3, {"zero_stage": 3}, 2, marks=pytest.mark.full),
]


@pytest.mark.parametrize(("world_size", "dp", "layout", "batch_size"), LAYOUTS)
def test_scores_do_not_depend_on_layout_or_batch(world_size, dp, layout, batch_size, expected):
    config = run_config(*MODEL, *batches(dp), **layout)
    for found in run_ranks(scored, world_size, config, batch_size, REQUESTS):
        assert_close(found, expected)


@pytest.mark.parametrize(("world_size", "dp", "layout", "batch_size"), LAYOUTS[1:])
def test_a_shared_context_is_read_once_with_equal_scores(world_size, dp, layout, batch_size, shared):
    config = run_config(*MODEL, "model.seq_length=40", *batches(dp), **layout)
    for found, calls in run_ranks(counted, world_size, config, batch_size, QUESTIONS):
        assert_close(found, shared)
        assert calls["score"] == 0 and calls["extend"] >= 1


@pytest.fixture(scope="module")
def shared() -> list[Scored]:
    return run_ranks(by_logits, 1, run_config(*MODEL, "model.seq_length=40"), QUESTIONS)[0]


def counted(
    here: Any, config: RunConfig, batch_size: int, requests: list[Request]
) -> tuple[list[Scored], dict[str, int]]:
    engine: Any = start(here, config)
    randomise(engine)
    calls = {"score": 0, "extend": 0}
    for name in calls:
        setattr(engine, name, counting(getattr(engine, name), calls, name))
    how = scoring_together(engine.groups, seq_length=config.model.seq_length, batch_size=batch_size)
    found = score(engine, requests, how)
    assert found is not None
    return found, calls


def counting(call: Callable[..., Any], calls: dict[str, int], name: str) -> Callable[..., Any]:
    def counted_call(*args: Any) -> Any:
        calls[name] += 1
        return call(*args)

    return counted_call


def assert_close(found: list[Scored], expected: list[Scored]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert one.is_greedy == other.is_greedy


def likeliest(here: Any, config: RunConfig) -> tuple[int, list[Scored]]:
    engine = start(here, config)
    randomise(engine)
    best = int(engine.logits(torch.tensor([[5, 6]]))[0, -1].argmax())
    found = score(engine, [Request((5, 6), (token,)) for token in range(VOCAB_SIZE)], Scoring(16, 2))
    assert found is not None
    return best, found


def test_only_the_likeliest_token_is_greedy():
    best, found = run_ranks(likeliest, 1, run_config(*MODEL))[0]
    assert [token for token, each in enumerate(found) if each.is_greedy] == [best]
    total = torch.tensor([each.log_probability for each in found]).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-5)


def test_a_request_keeps_the_end_of_its_context():
    assert Request((1, 2, 3, 4), (5, 6)).within(4) == Request((2, 3, 4), (5, 6))
    with pytest.raises(ValueError, match="the model sees 1"):
        Request((1,), (5, 6)).within(1)
