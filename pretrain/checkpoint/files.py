"""Checkpoint files on disk: DCP's data files with their index as JSON, whole or not there at all."""

import json
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
from pretrain.checkpoint.index import INDEX


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
