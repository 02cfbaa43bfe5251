"""Which checkpoints stay when later ones are saved. A damaged one never takes the place of a whole one."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from pretrain.checkpoint.manifest import step_of


class Retention:
    """Keeps the newest `keep_last` whole checkpoints, those at multiples of `keep_every` steps, and `keep_steps`.

    It remembers which ones this process has saved or read, so that none is read again.
    """

    def __init__(self, keep_last: int, keep_every: int = 0, keep_steps: Collection[int] = ()) -> None:
        self.keep_last, self.keep_every, self.keep_steps = keep_last, keep_every, keep_steps
        self._known: dict[str, bool] = {}

    def mark(self, name: str, *, whole: bool) -> None:
        """Note that a checkpoint was saved, or its files were read."""
        self._known[name] = whole

    def outdated(self, names: Sequence[str], saved: str, looks_whole: Callable[[str], bool]) -> list[str]:
        """The checkpoints of `names`, oldest first, that may be deleted now that `saved` is complete.

        Later ones stay: a run that went back reaches them again. `looks_whole`, a cheap check, is called for those that
        were neither saved nor read, the newest first, and only as often as needed.
        """
        earlier = [name for name in names if name <= saved]
        kept: list[str] = []
        while earlier and len(kept) < self.keep_last:
            name = earlier.pop()
            whole = self._known.get(name)
            if looks_whole(name) if whole is None else whole:
                kept.append(name)
        return [name for name in earlier if not self._is_permanent(name)]

    def _is_permanent(self, name: str) -> bool:
        step = step_of(Path(name))
        if step is None:
            return False
        return step in self.keep_steps or (self.keep_every > 0 and step % self.keep_every == 0)
