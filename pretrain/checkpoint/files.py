"""Checkpoint files on disk: DCP's data files with their index as JSON, whole or not there at all."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from data_pipeline.durable import write_durably

INDEX = "tensors.json"
"""Which tensor lies where: DCP's metadata, which DCP itself would pickle."""


class JsonIndexWriter(FileSystemWriter):
    """DCP's writer with a JSON index."""

    def finish(self, metadata: Metadata, results: Any) -> None:
        places = {result.index: result.storage_data for part in results for result in part}
        tensors: dict[str, Any] = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            chunks = []
            for chunk in tensor.chunks:
                place = places[MetadataIndex(name, chunk.offsets)]
                chunks.append(
                    {
                        "offsets": list(chunk.offsets),
                        "sizes": list(chunk.sizes),
                        "file": place.relative_path,
                        "begin": place.offset,
                        "bytes": place.length,
                    }
                )
            dtype = str(tensor.properties.dtype).removeprefix("torch.")
            tensors[name] = {"shape": list(tensor.size), "dtype": dtype, "chunks": chunks}
        write_durably(Path(self.path) / INDEX, json.dumps(tensors).encode())


class JsonIndexReader(FileSystemReader):
    """DCP's reader of a JSON index; tensors themselves are read with weights_only, so nothing is unpickled."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        tensors = json.loads((Path(self.path) / INDEX).read_bytes())
        index: dict[str, Any] = {}
        places: dict[MetadataIndex, _StorageInfo] = {}
        for name, tensor in tensors.items():
            chunks = [
                ChunkStorageMetadata(offsets=torch.Size(c["offsets"]), sizes=torch.Size(c["sizes"]))
                for c in tensor["chunks"]
            ]
            properties = TensorProperties(dtype=getattr(torch, tensor["dtype"]))
            index[name] = TensorStorageMetadata(properties=properties, size=torch.Size(tensor["shape"]), chunks=chunks)
            for chunk, entry in zip(chunks, tensor["chunks"], strict=True):
                places[MetadataIndex(name, chunk.offsets)] = _StorageInfo(entry["file"], entry["begin"], entry["bytes"])
        return Metadata(state_dict_metadata=index, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def digest_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as the manifest holds them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first thing wrong with the files of a checkpoint, or None."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} has {path.stat().st_size} bytes instead of {expected['bytes']}"
        if digest_of(path)["sha256"] != expected["sha256"]:
            return f"{path} is damaged: its SHA-256 differs from the manifest's"
    return None


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that a half deleted one is never taken for whole."""
    doomed = folder.with_name(folder.name + ".deleting")
    folder.rename(doomed)
    shutil.rmtree(doomed)
