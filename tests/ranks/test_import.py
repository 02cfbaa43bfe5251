"""A run starts with the weights of a Hugging Face folder, bit for bit, in any layout."""

from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.foreign import open_foreign
from pretrain.checkpoint.init_from import load_initial
from pretrain.config.run import RunConfig
from tests.support.exporting import FAMILIES, saved, write_folder
from tests.support.models import batches, run_config
from tests.support.randomised import WEIGHT, random_weight
from tests.support.ranks import run_ranks
from tests.support.saving import store_of
from tests.support.training import start

WIDER = ("model.num_layers=4", "model.num_heads=4")


def wrong_after_loading(here: Any, config: RunConfig, folder: Path, run: Path) -> list[str]:
    """The shards of this rank that differ from the weights that were exported."""
    engine = start(here, config)
    found = open_foreign(folder) if here.rank == 0 else None
    load_initial(store_of(engine, run), engine, found, lambda: open_foreign(folder))
    wrong, seen = [], 0
    for shard in engine.state_shards(weights_only=True):
        whole = random_weight(shard.name.removeprefix(WEIGHT), shard.shape)
        part = whole[tuple(slice(o, o + n) for o, n in zip(shard.origin, shard.part_shape, strict=True))]
        wanted = part.reshape(-1)[shard.start : shard.start + shard.data.numel()]
        seen += 1
        if not shard.data.equal(wanted):
            wrong.append(shard.name)
    return wrong if seen else ["no shard"]


@pytest.mark.parametrize(
    ("family", "world_size", "dp", "layout"),
    [
        ("gpt", 1, 1, {}),
        ("llama", 4, 2, {"tp": 2, "zero_stage": 3}),
        ("starcoder2", 2, 1, {"pp": 2, "vp": 2, "zero_stage": 1}),
        pytest.param("qwen3", 2, 2, {"zero_stage": 3}, marks=pytest.mark.full),
        pytest.param("gpt_untied", 8, 2, {"tp": 2, "pp": 2, "zero_stage": 3}, marks=pytest.mark.full),
        pytest.param("llama_bias", 2, 1, {"tp": 2}, marks=pytest.mark.full),
    ],
)
def test_every_weight_comes_back_bit_for_bit(family, world_size, dp, layout, tmp_path):
    run_ranks(saved, 1, run_config(*FAMILIES[family], *WIDER), tmp_path / "old")
    write_folder(tmp_path / "out", tmp_path / "old", run_config(*FAMILIES[family], *WIDER), shard_bytes=20_000)
    config = run_config(*FAMILIES[family], *WIDER, *batches(dp), **layout)
    assert run_ranks(wrong_after_loading, world_size, config, tmp_path / "out", tmp_path / "new") == [[]] * world_size
