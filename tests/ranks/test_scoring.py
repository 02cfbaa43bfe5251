"""Scores of continuations are those of the whole logits, at every layout and batch size."""

from typing import Any

import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.evaluation.scoring import Request, Scored, Scoring, score, scoring_together
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.randomised import randomise
from tests.support.ranks import run_ranks
from tests.support.training import start

MODEL = ("llama", "model.num_layers=4", "model.num_heads=4", "model.num_query_groups=2")
REQUESTS = [
    Request(tuple(range(5, 5 + context)), tuple(range(40, 40 + length)))
    for context, length in ((1, 1), (3, 2), (9, 7), (2, 9), (5, 1), (16, 1), (30, 3), (1, 16), (4, 4))
]


def scored(here: Any, config: RunConfig, batch_size: int) -> list[Scored]:
    engine = start(here, config)
    randomise(engine)
    how = scoring_together(engine.groups, seq_length=config.model.seq_length, batch_size=batch_size)
    found = score(engine, REQUESTS, how)
    assert found is not None
    return found


def by_logits(here: Any, config: RunConfig) -> list[Scored]:
    engine = start(here, config)
    randomise(engine)
    results = []
    for request in REQUESTS:
        text = [*request.context, *request.continuation]
        text = text[-(config.model.seq_length + 1) :]
        logits = engine.logits(torch.tensor([text[:-1]]))[0][-len(request.continuation) :].double()
        targets = torch.tensor(request.continuation)
        values = logits.log_softmax(-1).gather(1, targets[:, None])
        results.append(Scored(float(values.sum()), bool((logits.argmax(-1) == targets).all())))
    return results


@pytest.fixture(scope="module")
def expected() -> list[Scored]:
    return run_ranks(by_logits, 1, run_config(*MODEL))[0]


@pytest.mark.parametrize(
    ("world_size", "dp", "layout", "batch_size"),
    [
        (1, 1, {}, 1),
        (1, 1, {}, 4),
        (4, 2, {"tp": 2, "sp": True, "zero_stage": 3}, 3),
        (2, 1, {"pp": 2, "vp": 2}, 4),
        pytest.param(8, 2, {"tp": 2, "pp": 2, "zero_stage": 1}, 2, marks=pytest.mark.full),
        pytest.param(3, 3, {"zero_stage": 3}, 2, marks=pytest.mark.full),
    ],
)
def test_scores_do_not_depend_on_layout_or_batch(world_size, dp, layout, batch_size, expected):
    config = run_config(*MODEL, *batches(dp), **layout)
    for found in run_ranks(scored, world_size, config, batch_size):
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
