"""Which checkpoints of a run stay, as later ones are saved: a damaged one never takes the place of a whole one."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pretrain.checkpoint.manifest import step_of


class Keeping:
    """The newest `keep_last` whole checkpoints stay, and those at multiples of `keep_every` steps.

    Remembers which ones this process has saved or read, so that none is read again.
    """

    def __init__(self, keep_last: int, keep_every: int = 0) -> None:
        self.keep_last, self.keep_every = keep_last, keep_every
        self._known: dict[str, bool] = {}

    def know(self, name: str, *, whole: bool) -> None:
        """A checkpoint was saved, or its files were read."""
        self._known[name] = whole

    def outdated(self, names: Sequence[str], saved: str, looks_whole: Callable[[str], bool]) -> list[str]:
        """Those of `names`, oldest first, that may go now that `saved` is complete.

        Later ones stay: a run that went back comes to them again. `looks_whole`, a cheap look, is asked about those
        that nothing is known of, the newest first, and about no more than are needed.
        """
        earlier = [name for name in names if name <= saved]
        kept: list[str] = []
        while earlier and len(kept) < self.keep_last:
            name = earlier.pop()
            whole = self._known.get(name)
            if looks_whole(name) if whole is None else whole:
                kept.append(name)
        return [name for name in earlier if not self._is_for_ever(name)]

    def _is_for_ever(self, name: str) -> bool:
        step = step_of(Path(name))
        return self.keep_every > 0 and step is not None and step % self.keep_every == 0
