"""The weight files of a Hugging Face folder: which tensors are in which file, and writing them one unit at a time."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.storage.atomic_write import write_durably
from pretrain.checkpoint.whole_tensors import StoredWeights
from pretrain.config.errors import RunError
from pretrain.huggingface.safetensors_file import Dtype, Entry, SafetensorsWriter, entry
from pretrain.huggingface.weights import Unit

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightFile:
    """One file, with the units that it holds."""

    name: str
    units: tuple[Unit, ...]
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(each.bytes for each in self.entries)


def plan_files(units: Sequence[Unit], dtype: Dtype, shard_bytes: int) -> list[WeightFile]:
    """Divide the units among files of at most `shard_bytes`, in order. A unit is never divided."""
    groups: list[list[Unit]] = [[]]
    size = 0
    for unit in units:
        own = sum(each.bytes for each in _entries(unit, dtype))
        if groups[-1] and size + own > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(unit)
        size += own
    count = len(groups)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    return [
        WeightFile(name, tuple(group), tuple(each for unit in group for each in _entries(unit, dtype)))
        for name, group in zip(names, groups, strict=True)
    ]


def write_files(
    folder: Path,
    weights: StoredWeights,
    files: Sequence[WeightFile],
    dtype: Dtype,
    *,
    workers: int,
    show: Callable[[int], None],
) -> dict[str, str]:
    """Write the files, `workers` at a time, and their index if there are several; returns their SHA-256 by name.

    `show` gets the bytes written so far. Raises RunError if the checkpoint's tensors are not those of the model.
    """
    check_shapes(weights, [unit for file in files for unit in file.units])
    done = [0] * len(files)

    def write(number: int) -> str:
        def add(count: int) -> None:
            done[number] += count
            show(sum(done))

        return _write_file(folder, weights, files[number], dtype, add)

    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(write, range(len(files))))
    if len(files) > 1:
        places = {each.name: file.name for file in files for each in file.entries}
        index = {"metadata": {"total_size": sum(file.bytes for file in files)}, "weight_map": places}
        write_durably(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return {file.name: digest for file, digest in zip(files, digests, strict=True)}


def check_shapes(weights: StoredWeights, units: Sequence[Unit]) -> None:
    """Raise RunError unless the checkpoint has exactly the tensors of the units."""
    expected = {name: shape for unit in units for name, shape in zip(unit.ours, unit.our_shapes, strict=True)}
    found = weights.shapes
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            there, here = found.get(name, "no such weight"), expected.get(name, "no such weight")
            raise RunError(f"{weights.folder}: {name} is {there}, the run's model has {here}")


def _write_file(
    folder: Path, weights: StoredWeights, file: WeightFile, dtype: Dtype, show: Callable[[int], None]
) -> str:
    writer = SafetensorsWriter(folder / file.name, file.entries, dtype)
    try:
        for unit in file.units:
            tensors = unit.to_theirs([weights.read(name) for name in unit.ours])
            for name, tensor in zip(unit.theirs, tensors, strict=True):
                writer.add(name, tensor)
            del tensors  # before the next unit is read
            show(sum(each.bytes for each in _entries(unit, dtype)))
        digest = writer.close()
    finally:
        writer.abandon()
    (folder / file.name).chmod(0o644)  # a server may run as another user
    return digest


def _entries(unit: Unit, dtype: Dtype) -> Iterator[Entry]:
    for name, shape in zip(unit.theirs, unit.their_shapes, strict=True):
        yield entry(name, shape, dtype)
