"""engine.cross_entropy=chunked equals plain, in any layout, and never holds more logits than one block."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.head_blocks import BLOCK_BYTES, MULTIPLE, block_columns
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.model import chunked_cross_entropy as chunked
from pretrain.model.chunked_cross_entropy import Columns, chunked_cross_entropy
from pretrain.model.cross_entropy import EAGER
from pretrain.pretend.machine import without_values
from tests.ranks.test_cross_entropy import HIDDEN, PADDED, head, logits_around_a_step, plain
from tests.ranks.test_parity import Layout, assert_parity
from tests.support.models import VOCAB_SIZE, run_config
from tests.support.ranks import run_ranks
from tests.support.training import join

CHUNKED = "engine.cross_entropy=chunked"
ALONE = Columns(first=0, real=VOCAB_SIZE, group=None, cut_sequence=False)


def in_blocks_of(columns: int) -> Callable[..., int]:
    """In place of the sizes that a GPU wants."""
    return lambda tokens, available, width: min(columns, available)


@pytest.fixture(params=[1, 7, 40, PADDED])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "block_columns", in_blocks_of(request.param))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_losses_and_gradients_equal_plain(dtype: torch.dtype) -> None:
    hidden, weight, labels, factors = head(dtype, 11, 3)
    (plain(hidden @ weight.T, labels) * factors).mean().backward()
    expected = (plain(hidden @ weight.T, labels).detach(), hidden.grad, weight.grad)
    hidden.grad = weight.grad = None
    loss = chunked_cross_entropy(hidden, weight, labels, ALONE, EAGER)
    (loss * factors).mean().backward()
    bound = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-6, atol=1e-6)
    for mine, value in ((hidden.grad, expected[1]), (weight.grad, expected[2])):
        assert mine is not None and value is not None and mine.dtype == dtype
        torch.testing.assert_close(mine, value, rtol=bound, atol=bound * value.abs().max().item())
    assert weight.grad is not None and (weight.grad[VOCAB_SIZE:] == 0).all(), "padding has no gradient"


@pytest.mark.usefixtures("blocks")
def test_gradients_equal_finite_differences() -> None:
    hidden, weight, labels, factors = head(torch.float64, 3, 1)
    weighted = factors.double() + 0.5

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, weight, labels, ALONE, EAGER) * weighted

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_nan_and_overflow_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "block_columns", in_blocks_of(7))
    for value in (torch.nan, torch.inf):
        hidden, weight = torch.ones(2, 1, HIDDEN), torch.zeros(PADDED, HIDDEN)
        hidden[1] = value
        loss = chunked_cross_entropy(hidden, weight + 1, torch.zeros(2, 1, dtype=torch.long), ALONE, EAGER)
        assert loss[0].isfinite() and not loss[1].isfinite()


def split(here: Runtime, config: RunConfig, dtype: torch.dtype, way: str) -> list[np.ndarray]:
    """Loss, and gradients of this rank's columns and hidden states. With three ranks the last one has only padding."""
    tp = join(here, config).tensor_parallel
    chunked.block_columns = in_blocks_of(7)
    hidden, weight, labels, factors = head(dtype, 12, 2)
    if way == "plain":
        own, loss = hidden, plain(hidden @ weight.T, labels)
    else:
        columns, cut = PADDED // tp.size(), way == "cut"
        first, part = tp.rank() * columns, len(hidden) // tp.size()
        own = hidden[tp.rank() * part :][:part].detach().requires_grad_() if cut else hidden
        real = min(max(VOCAB_SIZE - first, 0), columns)
        of_rank = Columns(first, real, tp, cut_sequence=cut)
        loss = chunked_cross_entropy(own, weight[first : first + columns], labels, of_rank, EAGER)
    (loss * factors).mean().backward()
    assert weight.grad is not None and own.grad is not None
    return [value.detach().float().numpy() for value in (loss, weight.grad, own.grad)]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "way"),
    [(torch.float32, "whole"), (torch.float32, "cut"), (torch.bfloat16, "cut")],
    ids=str,
)
def test_the_vocabulary_may_be_split(ranks: int, dtype: torch.dtype, way: str) -> None:
    """`cut`: the sequence too."""
    bound = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    config = run_config("gpt", "model.num_heads=6", "model.hidden_size=36", "model.ffn_hidden_size=66", tp=ranks)
    expected = run_ranks(split, 1, run_config("gpt"), dtype, "plain")[0]
    found = run_ranks(split, ranks, config, dtype, way)
    of_weight = np.sum([rank[1] for rank in found], 0)
    of_hidden = np.concatenate([rank[2] for rank in found]) if way == "cut" else found[0][2]
    np.testing.assert_allclose(found[-1][0], expected[0], rtol=1e-6, atol=1e-6)
    for mine, value in ((of_weight, expected[1]), (of_hidden, expected[2])):
        np.testing.assert_allclose(mine, value, rtol=bound, atol=bound * np.abs(value).max())


