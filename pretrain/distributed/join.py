"""The ranks of a command: they meet, build their process groups, and leave together."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pretrain.config.run import RunConfig
from pretrain.distributed.environment import set_variables
from pretrain.distributed.grid import ParallelLayout, world_from_environment

if TYPE_CHECKING:
    from pretrain.distributed.groups import ProcessGroups
    from pretrain.distributed.runtime import Runtime


def layout_of(config: RunConfig) -> ParallelLayout:
    """The layout that the configuration asks for on the ranks that the launcher started."""
    _, world_size, _ = world_from_environment()
    return ParallelLayout.of(config.model, config.parallel, world_size)


@contextlib.contextmanager
def joined_ranks(
    config: RunConfig, *, seed: int | None = None, stop_requested: Callable[[], bool] = lambda: False
) -> Iterator[tuple["Runtime", "ProcessGroups"]]:
    """Wait for all ranks and build the process groups; they end with the context.

    `seed` of the random states: `run.seed` unless given. This imports torch, and Megatron only after the ranks met: an
    import takes seconds, and the watchdog notices a rank that dies in it only once the ranks have met.
    """
    layout = layout_of(config)
    set_variables(layout)
    from pretrain.distributed.runtime import runtime

    with runtime(config.engine, layout=layout, stop_requested=stop_requested) as here:
        from pretrain.distributed.groups import build_groups

        seed = config.run.seed if seed is None else seed
        yield here, build_groups(layout, seed, here.group_timeout_minutes, here.device, vp=config.parallel.vp)
