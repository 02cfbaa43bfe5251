"""Child processes that end with their parent."""

import ctypes
import signal

_SYSTEM = ctypes.CDLL(None)
_SET_DEATH_SIGNAL = 1


def die_with_parent() -> None:
    """Pass as `preexec_fn`: the kernel kills this process when its parent ends for any reason."""
    _SYSTEM.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
