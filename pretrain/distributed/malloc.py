"""glibc's heap, while tensors that come and go are mixed with ones that stay."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL, LARGE = 1 << 20, 32 << 20


@contextlib.contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Within the context, each block from 1 MiB on is mapped separately, so that freeing it returns its memory.

    Otherwise the buffers that a parameter passes through leave holes between the parameters that stay: measured up to a
    quarter more memory at the peak. Afterwards the limit is where glibc's own adjustment ends, 32 MiB: mapping again in
    every step is slow.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, SMALL)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE)  # as glibc sets it with the other; it stops once one is set by hand
