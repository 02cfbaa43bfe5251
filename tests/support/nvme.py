"""Is DeepSpeed's async_io there? Compiling it takes minutes, so tests only use it where that was done before."""

import functools
import os
from pathlib import Path


@functools.cache
def why_no_async_io() -> str | None:
    """None: it is compiled already. `python -m tests.support.nvme` compiles it."""
    from torch.utils.cpp_extension import _get_build_directory

    if (Path(_get_build_directory("async_io", verbose=False)) / "async_io.so").exists():
        return None
    return "DeepSpeed's async_io is not compiled on this machine: python -m tests.support.nvme does it, in minutes"


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from pretrain.engine.nvme_offload import require_async_io

    require_async_io()
