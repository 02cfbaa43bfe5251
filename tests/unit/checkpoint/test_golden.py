"""The checkpoint in tests/golden is read by this and every later version, to the last bit."""

import json
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.inventory import look_at, tensors_of
from pretrain.checkpoint.manifest import FORMAT_VERSION, READERS
from pretrain.checkpoint.tensor_stats import read_chunk
from pretrain.checkpoint.verify import faults_of
from pretrain.run.state import RunState
from tests.golden.make_checkpoint import DIGESTS, HERE, digests

VERSIONS = range(1, FORMAT_VERSION + 1)


def golden(version: int) -> Path:
    return HERE / f"checkpoint-v{version}"


def test_every_format_version_has_a_reader_and_a_golden_file() -> None:
    assert sorted(READERS) == list(VERSIONS)
    for version in VERSIONS:
        assert json.loads((golden(version) / "manifest.json").read_bytes())["format_version"] == version


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_checkpoint_is_whole(version: int) -> None:
    found = look_at(golden(version), digests=True)
    faults, tensors = faults_of(found)
    assert not faults and tensors == len(json.loads(DIGESTS.read_text()))
    assert found.manifest is not None
    assert RunState.from_json(found.manifest["state"]) == RunState(step=2, position=48, tokens=768)
    assert found.manifest["counters"] == {"adam_steps": 2.0}


@pytest.mark.parametrize("version", VERSIONS)
def test_golden_tensors_equal_those_of_the_engine(version: int) -> None:
    state = {}
    for name, tensor in tensors_of(look_at(golden(version))).items():
        whole = torch.full(tensor.shape, torch.nan)
        for chunk in tensor.chunks:
            place = tuple(slice(a, b) for a, b in zip(chunk.offsets, chunk.ends, strict=True))
            whole[place] = read_chunk(golden(version), tensor, chunk)
        state[name] = whole.numpy()
    assert digests(state) == json.loads(DIGESTS.read_text())
