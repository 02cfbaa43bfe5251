"""Variables that CUDA and the vendors read once, set before the first use of a device."""

import os

from pretrain.distributed.grid import ParallelLayout, world_from_environment


def set_variables(layout: ParallelLayout) -> None:
    """Set the variables that this process needs, unless the user has set them.

    CUDA reads its variables when it is first asked for a device, if only whether there is one, and recent versions make
    a context as soon as a device is set: later is too late. So every verb calls this as soon as it knows its layout.
    """
    rank, world_size, local_rank = world_from_environment()
    # DeepSpeed reads these although the process group exists already.
    defaults = {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_SIZE": os.environ.get("LOCAL_WORLD_SIZE", "1"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    if layout.tp > 1:
        # One queue of work to the GPU keeps a tensor-parallel collective before the product that it overlaps with.
        defaults["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
