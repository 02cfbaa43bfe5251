"""Experts compute what a loop over the tokens computes, and ranks hold the parts that they should."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from pretrain.config.model import ExpertsConfig
from pretrain.model.expert_products import choose, stacked_product, weighted_outputs
from pretrain.model.expert_split import ExpertSplit

TOKENS, HIDDEN, COUNT, WIDTH = 13, 8, 5, 12
CONFIG = ExpertsConfig(count=COUNT, topk=2)


@pytest.fixture
def weights():
    torch.manual_seed(0)
    shapes = {"tokens": (TOKENS, HIDDEN), "router": (COUNT, HIDDEN), "bias": (COUNT,)}
    shapes |= {"inner": (COUNT, WIDTH, HIDDEN), "outer": (COUNT, HIDDEN, WIDTH)}
    return {name: torch.randn(shape, requires_grad=True) for name, shape in shapes.items()}


def outputs(weights, config=CONFIG, own=range(COUNT)):
    def run(inputs, ends):
        part = slice(own.start, own.stop)
        return stacked_product(
            stacked_product(inputs, weights["inner"][part], ends).relu(), weights["outer"][part], ends
        )

    choices = choose(weights["tokens"], weights["router"], weights["bias"], config)
    return weighted_outputs(run, weights["tokens"], choices.experts, choices.weights, own, COUNT)


def by_token(weights, config):
    results = []
    for token in weights["tokens"]:
        logits = weights["router"] @ token
        scores = logits.softmax(0) if config.score == "softmax" else logits.sigmoid()
        chosen = (scores + weights["bias"]).topk(config.topk).indices.tolist()
        total = sum(scores[i] for i in chosen) if config.normalize else 1.0
        each = [scores[i] / total * (weights["outer"][i] @ (weights["inner"][i] @ token).relu()) for i in chosen]
        results.append(config.scale * sum(each))
    return torch.stack(results)


@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, topk=1, normalize=False), replace(CONFIG, score="sigmoid", scale=2.5, topk=3)],
    ids=["softmax", "not normalized", "sigmoid"],
)
def test_outputs_and_gradients_equal_a_loop_over_tokens(weights, config):
    found, expected = outputs(weights, config), by_token(weights, config)
    torch.testing.assert_close(found, expected)
    names = [name for name in weights if name != "bias"]
    direction = torch.randn_like(found)
    one, other = (
        torch.autograd.grad(result, [weights[name] for name in names], direction) for result in (found, expected)
    )
    torch.testing.assert_close(one, other)


def test_parts_of_the_experts_sum_to_the_whole(weights):
    torch.testing.assert_close(outputs(weights, own=range(2)) + outputs(weights, own=range(2, COUNT)), outputs(weights))


def test_an_expert_without_tokens_gets_a_gradient_of_zero(weights):
    with torch.no_grad():
        weights["bias"][3] = -1e3
    outputs(weights).sum().backward()
    assert weights["inner"].grad[3].eq(0).all() and weights["inner"].grad.ne(0).any()


def test_the_bias_changes_the_choice_alone(weights):
    bias = torch.zeros(COUNT)
    bias[2] = 100.0
    choices = choose(weights["tokens"], weights["router"], bias, replace(CONFIG, normalize=False))
    scores = functional.linear(weights["tokens"], weights["router"]).softmax(-1)
    assert (choices.experts == 2).any(1).all()
    torch.testing.assert_close(choices.weights, scores.gather(-1, choices.experts))


@pytest.mark.parametrize(("dim", "matrices"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_the_parts_of_all_ranks_tile_the_whole(dim, matrices, ep, etp):
    whole = (6, 8, 4)
    own = [whole[0] // ep, whole[1], whole[2]]
    own[dim] //= etp
    values, seen = torch.arange(6 * 8 * 4), torch.zeros(6 * 8 * 4, dtype=torch.int64)
    logical = values.view(whole)
    if matrices == 2:
        logical = logical.view(6, 2, 4, 4).transpose(0, 1)  # matrix, expert, row, column
    for ep_rank in range(ep):
        for etp_rank in range(etp):
            split = ExpertSplit(ep, ep_rank, etp, etp_rank, dim, matrices)
            assert split.whole(tuple(own)) == whole
            rows = split.rows(tuple(own))
            starts = rows.first + rows.stride * torch.arange(rows.count)
            elements = values[(starts[:, None] + torch.arange(rows.length)).flatten()]
            seen[elements] += 1
            for matrix, origin, shape, offset in split.boxes(tuple(own)):
                box = logical[matrix] if matrices == 2 else logical
                part = box[tuple(slice(first, first + size) for first, size in zip(origin, shape, strict=True))]
                assert torch.equal(elements[offset : offset + part.numel()].view(shape), part)
    assert seen.eq(1).all()
