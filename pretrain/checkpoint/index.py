"""The index of a checkpoint: which file holds which part of a tensor, and whether the parts are complete."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint.manifest import unreadable
from pretrain.config.errors import RunError

INDEX = "tensors.json"
"""The file with the metadata of DCP, which DCP itself would pickle."""


@dataclass(frozen=True)
class StoredChunk:
    """A rectangular part of a tensor: elements `offsets` to `ends`, and the bytes that hold it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    begin: int
    bytes: int

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.offsets, self.sizes, strict=True)))

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


@dataclass(frozen=True)
class StoredTensor:
    """The entry of a tensor in the index."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The torch name without `torch.`"""
    chunks: tuple[StoredChunk, ...]

    @property
    def files(self) -> set[str]:
        return {chunk.file for chunk in self.chunks}


def read_index(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name; raises RunError if the index is damaged."""
    path = folder / INDEX
    try:
        stored = json.loads(path.read_bytes())
        return {name: _tensor(name, values) for name, values in stored.items()}
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None


def index_faults(folder: Path, tensors: Mapping[str, StoredTensor], sizes: Mapping[str, int]) -> Iterator[str]:
    """The faults of the index: chunks that do not tile their tensor exactly, or are outside the files.

    `sizes`: the bytes of each file.
    """
    path = folder / INDEX
    for tensor in tensors.values():
        fault = _cover_fault(tensor)
        if fault:
            yield f"{path}: {tensor.name}: {fault}"
    places: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in tensors.values():
        for chunk in tensor.chunks:
            places.setdefault(chunk.file, []).append((chunk.begin, chunk.begin + chunk.bytes, tensor.name))
    for file, ranges in sorted(places.items()):
        if file not in sizes:
            yield f"{path}: {ranges[0][2]}: is in {file}, which the manifest does not name"
            continue
        before = 0, "the beginning of the file"
        for begin, end, name in sorted(ranges):
            if begin < before[0]:
                yield f"{path}: {name}: begins at byte {begin} of {file}, before the end of {before[1]}"
            if end > sizes[file]:
                yield f"{path}: {name}: ends at byte {end} of {file}, which has {sizes[file]}"
            before = max(before, (end, name))


def _tensor(name: str, values: Mapping[str, Any]) -> StoredTensor:
    chunks = tuple(
        StoredChunk(_numbers(c["offsets"]), _numbers(c["sizes"]), c["file"], *_numbers([c["begin"], c["bytes"]]))
        for c in values["chunks"]
    )
    shape, dtype = _numbers(values["shape"]), values["dtype"]
    if not isinstance(dtype, str) or not all(isinstance(chunk.file, str) for chunk in chunks):
        raise TypeError(f"{name} has a dtype or file that is not a string")
    if any(not len(shape) == len(chunk.offsets) == len(chunk.sizes) for chunk in chunks):
        raise ValueError(f"{name} has a chunk of another number of dimensions")
    return StoredTensor(name, shape, dtype, chunks)


def _numbers(values: Sequence[Any]) -> tuple[int, ...]:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values} are not sizes")
    return tuple(values)


def _cover_fault(tensor: StoredTensor) -> str | None:
    """Why the chunks do not tile the tensor; None if they do."""
    for chunk in tensor.chunks:
        if any(end > size for end, size in zip(chunk.ends, tensor.shape, strict=True)):
            return f"the chunk at {_at(chunk)} reaches to {list(chunk.ends)}, the shape is {list(tensor.shape)}"
    filled = [chunk for chunk in tensor.chunks if chunk.numel]
    overlap = _first_overlap(filled)
    if overlap:
        return f"the chunks at {_at(overlap[0])} and {_at(overlap[1])} overlap"
    missing = math.prod(tensor.shape) - sum(chunk.numel for chunk in filled)
    return f"{missing:,} of {math.prod(tensor.shape):,} elements are in no chunk" if missing else None


def _first_overlap(chunks: Sequence[StoredChunk]) -> tuple[StoredChunk, StoredChunk] | None:
    import numpy as np

    begins = np.array([chunk.offsets for chunk in chunks], dtype=np.int64)
    ends = np.array([chunk.ends for chunk in chunks], dtype=np.int64)
    for i, chunk in enumerate(chunks):
        meet = ((begins[i] < ends[i + 1 :]) & (begins[i + 1 :] < ends[i])).all(axis=1)
        if meet.any():
            return chunk, chunks[i + 1 + int(meet.argmax())]
    return None


def _at(chunk: StoredChunk) -> str:
    return str(list(chunk.offsets))
