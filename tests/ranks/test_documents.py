"""data.document_mask: in any layout, each document is computed as if the model got it alone."""

import itertools

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.schedule import document_starts, positions_in_documents
from pretrain.model.attention import attend
from tests.ranks.test_model import plain_attention
from tests.ranks.test_parity import Layout, assert_parity, plain_loss
from tests.support.models import EOD_ID, VOCAB_SIZE, batch_of, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, start

APART = "data.document_mask=true"
FULL, ATTENTION = (f"engine.recompute.granularity={granularity}" for granularity in ("full", "selective"))


def test_positions_restart_after_each_document_and_sample() -> None:
    tokens = torch.tensor([[5, 9, 5, 5, 9, 9, 5, 9], [9, 5, 5, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5, 5, 5, 5]])
    positions = [[0, 1, 0, 1, 2, 3, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert positions_in_documents(tokens, 9).tolist() == positions
    begins = [place for place, position in enumerate(itertools.chain(*positions)) if position == 0]
    assert document_starts(tokens, 9).tolist() == begins[1:]


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_equals_a_plain_softmax_over_each_document(groups: int) -> None:
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(9, 3, 4, 8, generator=generator)  # [s, b, heads, d]
    key, value = (torch.randn(9, 3, groups, 8, generator=generator) for _ in range(2))
    lengths = [[9], [1, 1, 5, 2], [4, 5]]
    starts = torch.tensor([length for sample in lengths for length in sample]).cumsum(0)[:-1]
    q, k, v = (t.permute(1, 2, 0, 3).repeat_interleave(4 // t.shape[2], 1) for t in (query, key, value))
    for number, sample in enumerate(lengths):
        documents = zip(*(t[number].split(sample, dim=1) for t in (q, k, v)), strict=True)
        expected = torch.cat([plain_attention(*parts) for parts in documents], 1)  # [heads, s, d]
        found = attend(query, key, value, starts)[:, number]
        torch.testing.assert_close(found, expected.transpose(0, 1).flatten(1), rtol=1e-5, atol=1e-6)


LAYOUTS = [
    Layout("llama", 0, overrides=(APART, ATTENTION)),
    Layout("gpt", 1, tp=2, sp=True, overrides=(APART,)),
    Layout("llama", 2, pp=2, overrides=(APART, FULL)),
    Layout("gpt", 3, pp=2, vp=2, micro_batches=2, overrides=(APART,)),
    Layout("gpt", 3, pp=4, micro_batches=2, overrides=(APART, ATTENTION)),
    Layout("llama", 3, tp=2, pp=2, dp=2, sp=True, overrides=(APART,)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_matches_training_each_document_alone(layout: Layout) -> None:
    """Llama's positions are rotary. They restart per document in the reference but not in the model: both are equal."""
    assert_parity(layout)


def validation_losses(here: Runtime, config: RunConfig) -> tuple[float, float]:
    """Losses by the engine and, on one rank, by plain torch."""
    engine, batch = start(here, config), own_batch(here, config, 0)
    total, count = engine.evaluate(batch, torch.ones(len(batch), config.model.seq_length)).tolist()
    if here.world_size > 1:
        return total / count, 0.0
    with torch.no_grad():
        return total / count, plain_loss(engine.stage, batch, config).item()


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_validation_is_of_each_document_alone(model: str) -> None:
    ((alone, expected),) = run_ranks(validation_losses, 1, run_config(model, APART, *batches(1)))
    assert alone == pytest.approx(expected, rel=1e-6)
    for found, _ in run_ranks(validation_losses, 2, run_config(model, APART, *batches(1), pp=2)):
        assert found == pytest.approx(expected, rel=1e-6)


def logits_with_one_document_changed(here: Runtime, config: RunConfig) -> list[np.ndarray]:
    engine = start(here, config)
    first = torch.from_numpy(batch_of(0, 2, run_config())[:, :-1])
    first[:, [4, 10]] = EOD_ID
    second = first.clone()
    second[:, 5:10] = (second[:, 5:10] + 1) % VOCAB_SIZE
    return [engine.logits(tokens).numpy() for tokens in (first, second, first[:, 11:])]


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_no_document_attends_to_another(model: str) -> None:
    first, second, alone = run_ranks(logits_with_one_document_changed, 1, run_config(model, APART))[0]
    assert np.array_equal(first[:, :5], second[:, :5])
    assert (first[:, 5:11] != second[:, 5:11]).any(-1).all()
    assert np.array_equal(first[:, 11:], second[:, 11:]), "not one bit of what comes after has changed"
    np.testing.assert_allclose(first[:, 11:], alone, rtol=1e-5, atol=1e-6)


def test_without_the_mask_tokens_attend_to_all_earlier_ones() -> None:
    first, second, _ = run_ranks(logits_with_one_document_changed, 1, run_config("gpt"))[0]
    assert (first[:, 5:] != second[:, 5:]).any(-1).all()
