"""Samples that ranks share: the parts of all ranks together are the attention of whole samples."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.model.attention import ANY, attend
from pretrain.model.context import Context, attend_parts
from tests.support.models import batch_of, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import start

LENGTH = 24
STARTS = {
    "no documents": None,
    "at borders of parts": [6, 12, 18, 24, 36],
    "across borders": [5, 7, 13, 17, 24, 25, 30, 47],
    "over several parts": [1, 23, 24, 45],
    "of one token": list(range(1, 2 * LENGTH)),
    "whole samples": [24],
}


def heads(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(LENGTH, 2, count, 8, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", STARTS)
def test_parts_of_all_ranks_are_the_whole(name: str, size: int, groups: int) -> None:
    starts = None if STARTS[name] is None else torch.tensor(STARTS[name])
    query, key, value = heads(1, 4), heads(2, groups), heads(3, groups)
    expected = attend(query, key, value, starts)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(size):
        context = Context(rank, size)
        found = attend_parts(context.own(query, 0), key, value, starts, context.parts, 0.0, ANY)
        torch.testing.assert_close(found, context.own(expected, 0), rtol=1e-12, atol=1e-12)
        total = total + (found * context.own(weights, 0)).sum()
    for one, other in zip(torch.autograd.grad(total, (query, key, value)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 4, 7, 23, 24])
@pytest.mark.parametrize("name", STARTS)
def test_windows_are_those_of_a_mask(name: str, window: int) -> None:
    query, key, value = heads(1, 4), heads(2, 2), heads(3, 2)
    borders = [0, *(STARTS[name] or []), 2 * LENGTH]
    documents = torch.tensor([sum(border <= place for border in borders[1:-1]) for place in range(2 * LENGTH)])
    places = torch.arange(LENGTH)
    for sample in range(2):
        own = documents.view(2, LENGTH)[sample]
        seen = (own[:, None] == own) & (places <= places[:, None]) & (places > places[:, None] - window)
        first, second, third = (tensor[:, sample].transpose(0, 1) for tensor in (query, key, value))
        second, third = (tensor.repeat_interleave(2, 0) for tensor in (second, third))
        scores = (first @ second.transpose(1, 2) / 8**0.5).masked_fill(~seen, -torch.inf)
        expected = (scores.softmax(-1) @ third).transpose(0, 1).flatten(1)
        for rank in range(2):
            context = Context(rank, 2)
            starts = None if STARTS[name] is None else torch.tensor(STARTS[name])
            own_query = context.own(query, 0)
            found = attend_parts(own_query, key, value, starts, context.parts, 0.0, ANY, window=window)
            torch.testing.assert_close(found[:, sample], context.own(expected, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_parts_are_put_back_in_order(size: int) -> None:
    whole = torch.arange(12 * size)
    joined = torch.cat([Context(rank, size).own(whole, 0) for rank in range(size)])
    assert torch.equal(Context(0, size).in_order(joined), whole)
    assert torch.equal(Context(0, size).by_rank(whole), joined)


def scores(here: Any, config: RunConfig) -> np.ndarray:
    return start(here, config).score(torch.from_numpy(batch_of(3, 2, config)[:, :11])).cpu().numpy()


def test_scores_are_those_of_one_process() -> None:
    (expected,) = run_ranks(scores, 1, run_config("llama", *batches(1), "data.document_mask=true"))
    shared = run_config("llama", *batches(1), "data.document_mask=true", tp=2, cp=2, sp=True)
    for found in run_ranks(scores, 4, shared):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
