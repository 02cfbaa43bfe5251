"""ZeRO-3 under pipeline schedules: when a stage's parameters are gathered, and for how long.

Written against deepspeed 0.19.8, whose hooks expect one forward and one backward in turn. 1F1B runs forwards and
backwards of different micro-batches between each other and ends with backwards in a row.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from pretrain.engine.nvme_offload import reserve_for_shares
from pretrain.planner.memory import gather_pieces

HELD = "held for the step"


def share_of(groups_for_deepspeed: Any, config: dict[str, Any]) -> Any:
    """A function that leaves of a filled parameter this rank's share, as `deepspeed.zero.Init` does."""
    import deepspeed

    deepspeed.init_distributed(auto_mpi_discovery=False)  # before, it takes every world for a single process
    init = deepspeed.zero.Init(
        data_parallel_group=groups_for_deepspeed.get_data_parallel_group(),
        config_dict_or_path=config,
        mpu=groups_for_deepspeed,
    )
    if init.param_swapper is not None:
        reserve_for_shares(init.param_swapper, groups_for_deepspeed.get_data_parallel_world_size())
    return lambda parameter: init._convert_to_zero_parameters([parameter])


def fetch_without_traces(optimizer: Any) -> None:
    """Fetch parameters where modules ask for them, whatever came before.

    DeepSpeed records the order in which modules run, to fetch ahead of it in later steps. Under 1F1B no step keeps to
    the order of the one before, and validation keeps to none; the record is thrown away twice a step, compared over all
    ranks by a collective, which stages with other modules turn into a hang, and a stale one raises in validation.
    """
    coordinator = optimizer.parameter_offload.get_param_coordinator()
    assert coordinator.is_invalid_trace(), "as it begins"
    coordinator.reset_step = coordinator._clean_inflight_param_registry


def hold(parameters: Iterable[nn.Parameter]) -> None:
    """Gather the parameters and keep them until the optimizer's step, which lets go of all.

    In pieces: DeepSpeed gathers into a buffer and copies the parameters out of it, so that a whole stage at once would
    be there twice.
    """
    wanted: list[Any] = list(parameters)
    for piece in gather_pieces([parameter.ds_numel for parameter in wanted]):
        wanted[piece.start].all_gather_coalesced(wanted[piece]).wait()
    for parameter in wanted:
        # DeepSpeed frees a parameter when no module is using it any more; this user never ends.
        parameter.ds_active_sub_modules.add(HELD)


class BackwardCounts:
    """How many gradients each module waits for before its parameters are freed in a backward pass.

    Each forward sets the count, each backward uses it up; the second of two backwards in a row would count below zero
    and free nothing until the end of the step.
    """

    def __init__(self) -> None:
        self._counts: dict[nn.Module, int] = {}

    def remember(self, chunk: nn.Module) -> None:
        """After each forward of the chunk."""
        for module in chunk.modules():
            if "ds_grads_remaining" in module.__dict__:
                self._counts[module] = module.ds_grads_remaining  # type: ignore[assignment]

    def restore(self) -> None:
        """Before each backward."""
        for module, count in self._counts.items():
            module.ds_grads_remaining = count  # type: ignore[assignment]
