"""A record of what happens on the pretend GPU: bytes, what the host waits for, copies and collectives."""

import sys
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

_TORCH, _HERE = Path(torch.__file__).parent, Path(__file__).parent


@dataclass(frozen=True)
class Collective:
    """One collective, send or receive in which this rank took part."""

    operation: str
    """torch's name: `allreduce_`, `_allgather_base_`, `send`, ..."""
    group: str
    """torch's name of the process group."""
    ranks: int
    """Number of ranks in the group."""
    size: int
    """Bytes of the whole tensor: the gathered one, or the one to be reduced and scattered."""


class Ledger:
    """A record of the device's work."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        """Bytes of all storages on the device, each counted once, whatever the number of its views."""
        self.host_now = self.host_peak = 0
        """The same for tensors of a MiB or more on the host, where nothing is computed."""
        self.waits: Counter[str] = Counter()
        """How often the host waited: `WHAT in FILE.FUNCTION` of the innermost call outside torch."""
        self.copies: Counter[str] = Counter()
        """Between host and device, whether the host waited or not, in the same way."""
        self.operations = 0
        """Operations on tensors of the device: each costs the host time."""
        self.collectives: list[Collective] = []
        """In the order in which they were started."""
        self._sizes: dict[int, int] = {}

    def begin(self) -> None:
        """Count waits, copies, collectives, operations and the peak from here on."""
        self.peak, self.host_peak = self.now, self.host_now
        self.waits.clear()
        self.copies.clear()
        self.collectives.clear()
        self.operations = 0

    def wait(self, what: str) -> None:
        self.waits[f"{what} in {_place()}"] += 1

    def cross(self, what: str, *, waits: bool) -> None:
        """Write a copy down."""
        self.copies[f"{what} in {_place()}"] += 1
        if waits:
            self.wait(what)

    def hold(self, raw: Tensor, *, on_host: bool = False) -> None:
        """Count the tensor's storage for as long as it lives."""
        storage = raw.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            weakref.finalize(storage, self._free, key, on_host).atexit = False
        self._sizes[key] = size
        self._add(size - (known or 0), on_host)

    def _free(self, key: int, on_host: bool) -> None:
        self._add(-self._sizes.pop(key, 0), on_host)

    def _add(self, size: int, on_host: bool) -> None:
        if on_host:
            self.host_now += size
            self.host_peak = max(self.host_peak, self.host_now)
        else:
            self.now += size
            self.peak = max(self.peak, self.now)


def _place() -> str:
    """The innermost call outside torch and the pretend machine."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if not file.is_relative_to(_TORCH) and file.parent != _HERE:
            return f"{file.stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


ledger = Ledger()
