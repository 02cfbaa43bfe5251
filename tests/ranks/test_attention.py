"""Each attention kernel computes attention, and the chosen kernel is the one that runs."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.config.attention_kernels import AttentionRequest
from pretrain.distributed.runtime import Runtime
from pretrain.model.attention import attend, chosen_kernels
from tests.ranks.test_parity import Layout, assert_parity
from tests.support.models import run_config
from tests.support.ranks import RanksFailed, run_ranks
from tests.support.training import start

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
STARTS = torch.tensor([3, 4, 9, 14])


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def by(kernel: str, dtype: torch.dtype, groups: int, starts: Tensor | None) -> tuple[list[Tensor], bool]:
    """Context and gradients in fp32; whether the flash kernel computed them."""
    generator = torch.Generator().manual_seed(groups)
    inputs = [
        torch.randn(9, 2, heads, 8, generator=generator).to(dtype).requires_grad_() for heads in (4, groups, groups)
    ]
    request = AttentionRequest(
        "cpu", "fp32", head_width=8, dropout=0.0, documents=starts is not None, grouped=groups < 4
    )
    with Operations() as ran:
        context = attend(*inputs, starts, kernels=chosen_kernels(kernel, request))  # type: ignore[arg-type]
        context.square().sum().backward()
    flash = FLASH in ran.names
    assert flash == (f"{FLASH}_backward" in ran.names)
    return [value.float() for value in (context.detach(), *(given.grad for given in inputs))], flash  # type: ignore[union-attr]


@pytest.mark.parametrize("starts", [None, STARTS], ids=["whole", "documents"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flash_and_math_agree(dtype: torch.dtype, groups: int, starts: Tensor | None) -> None:
    (expected, plain), (found, flash), (_, auto) = (
        by(kernel, dtype, groups, starts) for kernel in ("math", "flash", "auto")
    )
    assert (plain, flash, auto) == (False, True, True)
    # In 16 bits one kernel rounds the scores and the other does not.
    bound = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.1}
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, **bound)


class Made(TorchDispatchMode):
    """Counts the bytes of new tensors, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        results = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in tree_leaves(results) if isinstance(t, Tensor))
        return results


def made_in_backward(num_documents: int) -> int:
    query, key, value = (torch.randn(64, 2, 2, 8, requires_grad=True) for _ in range(3))
    starts = torch.arange(0, 128, 128 // num_documents)[1:]
    total = attend(query, key, value, starts).sum()
    with Made() as made:
        total.backward()
    return made.bytes


def test_backward_memory_is_independent_of_document_count() -> None:
    """No tensor of the size of all tokens is created per document."""
    few, many = made_in_backward(2), made_in_backward(64)
    assert few > 3 * 128 * 2 * 8 * 4, "three gradients at least"
    assert many < 1.2 * few


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_is_bit_equal_to_each_document_alone(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    found = []
    given = [torch.randn(9, 2, heads, 8, generator=generator).to(dtype) for heads in (4, 2, 2)]
    for together in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in given]
        if together:
            context = attend(*inputs, STARTS)  # type: ignore[arg-type]
        else:
            rows = [tensor.transpose(0, 1).flatten(0, 1)[:, None] for tensor in inputs]  # [b * s, 1, heads, d]
            places = pairwise([0, *STARTS.tolist(), 18])
            context = torch.cat([attend(*(row[a:b] for row in rows), None) for a, b in places])  # type: ignore[arg-type]
            context = context.unflatten(0, (2, 9))[:, :, 0].transpose(0, 1)
        context.square().sum().backward()
        found.append([context.detach(), *(tensor.grad for tensor in inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_training_with_each_kernel_equals_plain_torch(kernel: str) -> None:
    assert_parity(
        Layout("llama", 3, overrides=(f"engine.attention={kernel}", "engine.recompute.granularity=selective"))
    )


def test_an_unsupported_kernel_is_refused_on_the_device() -> None:
    with pytest.raises(
        RanksFailed, match=r"ConfigError: engine.attention=cudnn: needs a GPU\n  hint: choose engine.att"
    ):
        run_ranks(begin, 1)


def begin(here: Runtime) -> None:
    start(here, run_config("gpt", "engine.attention=cudnn", "engine.device=auto"))
