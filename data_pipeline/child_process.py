"""Processes that do not outlive the one that started them."""

import ctypes
import signal

_SYSTEM = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills this process when its parent ends, however that ends."""
    _SYSTEM.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
