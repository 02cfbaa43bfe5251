"""No single flipped bit passes, in whatever file of a checkpoint."""

import random
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint.inventory import look_at
from pretrain.checkpoint.manifest import MANIFEST, parse_manifest, read_manifest
from pretrain.checkpoint.on_disk import read_checkpoint
from pretrain.checkpoint.verify import faults_of
from pretrain.config.errors import RunError
from tests.golden.make_checkpoint import CHECKPOINT

FILES = sorted(path.name for path in CHECKPOINT.iterdir())
SAMPLE = 200
"""Bits of a file; to flip all of them would take too long."""


def flipped(content: bytes, bits: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def test_every_bit_of_the_manifest_counts() -> None:
    content = (CHECKPOINT / MANIFEST).read_bytes()
    assert parse_manifest(content, CHECKPOINT) == read_manifest(CHECKPOINT)
    passed = []
    for bit, changed in flipped(content, range(8 * len(content))):
        try:
            parse_manifest(changed, CHECKPOINT)
        except RunError:
            continue
        passed.append(bit)
    assert passed == []


@pytest.mark.parametrize("name", FILES)
def test_verify_and_resume_find_a_flipped_bit_in_any_file(name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "step-00000002"))
    assert faults_of(look_at(folder, digests=True))[0] == [] and read_checkpoint(folder).step == 2
    content = (folder / name).read_bytes()
    for bit, changed in flipped(content, random.Random(name).sample(range(8 * len(content)), SAMPLE)):
        (folder / name).write_bytes(changed)
        assert faults_of(look_at(folder, digests=True))[0], f"verify misses bit {bit}"
        with pytest.raises(RunError):
            read_checkpoint(folder)
