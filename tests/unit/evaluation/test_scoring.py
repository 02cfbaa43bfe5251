"""How requests are put to an engine: batches, equal requests, shares of ranks, stopping, and scores that fail."""

import math
from typing import Any

import pytest
import torch

from pretrain.config.errors import RunError
from pretrain.evaluation.requests import Asked, Request
from pretrain.evaluation.scoring import Scoring, score
from pretrain.evaluation.task_scorer import TaskScorer


class Sums:
    """An engine in whose scores a token has the log-probability minus its ID."""

    def __init__(self, broken: int | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.rows: list[list[int]] = []
        self._broken = broken

    def score(self, tokens: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(tokens.shape))
        self.rows += tokens.tolist()
        values = -tokens[:, 1:].float()
        if self._broken is not None:
            values[tokens[:, 1:] == self._broken] = math.nan
        return torch.stack((values, (tokens[:, 1:] % 2).float()))


def done(requests: list[Request], **how: Any) -> tuple[Sums, list[tuple[float, bool]]]:
    engine: Any = Sums()
    found = score(engine, requests, Scoring(**{"seq_length": 16, "batch_size": 2, **how}))
    assert found is not None
    return engine, [(each.log_probability, each.is_greedy) for each in found]


def test_results_have_the_order_of_the_requests():
    requests = [Request((1,), (3, 5)), Request((1, 2, 3), (4,)), Request((9,), (7, 7, 7)), Request((9,), (7, 8))]
    _, found = done(requests)
    assert found == [(-8.0, True), (-4.0, False), (-21.0, True), (-15.0, False)]


def test_equal_requests_are_scored_once():
    engine, found = done([Request((1,), (3,), 5), Request((2,), (3,)), Request((1,), (3,), 9)])
    assert len(engine.rows) == 2
    assert found == [(-3.0, True)] * 3


def test_short_requests_share_a_batch():
    engine, _ = done([Request((i,), (3,)) for i in range(40)])
    assert engine.shapes == [(32, 2), (8, 2)]  # as many tokens as two texts of 16


def test_one_shape_fills_every_batch():
    engine, found = done([Request((1,), (i,)) for i in range(5)], one_shape=True)
    assert set(engine.shapes) == {(2, 17)}
    assert [value for value, _ in found] == [0, -1, -2, -3, -4]


def test_ranks_share_the_batches_in_equal_numbers():
    requests = [Request((*range(13), 20 + i), (i,)) for i in range(5)]
    parts = [done(requests, rank=rank, size=2) for rank in (0, 1)]
    assert [len(engine.shapes) for engine, _ in parts] == [2, 2]
    both = [one + other for (one, _), (other, _) in zip(parts[0][1], parts[1][1], strict=True)]
    assert both == [0, -1, -2, -3, -4]


def test_a_request_to_stop_ends_scoring():
    engine: Any = Sums()
    requests = [Request(tuple(range(14)), (i,)) for i in range(5)]
    answers = iter([False, True, True])
    assert score(engine, requests, Scoring(16, 2), lambda: lambda: next(answers)) is None
    assert len(engine.shapes) == 2


ASKED = Asked("t", (Request((1,), (3,), 1), Request((1,), (5,), 1)), (1, 1), None)


def test_a_score_that_is_not_finite_is_counted_and_named(caplog):
    engine: Any = Sums(broken=5)
    scorer = TaskScorer([ASKED], Scoring(16, 2))
    values = scorer.values(engine, lambda: lambda: False)
    assert values is not None
    assert values["task/t/unscored"] == 1
    assert "task/t/bits_per_byte" not in values
    assert "task t: 1 of 2 scores are NaN or infinite" in caplog.text
    with pytest.raises(RunError, match="t: 1 of 2 scores are NaN or infinite"):
        scorer.figures(engine, ASKED)


def test_records_have_standard_errors():
    engine: Any = Sums()
    values = TaskScorer([ASKED], Scoring(16, 2)).values(engine, lambda: lambda: False)
    assert values is not None
    assert values["task/t/bits_per_byte"] == pytest.approx(4 / math.log(2))
    assert values["task/t/bits_per_byte_error"] == pytest.approx(1 / math.log(2))
