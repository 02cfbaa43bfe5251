"""A rank's part of a whole tensor, and any range of the part, are found without the tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.config.load import load_run_config
from pretrain.model.parameters import LocalParameter, own_rows
from pretrain.model.rows import Rows

LLAMA = load_run_config(["model=tiny_llama"]).model
GPT = load_run_config(["model=tiny"]).model


def indices(blocks: list[Rows]) -> list[int]:
    return [b.first + i * b.stride + j for b in blocks for i in range(b.count) for j in range(b.length)]


@given(st.data())
def test_a_range_of_a_part_is_cut_out(data: st.DataObject) -> None:
    rows = Rows(*(data.draw(st.integers(low, 12)) for low in (0, 1, 1, 1)))
    start = data.draw(st.integers(0, rows.numel))
    end = data.draw(st.integers(start, rows.numel))
    assert indices(rows.cut(start, end)) == indices([rows])[start:end]


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "shape", "split"),
    [
        ("decoder.layers.0.self_attention.linear_qkv.weight", (24, 6), 0),
        ("decoder.layers.0.self_attention.linear_proj.weight", (6, 8), 1),
        ("decoder.layers.0.mlp.linear_fc1.weight", (16, 3), 0),
        ("decoder.layers.0.mlp.linear_fc2.weight", (3, 8), 1),
        ("embedding.position_embeddings.weight", (5, 3), None),
    ],
)
@pytest.mark.parametrize("model", [LLAMA, GPT], ids=["llama", "gpt"])
def test_parts_are_those_of_tensor_parallelism(model, name, shape, split, tp) -> None:
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    split = split if tp > 1 else None
    for rank in range(tp):
        expected = whole
        if split is not None and ".linear_fc1." in name and model is LLAMA:  # gate and up projections, split separately
            expected = torch.cat([half.chunk(tp)[rank] for half in whole.chunk(2)])
        elif split is not None:
            expected = whole.chunk(tp, split)[rank]
        local = LocalParameter(name, expected.shape, split, tied=False, is_copy=False, summed_over_tp=False)
        assert indices([own_rows(local, model=model, tp=tp, tp_rank=rank)]) == expected.flatten().tolist()
