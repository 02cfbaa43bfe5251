"""The newest checkpoint that a run can resume from, among all its stores."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.checkpoint.on_disk import Checkpoint
from pretrain.checkpoint.store import CheckpointStore, pass_over
from pretrain.config.errors import RunError
from pretrain.engine.interface import Engine


@dataclass(frozen=True)
class Search:
    """The result of a search for the newest whole checkpoint."""

    found: tuple[CheckpointStore, Checkpoint] | None
    passed_over: Sequence[RunError]
    """Why each newer checkpoint was passed over."""


def newest_of(stores: Sequence[CheckpointStore], engine: Engine) -> Search:
    """The newest whole checkpoint that all ranks can load, in any store; of the same step, the later store's."""
    candidates = [(name, number, store) for number, store in enumerate(stores) for name in store.names()]
    passed_over: list[RunError] = []
    for name, _, store in sorted(candidates, key=lambda candidate: candidate[:2], reverse=True):
        try:
            checkpoint = store.checked(name)
            if not store.is_loadable_here(checkpoint, engine):
                raise RunError(f"{checkpoint.folder}: parts for the new layout are on other nodes")
        except RunError as error:
            pass_over(error)
            passed_over.append(error)
        else:
            return Search((store, checkpoint), passed_over)
    return Search(None, passed_over)
