"""engine.cross_entropy=in_place equals plain, holds one [tokens, vocabulary] matrix, never overwrites shared logits."""

import dataclasses
import functools
import itertools
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.model import cross_entropy
from pretrain.model.cross_entropy import EAGER, Passes, compiled_passes, in_place_cross_entropy
from pretrain.model.gpt import Chunk
from tests.ranks.test_parity import Layout, assert_parity
from tests.support.models import VOCAB_SIZE, batch_of, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import join, own_batch, start

IN_PLACE = "engine.cross_entropy=in_place"
PADDED = 96
HIDDEN = 8
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def head(dtype: torch.dtype, *shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs and weights of an output layer, labels, and weights of the losses, some of them 0."""
    generator = torch.Generator().manual_seed(len(shape))
    hidden = torch.randn(*shape, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(VOCAB_SIZE, shape, generator=generator)
    factors = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
    return hidden, weight, labels, factors


def plain(logits: Tensor, labels: Tensor, group: torch.distributed.ProcessGroup | None = None) -> Tensor:
    """The loss of a chunk with engine.cross_entropy=plain."""
    chunk = object.__new__(Chunk)
    torch.nn.Module.__init__(chunk)
    chunk.real_vocab_size, chunk.cross_entropy = VOCAB_SIZE, "plain"
    chunk.config = SimpleNamespace(tensor_model_parallel_size=group.size() if group else 1)
    chunk.tp_group = group or SimpleNamespace(rank=lambda: 0)
    loss = chunk.compute_language_model_loss(labels.transpose(0, 1), logits)
    return loss.transpose(0, 1)


def in_place(logits: Tensor, labels: Tensor, passes: Passes = EAGER) -> Tensor:
    return in_place_cross_entropy(logits, labels, first=0, real=VOCAB_SIZE, group=None, passes=passes)


def eager(elements: int) -> Passes:
    return dataclasses.replace(EAGER, elements=elements)


@pytest.mark.parametrize("chunk_elements", [1, 7 * PADDED + 5, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_place_losses_and_gradients_equal_plain(dtype: torch.dtype, chunk_elements: int) -> None:
    found = []
    for way in (plain, lambda logits, labels: in_place(logits, labels, eager(chunk_elements))):
        hidden, weight, labels, factors = head(dtype, 11, 3)
        loss = way(hidden @ weight.T, labels)
        (loss * factors).mean().backward()
        found.append((loss.detach(), hidden.grad, weight.grad))
    # Both compute in fp32 and round the logits' gradient once. If it is between two 16-bit numbers, the last bits of
    # fp32 decide.
    bound = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-6, atol=1e-6)
    for mine, expected in zip(found[1][1:], found[0][1:], strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, expected, rtol=bound, atol=bound * expected.abs().max().item())
    assert (found[1][2][VOCAB_SIZE:] == 0).all(), "padding has no gradient"


def losses_and_gradients(here: Runtime, config: RunConfig, dtype: torch.dtype, way: str) -> list[np.ndarray]:
    """Losses and gradients of this rank's columns. With three ranks the last one has only padding."""
    tp = join(here, config).tensor_parallel
    hidden, weight, labels, factors = head(dtype, 11, 3)
    columns = PADDED // tp.size()
    first = tp.rank() * columns
    logits = hidden @ weight[first : first + columns].T
    if way == "plain":
        loss = plain(logits, labels, tp)
    else:
        real = min(max(VOCAB_SIZE - first, 0), columns)
        passes = compiled("inductor") if way == "compiled" else eager(5 * columns)
        loss = in_place_cross_entropy(logits, labels, first=first, real=real, group=tp, passes=passes)
    (loss * factors).mean().backward()
    assert weight.grad is not None and hidden.grad is not None
    return [value.detach().float().numpy() for value in (loss, weight.grad, hidden.grad)]


@pytest.mark.parametrize(
    ("dtype", "way"),
    [
        (torch.float32, "in_place"),
        (torch.bfloat16, "in_place"),
        pytest.param(torch.float32, "compiled", marks=[needs_compiler, pytest.mark.full]),
        pytest.param(torch.bfloat16, "compiled", marks=needs_compiler),
    ],
    ids=str,
)
def test_the_vocabulary_may_be_split(dtype: torch.dtype, way: str) -> None:
    bound = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    config = run_config("gpt", tp=2)
    ways = [run_ranks(losses_and_gradients, 2, config, dtype, each) for each in ("plain", way)]
    for expected, found in zip(*ways, strict=True):
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
        for mine, other in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(mine, other, rtol=bound, atol=bound * np.abs(other).max())


def test_a_rank_with_only_padding_adds_nothing() -> None:
    logits = torch.randn(5, 8, requires_grad=True)
    loss = in_place_cross_entropy(logits * 1, torch.arange(5), first=VOCAB_SIZE, real=0, group=None, passes=EAGER)
    assert (loss == -torch.inf).all(), "the logarithm of no probability, which the other ranks add to"
    loss.sum().backward()
    assert logits.grad is not None and (logits.grad == 0).all()


def test_nan_and_overflow_reach_the_loss() -> None:
    for value in (torch.nan, torch.inf):
        logits = torch.zeros(2, PADDED)
        logits[1, 3] = value
        found = in_place(logits, torch.tensor([0, 0]))
        assert found[0].isfinite() and not found[1].isfinite()


def peak_bytes(way: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Highest sum of torch's CPU memory during forward and backward, as a multiple of the logits' bytes.

    The logits are a sum: for a matrix product some processors take work space, as much as the logits.
    """
    hidden, weight, labels, _ = head(torch.bfloat16, 1024, 1)
    rows, columns = (tensor.detach().flatten(0, -2)[:, 0].clone().requires_grad_() for tensor in (hidden, weight))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        way(rows[:, None, None] + columns, labels).sum().backward()
    results = record.profiler.kineto_results  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    return max(itertools.accumulate(nbytes for _, nbytes in changes)) / (len(rows) * PADDED * 2)


def test_in_place_loss_needs_under_a_quarter_of_plain_memory() -> None:
    """In bf16 in_place holds the logits; plain also holds fp32 logits, softmax and gradients, each twice as large."""
    least, usual = (peak_bytes(way) for way in (lambda *given: in_place(*given, eager(8 * PADDED)), plain))
    assert 1 < least < 1.2
    assert usual > 4 * least


def compiled(backend: str) -> Passes:
    return compiled_passes(functools.partial(torch.compile, backend=backend, fullgraph=True))


@dataclass(frozen=True)
class Compiled:
    errors: list[tuple[float, float]]
    """Differences of losses and logits' gradients from the passes that are not compiled, for each number of rows."""
    padding: float
    graphs: list[int]
    """Total number of graphs after each."""
    peak: float
    """See peak_bytes."""


def by_compiled_passes(here: Runtime, dtype: torch.dtype) -> Compiled:
    from torch._dynamo.utils import counters

    passes = compiled("inductor")
    errors, graphs, padding = [], [], 0.0
    for shape in ((11, 3), (4, 2), (33, 2), (11, 3)):
        found = []
        for way in (EAGER, passes):
            hidden, weight, labels, factors = head(dtype, *shape)
            logits = hidden @ weight.T
            logits.retain_grad()
            loss = in_place(logits * 1, labels, way)
            (loss * factors).sum().backward()
            found.append((loss.detach(), logits.grad))
        errors.append(
            tuple(((mine - own).abs().max() / own.abs().max()).item() for own, mine in zip(*found, strict=True))
        )
        padding = max(padding, found[1][1][..., VOCAB_SIZE:].abs().max().item())
        graphs.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    return Compiled(errors, padding, graphs, peak_bytes(lambda *given: in_place(*given, passes)))


@needs_compiler
@pytest.mark.parametrize(
    "dtype", full_except([torch.float32, torch.bfloat16, torch.float16], [torch.bfloat16]), ids=str
)
def test_compiled_passes_are_two_graphs_without_fp32_tensors(dtype: torch.dtype) -> None:
    (found,) = run_ranks(by_compiled_passes, 1, dtype, timeout=200.0)
    bound = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for of_loss, of_gradient in found.errors:
        assert of_loss < 1e-6 and of_gradient < bound
    assert found.padding == 0 and found.graphs == [2, 2, 2, 2]
    assert 1 < found.peak < 1.2


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, labels, _ = head(torch.float32, 5, 2)
    loss = in_place(hidden @ weight.T, labels).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second backward pass.*engine.cross_entropy=plain"):
        loss.backward()


@pytest.mark.parametrize("holder", ["itself", "view", "detached", "numpy", "node"])
def test_logits_with_other_references_are_not_overwritten(holder: str, caplog: pytest.LogCaptureFixture) -> None:
    cross_entropy._warn_about_copy.cache_clear()
    caplog.set_level(logging.WARNING)
    hidden, weight, labels, _ = head(torch.float32, 5, 2)
    expected = torch.autograd.grad(plain(hidden @ weight.T, labels).sum(), weight)[0]
    copy = (hidden @ weight.T).detach()
    kept: list[Tensor | np.ndarray] = []

    def loss_of() -> Tensor:
        logits = hidden @ weight.T
        loss = in_place(logits, labels).sum()
        match holder:
            case "itself":
                kept.append(logits)
            case "view":
                kept.append(logits[:, :3])
            case "detached":
                kept.append(logits.detach())
            case "numpy":
                kept.append(logits.detach().numpy())
            case "node":
                return loss + 0 * logits.logsumexp(-1).sum()  # keeps them for its own gradient
        return loss

    loss = loss_of()
    found = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    again = torch.autograd.grad(loss, weight)[0]
    assert torch.equal(found, again), "then a second pass is allowed"
    (warning,) = caplog.messages
    assert "something else still refers to the logits" in warning
    for tensor in kept:
        value = torch.as_tensor(tensor)
        assert torch.equal(value, copy[:, : value.shape[1]])


class Copies(TorchDispatchMode):
    """Counts whole copies of a step's logits."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.number = rows, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if (
            func is torch.ops.aten.clone.default
            and args[0].shape[-1] == PADDED
            and args[0].numel() == self.rows * PADDED
        ):
            self.number += 1
        return func(*args, **(kwargs or {}))


def copies_in_a_step(here: Runtime, config: RunConfig) -> int:
    engine = start(here, config)
    with Copies(config.train.micro_batch_size * config.model.seq_length) as copies:
        engine.train_step(own_batch(here, config, 0), 1e-3)
    return copies.number


@pytest.mark.parametrize("stage", range(4))
def test_the_engine_holds_no_logits(stage: int) -> None:
    assert run_ranks(copies_in_a_step, 1, run_config("gpt", IN_PLACE, zero_stage=stage)) == [0]


FULL = "engine.recompute.granularity=full"
LAYOUTS = [
    Layout("gpt", 0, overrides=(IN_PLACE, FULL)),
    Layout("llama_tied", 3, tp=2, pp=2, sp=True, overrides=(IN_PLACE,)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equals_one_process_of_plain_torch(layout: Layout) -> None:
    assert_parity(layout)


def logits_around_a_step(here: Runtime, config: RunConfig) -> list[np.ndarray]:
    """Logits, and validation, before a step and the same tensors after it."""
    engine, tokens = start(here, config), torch.from_numpy(batch_of(7, 2, config))
    logits = engine.logits(tokens[:, :-1])
    totals = engine.evaluate(tokens, torch.ones(2, config.model.seq_length))
    before = [logits.numpy().copy(), totals.numpy().copy()]
    engine.train_step(own_batch(here, config, 0), 1e-3)
    return [*before, logits.numpy(), totals.numpy()]


def test_in_place_logits_and_validation_equal_plain() -> None:
    expected, found = (run_ranks(logits_around_a_step, 1, run_config("gpt", *way))[0] for way in ((), (IN_PLACE,)))
    for values, others in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-6)
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])
