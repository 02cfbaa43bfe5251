"""Tensors are copied to a device, also if they are views."""

import pytest
import torch
from torch import Tensor

from pretrain.engine.device import to_device


def pinned(tensor: Tensor) -> Tensor:
    """Pin as torch does with a GPU: a copy with the strides of the original."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(tensor)


VIEWS = {
    "whole": torch.arange(12).view(3, 4),
    "rows": torch.arange(12).view(3, 4)[1:],
    "columns": torch.arange(12).view(3, 4)[:, 1:],
    "turned": torch.arange(12.0).view(3, 4).t(),
    "one value for each row": torch.tensor([True, False, True])[:, None].expand(-1, 4),
    "one row for all": torch.arange(4).expand(3, 4),
    "nothing": torch.empty(0, 4),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_is_pinned(view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    tensor = VIEWS[view]
    arrived = to_device(tensor, torch.device("meta"))
    assert (arrived.shape, arrived.dtype, arrived.device.type) == (tensor.shape, tensor.dtype, "meta")
