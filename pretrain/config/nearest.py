"""Which name was meant by one that does not exist."""

import difflib
from collections.abc import Collection

from pretrain.config.describe import either

MOST = 4
SAME = {"learning_rate": "lr", "max_lr": "lr"}
"""Last words of keys in other programs, and ours."""


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`did you mean optim.lr?`; empty if no name resembles it."""
    near = nearest_names(name, known)
    return f"did you mean {either(near)}?" if near else ""


def nearest_names(name: str, known: Collection[str]) -> list[str]:
    """Names that resemble this one most; of dotted names, for one without a dot, those that end in it come first."""
    if same := [key for key in known if _last(key) == SAME.get(_last(name))]:
        return same
    if "." not in name:
        by_end = [key for key in known if _last(key) == name]
        within = [key for key in known if len(name) > 3 and name in _last(key)]
        if found := by_end or within:
            return sorted(found, key=lambda key: key.count("."))[:MOST]
    if best := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return best
    last = difflib.get_close_matches(_last(name), {_last(key) for key in known}, n=1, cutoff=0.75)
    return [key for key in known if _last(key) in last][:MOST]


def _last(key: str) -> str:
    return key.rpartition(".")[2]
