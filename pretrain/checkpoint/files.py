"""Checkpoint files on disk: DCP's data files with their index as JSON, whole or not there at all."""

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from data_pipeline.storage.atomic_write import write_durably
from pretrain.checkpoint.index import INDEX
from pretrain.checkpoint.manifest import digest_of
from pretrain.checkpoint.tensors import Chunk
from pretrain.config.errors import RunRefused

# The manifest has SHA-256 of every file; torch's own check sum in each tensor would take as long as writing it.
torch.serialization.set_crc32_options(False)


def write_tensors(
    folder: Path, rank: int, chunks: Iterable[Chunk], read: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Write chunks as a data file of DCP's and its index beside it; returns the data file's name and digest.

    `read` is called as soon as no tensor is needed any more: what the disk still lacks then, the system holds.
    """
    data, index = f"__{rank}_0.distcp", f"tensors-{rank:05d}.json"
    tensors: dict[str, Any] = {}
    try:
        with (folder / data).open("wb") as file, ThreadPoolExecutor(1) as flusher:
            for chunk in chunks:
                begin = file.tell()
                _save(_with_storage_of_its_own(chunk.data.detach()), file)
                dtype = str(chunk.data.dtype).removeprefix("torch.")
                entry = tensors.setdefault(chunk.name, {"shape": list(chunk.shape), "dtype": dtype, "chunks": []})
                place = {"file": data, "begin": begin, "bytes": file.tell() - begin}
                entry["chunks"].append({"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **place})
            file.flush()
            read()
            flushed = flusher.submit(os.fsync, file.fileno())
            digest = digest_of(folder / data)  # out of the system's memory, while the disk writes
            flushed.result()
    finally:
        read()
    (folder / index).write_text(json.dumps(tensors))  # for `merge_indices`, which makes a durable one of all
    return {data: digest}


def _with_storage_of_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host; torch.save would write all of the bucket of memory that it is a view of.

    No bytes are copied on the host: NumPy's view of them comes back as a tensor that knows of no others.
    """
    held = tensor.cpu()
    if held.untyped_storage().nbytes() == held.nbytes:
        return held
    plain = held.contiguous().view(torch.uint8) if held.dim() else held.reshape(1).view(torch.uint8)
    return torch.from_numpy(plain.numpy()).view(held.dtype).view(held.shape)


class _Telling:
    """A file for torch.save, whose own error does not say why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """At the end, once for all tensors."""


def _save(tensor: torch.Tensor, file: BinaryIO) -> None:
    telling = _Telling(file)
    try:
        torch.save(tensor, telling)  # type: ignore[arg-type]  # it writes, and asks for no more
    except RuntimeError:
        if telling.error is None:
            raise
        raise telling.error from None


def parts_of_ranks(folder: Path, kind: str, num_ranks: int) -> list[Path]:
    """The files of this kind that the ranks wrote; raises RunRefused unless there is one of each rank.

    The listing of a shared file system may lack what another node has just written: a checkpoint without that would
    pass for complete.
    """
    found = sorted(folder.glob(f"{kind}-*.json"))
    if len(found) != num_ranks:
        raise RunRefused(f"{folder} shows {len(found)} files {kind}-*.json, {num_ranks} ranks wrote one each")
    return found


def merge_indices(folder: Path, num_ranks: int) -> str:
    """One index of all the data files in the folder out of those of its ranks; returns its name."""
    merged: dict[str, Any] = {}
    for path in parts_of_ranks(folder, "tensors", num_ranks):
        for name, tensor in json.loads(path.read_bytes()).items():
            chunks = merged.setdefault(name, {**tensor, "chunks": {}})["chunks"]
            for chunk in tensor["chunks"]:
                chunks.setdefault(tuple(chunk["offsets"]), chunk)
        path.unlink()
    whole = {name: {**tensor, "chunks": list(tensor["chunks"].values())} for name, tensor in merged.items()}
    write_durably(folder / INDEX, json.dumps(whole).encode())
    return INDEX


class JsonIndexReader(FileSystemReader):
    """DCP's reader of a JSON index; tensors themselves are read with weights_only, so nothing is unpickled."""

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The index: whoever asks before DCP does gets the error of a missing one, which DCP logs with its stack."""
        return dict(json.loads((Path(self.path) / INDEX).read_bytes()))

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        index: dict[str, Any] = {}
        places: dict[MetadataIndex, _StorageInfo] = {}
        for name, tensor in self.tensors.items():
            chunks = [
                ChunkStorageMetadata(offsets=torch.Size(c["offsets"]), sizes=torch.Size(c["sizes"]))
                for c in tensor["chunks"]
            ]
            properties = TensorProperties(dtype=getattr(torch, tensor["dtype"]))
            index[name] = TensorStorageMetadata(properties=properties, size=torch.Size(tensor["shape"]), chunks=chunks)
            for chunk, entry in zip(chunks, tensor["chunks"], strict=True):
                places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(entry["file"], entry["begin"], entry["bytes"])
        return Metadata(state_dict_metadata=index, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))
