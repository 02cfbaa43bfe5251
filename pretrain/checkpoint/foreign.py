"""The weights of a Hugging Face folder as a checkpoint that new runs start with, on any layout."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import LoadPlan, LoadPlanner, StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.futures import Future

from data_pipeline.tokenizers.loading import TokenizerFiles
from pretrain.checkpoint.on_disk import Checkpoint
from pretrain.checkpoint.whole_tensors import WEIGHT
from pretrain.huggingface.folder import ForeignWeights

OURS = "export.json"
"""`pretrain export` writes it. Then tokenizer.model beside it is the tokenizer of the run."""


@dataclass(frozen=True)
class ForeignCheckpoint(Checkpoint):
    """A folder of another program. Its manifest holds what a new run is compared with."""

    @property
    def digest(self) -> str:
        return ForeignWeights(self.folder).digest()

    def reader(self) -> StorageReader:
        return ForeignReader(self.folder)


def open_foreign(folder: Path) -> ForeignCheckpoint:
    """The folder as a checkpoint; raises UserError that names the key, file or tensor if it cannot be read."""
    weights = ForeignWeights(folder)
    tokenizer = tokenizer_files_of(folder)
    fingerprint = tokenizer.load(eod=weights.end_token).fingerprint if tokenizer else None
    manifest: dict[str, Any] = {
        "state": {"step": 0},
        "config": {"model": asdict(weights.model)},
        "vocab_size": weights.vocab_size,
        "tokenizer_fingerprint": fingerprint,
        "files": {},
    }
    return ForeignCheckpoint(folder, manifest)


def tokenizer_files_of(folder: Path) -> TokenizerFiles | None:
    """The tokenizer of a folder: the run's own model if we exported it, else tokenizer.json or tokenizer.model."""
    names = ["tokenizer.json", "tokenizer.model"]
    if (folder / OURS).is_file():
        names.reverse()
    for name in names:
        if (folder / name).is_file():
            return TokenizerFiles.read(folder / name)
    return None


class ForeignReader(StorageReader):
    """A DCP reader: each tensor is one chunk, made from the folder's tensors when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._weights = ForeignWeights(folder)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing to reset: the folder stays the same."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        properties = TensorProperties(dtype=torch.float32)
        described: dict[str, Any] = {
            WEIGHT + name: TensorStorageMetadata(
                properties=properties,
                size=torch.Size(shape),
                chunks=[ChunkStorageMetadata(offsets=torch.Size([0] * len(shape)), sizes=torch.Size(shape))],
            )
            for name, shape in self._weights.shapes.items()
        }
        return Metadata(state_dict_metadata=described)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the parts of this rank, those of one tensor after another."""
        for item in sorted(plan.items, key=lambda item: item.storage_index.fqn):
            whole = self._weights.read(item.storage_index.fqn.removeprefix(WEIGHT))
            places = zip(item.storage_offsets, item.lengths, strict=True)
            target = planner.resolve_tensor(item).detach()
            target.copy_(whole[tuple(slice(first, first + length) for first, length in places)])
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True
