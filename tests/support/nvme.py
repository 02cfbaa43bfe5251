"""Find out whether DeepSpeed's async_io is compiled. Compiling takes minutes, so tests skip without it."""

import functools
import os
from pathlib import Path


@functools.cache
def why_no_async_io() -> str | None:
    """The reason to skip, or None if it is compiled. `python -m tests.support.nvme` compiles it."""
    from torch.utils.cpp_extension import _get_build_directory

    if (Path(_get_build_directory("async_io", verbose=False)) / "async_io.so").exists():
        return None
    return "DeepSpeed's async_io is not compiled on this machine; run python -m tests.support.nvme (minutes)"


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from pretrain.engine.nvme_offload import require_async_io

    require_async_io()
