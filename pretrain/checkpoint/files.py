"""The files of a checkpoint: data files of torch.distributed.checkpoint (DCP), with their index as JSON."""

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

# The manifest has the SHA-256 of every file; a checksum by torch in each tensor would take as long as writing it.
torch.serialization.set_crc32_options(False)


def write_tensors(
    folder: Path, rank: int, chunks: Iterable[Chunk], read: Callable[[], None]
) -> dict[str, dict[str, Any]]:
    """Write chunks as a DCP data file with its index beside it; returns the data file's name and digest.

    `read` is called as soon as all tensors are read and may change: their bytes are in the page cache, but perhaps not
    on disk yet. It is called again at the end, also after an error.
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
            digest = digest_of(folder / data)  # from the page cache, while the disk writes
            flushed.result()
    finally:
        read()
    (folder / index).write_text(json.dumps(tensors))  # not synced: `merge_indices` writes a durable index of all
    return {data: digest}


def _with_storage_of_its_own(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the host, with a storage of its own: torch.save writes the whole storage that a view belongs to.

    Bytes on the host are not copied: a tensor made of their NumPy view has only them as its storage.
    """
    held = tensor.cpu()
    if held.untyped_storage().nbytes() == held.nbytes:
        return held
    plain = held.contiguous().view(torch.uint8) if held.dim() else held.reshape(1).view(torch.uint8)
    return torch.from_numpy(plain.numpy()).view(held.dtype).view(held.shape)


class _ErrorKeepingFile:
    """A file for torch.save that keeps the OSError of a failed write, which the error of torch.save does not have."""

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
        """Does nothing: the file is flushed once, after all tensors."""


def _save(tensor: torch.Tensor, file: BinaryIO) -> None:
    keeping = _ErrorKeepingFile(file)
    try:
        torch.save(tensor, keeping)  # type: ignore[arg-type]  # torch.save only calls write and flush
    except RuntimeError:
        if keeping.error is None:
            raise
        raise keeping.error from None


def files_of_ranks(folder: Path, kind: str, num_ranks: int) -> list[Path]:
    """The files of this kind that the ranks wrote; raises RunRefused unless there is one of each rank.

    The listing of a shared file system may lack a file that another node has just written: a checkpoint without it
    would seem complete.
    """
    found = sorted(folder.glob(f"{kind}-*.json"))
    if len(found) != num_ranks:
        raise RunRefused(f"{folder} shows {len(found)} files {kind}-*.json, {num_ranks} ranks wrote one each")
    return found


def merge_indices(folder: Path, num_ranks: int) -> str:
    """Merge the indices of the ranks into one index of all data files in the folder; returns its name."""
    merged: dict[str, Any] = {}
    for path in files_of_ranks(folder, "tensors", num_ranks):
        for name, tensor in json.loads(path.read_bytes()).items():
            chunks = merged.setdefault(name, {**tensor, "chunks": {}})["chunks"]
            for chunk in tensor["chunks"]:
                chunks.setdefault(tuple(chunk["offsets"]), chunk)
        path.unlink()
    whole = {name: {**tensor, "chunks": list(tensor["chunks"].values())} for name, tensor in merged.items()}
    write_durably(folder / INDEX, json.dumps(whole).encode())
    return INDEX


class JsonIndexReader(FileSystemReader):
    """A DCP reader for the JSON index. Tensors are read with weights_only, so nothing is unpickled."""

    @cached_property
    def tensors(self) -> dict[str, Any]:
        """The index. Reading it before DCP does raises a plain error if it is missing; DCP would log a stack."""
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
