"""Checkpoints made of plain tensors, cut as wanted, and runs made of the golden one: without an engine, in no time."""

import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint.index import INDEX
from pretrain.checkpoint.manifest import FORMAT_VERSION, MANIFEST, digest_of, sealed
from pretrain.checkpoint.tensors import boxes_of_range
from tests.golden.make_checkpoint import CHECKPOINT

Cut = Sequence[int]
"""Positions at which the flat row-major tensor is cut into ranges."""


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], cuts: Mapping[str, Cut], **about: Any) -> Path:
    """A checkpoint in the product's format, each range of a tensor in the file of a rank of its own."""
    folder.mkdir(parents=True)
    index: dict[str, Any] = {}
    content: dict[str, io.BytesIO] = {}
    for name, tensor in tensors.items():
        chunks = []
        ends = [0, *cuts.get(name, ()), tensor.numel()]
        for rank, (first, last) in enumerate(itertools.pairwise(ends)):
            for box in boxes_of_range(tuple(tensor.shape), first, last - first):
                stream = content.setdefault(f"__{rank}_0.distcp", io.BytesIO())
                begin = stream.tell()
                held = tensor.reshape(-1)[first + box.start : first + box.start + box.numel]
                torch.save(held.view(box.sizes).clone(), stream)
                place = {"file": f"__{rank}_0.distcp", "begin": begin, "bytes": stream.tell() - begin}
                chunks.append({"offsets": list(box.offsets), "sizes": list(box.sizes), **place})
        dtype = str(tensor.dtype).removeprefix("torch.")
        index[name] = {"shape": list(tensor.shape), "dtype": dtype, "chunks": chunks}
    for file, stream in content.items():
        (folder / file).write_bytes(stream.getvalue())
    (folder / INDEX).write_text(json.dumps(index))
    files = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    write_manifest(folder, files=files, **about)
    return folder


def write_manifest(folder: Path, step: int = 1, **about: Any) -> None:
    """The least that a manifest holds, and what is given."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "state": {"step": step, "position": 8 * step, "tokens": 64 * step},
        "counters": {"adam_steps": float(step)},
        "layout": {"world_size": 1, "tp": 1, "pp": 1},
        "files": {},
    }
    (folder / MANIFEST).write_bytes(sealed(manifest | about))


def change_manifest(folder: Path, change: Callable[[Any], object]) -> None:
    """Another content, under a digest of its own."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["sha256"]
    change(manifest)
    (folder / MANIFEST).write_bytes(sealed(manifest))


def make_run(folder: Path, *steps: int) -> Path:
    """A run's folder with the golden checkpoint as that of each step."""
    for step in steps:
        made = Path(shutil.copytree(CHECKPOINT, checkpoint_of(folder, step)))
        change_manifest(made, lambda manifest, step=step: manifest["state"].update(step=step))
    return folder


def checkpoint_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))


def flip_a_bit(path: Path) -> None:
    """Sizes stay as they are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