FULL, DOCUMENTS = "engine.recompute.granularity=full", "data.document_mask=true"
LAYOUTS = [
    Layout("llama", 0, overrides=(CHUNKED, FULL, DOCUMENTS)),
    Layout("llama_tied", 3, tp=2, pp=2, sp=True, overrides=(CHUNKED,)),
    pytest.param(Layout("llama_tied", 3, dp=2, overrides=(CHUNKED,)), marks=pytest.mark.full),
    pytest.param(Layout("gpt", 2, tp=2, dp=2, overrides=(CHUNKED,)), marks=pytest.mark.full),
    pytest.param(Layout("llama", 3, pp=2, vp=2, micro_batches=4, overrides=(CHUNKED,)), marks=pytest.mark.full),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equals_one_process_of_plain_torch(layout: Layout) -> None:
    assert_parity(layout)


def test_logits_and_validation_equal_plain() -> None:
    expected, found = (run_ranks(logits_around_a_step, 1, run_config("gpt", *way))[0] for way in ((), (CHUNKED,)))
    for values, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-6)


def peak(here: Runtime, shape: tuple[int, int, int], way: str) -> int:
    """The most bytes on the pretend device during forward and backward, in bf16, beside inputs and gradients."""
    from pretrain.pretend.device import device, ledger

    tokens, columns, width = shape
    hidden, weight = (
        torch.empty(size, dtype=torch.bfloat16, device=device()).requires_grad_()
        for size in ((tokens, 1, width), (columns, width))
    )
    labels = torch.empty(tokens, 1, dtype=torch.long, device=device())
    ledger.begin()
    before = ledger.now
    if way == "plain":
        loss = torch.nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1).float(), labels.flatten())
    else:
        loss = chunked_cross_entropy(hidden, weight, labels, Columns(0, columns, None, False), EAGER).mean()
    loss.backward()
    return ledger.peak - before - 2 * width * (tokens + columns)


def test_no_more_than_one_block_of_logits_is_held() -> None:
    tokens, columns, width = shape = (8192, 65536, 128)
    least, usual = (run_ranks(peak, 1, shape, way, around=without_values)[0] for way in ("chunked", "plain"))
    logits, work = 2 * tokens * columns, 4 * EAGER.elements
    of_hidden = (4 + 2) * tokens * width
    assert usual >= 5 * logits
    assert least <= BLOCK_BYTES + 3 * work + of_hidden + 64 * tokens < logits


@pytest.mark.parametrize("tokens", [1, 2048, 8192, 131072, 10**7])
@pytest.mark.parametrize("columns", [1, 91, 16032, 128256])
def test_blocks_are_even_and_bounded(tokens: int, columns: int) -> None:
    step = block_columns(tokens, columns, 2)
    number = -(-columns // step)
    assert 1 <= step <= columns and (step % MULTIPLE == 0 or step == columns)
    assert step <= max(BLOCK_BYTES // (2 * tokens), 2 * MULTIPLE) + MULTIPLE
    assert (number - 1) * step < columns <= number * step
