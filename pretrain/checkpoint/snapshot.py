"""A snapshot: the part of a step's state that one rank saves."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from safetensors.torch import save as safetensors_bytes

from pretrain.checkpoint.manifest import FORMAT_VERSION
from pretrain.checkpoint.tensors import Chunk, chunks_of, own_chunks
from pretrain.distributed.random_state import random_states
from pretrain.engine.interface import Engine
from pretrain.run.state import RunState


@dataclass(frozen=True)
class Snapshot:
    """The state that one rank saves. Tensors are not copied: they are valid until the next update."""

    step: int
    chunks: list[Chunk]
    random_states: bytes
    manifest: Mapping[str, Any]
    """All of it except the digests of the files."""

    @property
    def num_bytes(self) -> int:
        return sum(chunk.data.nbytes for chunk in self.chunks)


def take_snapshot(
    engine: Engine, state: RunState, layout: Mapping[str, int], description: Mapping[str, Any], *, all_copies: bool
) -> Snapshot:
    """Collect what this rank saves: everything it holds (`all_copies`), else its share of what several ranks hold."""
    chunks = chain.from_iterable(map(chunks_of if all_copies else own_chunks, engine.state_shards()))
    manifest = {
        "format_version": FORMAT_VERSION,
        "state": state.to_json(),
        "counters": engine.counters(),
        "layout": layout,
        **description,
    }
    return Snapshot(state.step, list(chunks), safetensors_bytes(random_states()), manifest)
