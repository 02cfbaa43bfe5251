"""Flat ranges as boxes."""

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.tensors import boxes_of_range, state_dict_of
from pretrain.engine.interface import StateShard


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    """A shape of up to four dimensions and a range of its elements."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    numel = math.prod(shape)
    start = draw(st.integers(0, numel))
    return shape, start, draw(st.integers(0, numel - start))


@given(ranges())
def test_boxes_cover_their_range_exactly_and_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, length = case
    flat_index = np.arange(math.prod(shape)).reshape(shape)
    covered: list[int] = []
    for box in boxes_of_range(shape, start, length):
        assert box.start == len(covered)
        assert len(box.offsets) == len(box.sizes) == len(shape)
        part = flat_index[tuple(slice(o, o + size) for o, size in zip(box.offsets, box.sizes, strict=True))]
        assert part.size == box.numel > 0
        covered += part.ravel().tolist()
    assert covered == list(range(start, start + length))


@given(ranges())
def test_boxes_are_few(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, length = case
    assert len(boxes_of_range(shape, start, length)) <= 2 * max(0, len(shape) - 1) + 1


@given(ranges())
def test_chunks_are_views_of_the_live_state(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, length = case
    if length == 0:
        return
    data = torch.zeros(length)
    tensor = state_dict_of([StateShard("weight/x", shape, (0,) * len(shape), shape, start, data)])["weight/x"]
    assert tensor.shape == shape
    for number, chunk in enumerate(tensor.chunks.values()):
        chunk.data.fill_(number + 1.0)
    assert (data > 0).all()


def test_parts_of_one_tensor_are_one_entry() -> None:
    parts = [StateShard("weight/x", (4, 3), (0, 0), (4, 3), start, torch.ones(2)) for start in (1, 7)]
    state = state_dict_of([*parts, StateShard("weight/y", (2,), (0,), (2,), 0, torch.ones(2))])
    assert state.keys() == {"weight/x", "weight/y"}
    assert sum(chunk.data.numel() for chunk in state["weight/x"].chunks.values()) == 4
