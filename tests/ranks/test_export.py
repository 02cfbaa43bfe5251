"""An exported folder computes what the run's engine computes, whatever layout wrote the checkpoint."""

import hashlib
from typing import Any

import pytest
import torch

from pretrain.export.check import LARGEST_DIFFERENCE, difference, logits_of_folder
from tests.support.exporting import FAMILIES, saved, write_folder
from tests.support.models import batch_of, batches, run_config
from tests.support.ranks import run_ranks

EIGHT_LAYERS = ("llama", "model.num_layers=8", "model.num_query_groups=2", "model.num_heads=4")
LAYOUTS = [
    (4, {"tp": 2, "zero_stage": 3}),
    (2, {"pp": 2, "vp": 2, "zero_stage": 1}),
    pytest.param(8, {"tp": 2, "pp": 2, "zero_stage": 3, "sp": True}, marks=pytest.mark.full),
    pytest.param(2, {"tp": 2, "zero_stage": 0}, marks=pytest.mark.full),
    pytest.param(4, {"pp": 4, "vp": 2, "zero_stage": 2}, marks=pytest.mark.full),
    pytest.param(4, {"tp": 4}, marks=pytest.mark.full),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(family, tmp_path):
    pytest.importorskip("transformers", reason="needs the extra `export`")
    config = run_config(*FAMILIES[family], "model.num_heads=4", "model.seq_length=64")
    tokens = torch.from_numpy(batch_of(0, 8, config)[:, :-1])
    (ours,) = run_ranks(saved, 1, config, tmp_path, tokens)
    write_folder(tmp_path / "out", tmp_path, config, shard_bytes=20_000)
    found = difference(ours, logits_of_folder(tmp_path / "out", tokens), tokens)
    assert 0.5 < float(ours.std()) < 3
    assert (found.tokens, found.same_argmax) == (512, 1.0)
    assert found.largest_difference <= LARGEST_DIFFERENCE


@pytest.mark.parametrize(("world_size", "layout"), LAYOUTS)
def test_every_layout_gives_the_same_bytes(world_size, layout, tmp_path):
    def digests(world: int, **chosen: Any) -> dict[str, str]:
        config = run_config(*EIGHT_LAYERS, *batches(1), **chosen)
        folder = tmp_path / f"{world}-{len(chosen)}"
        run_ranks(saved, world, config, folder)
        return write_folder(folder / "out", folder, config, shard_bytes=30_000)

    one, other = digests(1), digests(world_size, **layout)
    assert len(one) > 3
    assert one == other


def test_the_digests_are_of_the_files(tmp_path):
    config = run_config()
    run_ranks(saved, 1, config, tmp_path)
    for name, digest in write_folder(tmp_path / "out", tmp_path, config).items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
