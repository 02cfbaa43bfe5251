"""When ZeRO-3 gathers parameters under pipeline schedules, and when it frees them.

Written for deepspeed 0.19.8. Its hooks expect forward and backward passes in turn. 1F1B interleaves the forward and
backward passes of different micro-batches, and ends with several backward passes in a row.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.engine.flat_collectives import gathers_together, replace_reduce_scatter
from pretrain.engine.nvme_offload import reserve_for_shares
from pretrain.planner.memory import gather_pieces

GATHERED_UNTIL_STEP = "gathered until the step"


def zero3_partitioner(groups_for_deepspeed: Any, config: dict[str, Any]) -> Any:
    """A function that reduces a parameter to this rank's part, as `deepspeed.zero.Init` does: `build_stage` calls it.

    DeepSpeed would send the whole parameter from one rank to all. Here each rank computes its own part alone.
    """
    import deepspeed

    deepspeed.init_distributed(auto_mpi_discovery=False)  # without it, DeepSpeed assumes a single process
    init = deepspeed.zero.Init(
        data_parallel_group=groups_for_deepspeed.get_data_parallel_group(),
        config_dict_or_path=config,
        mpu=groups_for_deepspeed,
    )
    if init.param_swapper is not None:
        reserve_for_shares(init.param_swapper, groups_for_deepspeed.get_data_parallel_world_size())
    replace_reduce_scatter()

    def partition(parameter: Any, write: Callable[..., None]) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.all_gather_coalesced = gathers_together(init, parameter.all_gather_coalesced)
        parameter.contiguous = lambda: Unwritten(parameter.dtype, write)
        parameter.partition()
        del parameter.contiguous

    return partition


class Unwritten:
    """Stands for a parameter's whole values where DeepSpeed takes this rank's range out of them."""

    def __init__(self, dtype: torch.dtype, write: Callable[..., None]) -> None:
        self._dtype, self._write = dtype, write

    def view(self, _: int) -> "Unwritten":
        return self

    def narrow(self, _: int, start: int, length: int) -> Tensor:
        values = torch.empty(length, dtype=self._dtype)
        self._write(values, start=start)
        return values


def gather_until_step(parameters: Iterable[nn.Parameter]) -> None:
    """Gather the parameters. They stay gathered until the optimizer step frees them.

    They are gathered in several calls: DeepSpeed gathers into a buffer and copies the parameters out of it, so a single
    call would need twice the memory.
    """
    wanted: list[Any] = list(parameters)
    for piece in gather_pieces([parameter.ds_numel for parameter in wanted]):
        wanted[piece.start].all_gather_coalesced(wanted[piece]).wait()
    for parameter in wanted:
        # DeepSpeed frees a parameter when no module uses it any more. This marker is never removed by a module.
        parameter.ds_active_sub_modules.add(GATHERED_UNTIL_STEP)


class BackwardCounts:
    """The number of gradients that each module awaits before its parameters are freed in a backward pass.

    Each forward pass sets the count and each backward pass decrements it to zero. The second of two backward passes in
    a row would count below zero and free nothing until the end of the step.
    """

    def __init__(self) -> None:
        self._counts: dict[nn.Module, int] = {}

    def remember(self, chunk: nn.Module) -> None:
        """Call after each forward pass of the chunk."""
        for module in chunk.modules():
            if "ds_grads_remaining" in module.__dict__:
                self._counts[module] = module.ds_grads_remaining  # type: ignore[assignment]

    def restore(self) -> None:
        """Call before each backward pass."""
        for module, count in self._counts.items():
            module.ds_grads_remaining = count  # type: ignore[assignment]
