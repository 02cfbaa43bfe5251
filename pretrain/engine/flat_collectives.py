"""ZeRO-3's gathers and reductions in a constant number of operations for each parameter, on any number of ranks.

DeepSpeed (0.19.8) cuts each tensor into one slice for each data-parallel rank, and joins the slices: on 4,096 ranks the
host starts a hundred thousand operations to gather 14 parameters. Here two strided copies of each tensor do the same.
Values, buffers and collectives are equal to DeepSpeed's.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def replace_reduce_scatter() -> None:
    """Let ZeRO-3 reduce its buckets by `reduce_scatter_coalesced` of this module."""
    from deepspeed.runtime.zero import stage3

    stage3.reduce_scatter_coalesced = reduce_scatter_coalesced


def reduce_scatter_coalesced(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """This rank's part of the mean of each tensor over the group, by one collective."""
    from deepspeed import comm

    rank, ranks = comm.get_rank(group), comm.get_world_size(group)
    sizes = [-(-tensor.numel() // ranks) for tensor in tensors]
    total = sum(sizes)
    if len(tensors) == 1 and tensors[0].numel() == total * ranks:
        flat = tensors[0].view(-1)
    else:
        flat = torch.empty(total * ranks, dtype=tensors[0].dtype, device=tensors[0].device)
        for columns, tensor in zip(flat.view(ranks, total).split(sizes, dim=1), tensors, strict=True):
            for row, part in zip(_rows(columns, tensor.numel()), _flat_parts(tensor, columns.shape[1]), strict=True):
                row.copy_(part)
    flat.div_(ranks)
    own = flat.narrow(0, rank * total, total)
    comm.reduce_scatter_fn(own, flat, group=group)
    held = [min(max(tensor.numel() - rank * size, 0), size) for tensor, size in zip(tensors, sizes, strict=True)]
    return [part[:number] for part, number in zip(own.split(sizes), held, strict=True)]


def gathers_together(init: Any, gather: Callable[..., Any]) -> Callable[..., Any]:
    """A parameter's `all_gather_coalesced`; `gather` is DeepSpeed's, which still gathers what is alone.

    `init`: the `deepspeed.zero.Init` that partitioned the parameters.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    def all_gather_coalesced(params: Iterable[Any], safe_mode: bool = False, quantize: bool = False) -> Any:
        wanted = sorted(params, key=lambda parameter: parameter.ds_id)
        one_dtype = len({parameter.ds_tensor.dtype for parameter in wanted}) == 1
        one_group = len({id(init.get_partition_dp_group(parameter)) for parameter in wanted}) == 1
        is_plain = one_dtype and one_group and not safe_mode and not quantize
        if len(wanted) < 2 or not is_plain or init._partition_world_size(wanted[0]) == 1:
            return gather(wanted, safe_mode, quantize)
        init._ensure_availability_of_partitioned_params(wanted)
        for parameter in wanted:
            if parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE:
                raise RuntimeError(parameter.ds_summary())
            parameter.ds_status = ZeroParamStatus.INFLIGHT
        return _Gathering(wanted, init)

    return all_gather_coalesced


class _Gathering:
    """Parameters that are on their way."""

    def __init__(self, parameters: list[Any], init: Any) -> None:
        from deepspeed.accelerator import get_accelerator
        from deepspeed.runtime.zero import partition_parameters

        first, device = parameters[0], get_accelerator().current_device_name()
        rank, ranks = init._partition_rank(first), init._partition_world_size(first)
        self.parameters, self.complete = parameters, False
        self._sizes = [parameter.ds_tensor.ds_numel for parameter in parameters]
        total = sum(self._sizes)
        self._flat = torch.empty(total * ranks, dtype=first.ds_tensor.dtype, device=device)
        self._table = self._flat.view(ranks, total)
        own = self._flat.narrow(0, rank * total, total)
        torch.cat([parameter.ds_tensor.to(device) for parameter in parameters], out=own)
        self._handle = partition_parameters._dist_allgather_fn(own, self._flat, init.get_partition_dp_group(first))

    def wait(self, handle_dependency: bool = True) -> None:
        from deepspeed.accelerator import get_accelerator
        from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, ZeroParamStatus

        if self.complete:
            return
        self._handle.wait()
        for columns, parameter in zip(self._table.split(self._sizes, dim=1), self.parameters, strict=True):
            whole = self._flat.new_empty(parameter.ds_numel)
            rows = _rows(columns, parameter.ds_numel)
            for part, row in zip(_flat_parts(whole, columns.shape[1]), rows, strict=True):
                part.copy_(row)
            parameter.data = whole.view(parameter.ds_shape)
            parameter.ds_status = ZeroParamStatus.AVAILABLE
        self.complete = True
        accelerator = get_accelerator()
        if not accelerator.is_synchronized_device():
            if handle_dependency:
                self._flat.record_stream(accelerator.current_stream())
            else:  # the parameter coordinator frees the buffer
                AllGatherCoalescedHandle.data_buffer.append([self._flat])
        del self._flat, self._table


def _rows(columns: Tensor, elements: int) -> list[Tensor]:
    """The first `elements` of a table [ranks, size], as one or two tables."""
    full, rest = divmod(elements, columns.shape[1])
    return [columns[:full], *([columns[full : full + 1, :rest]] if rest else [])]


def _flat_parts(tensor: Tensor, size: int) -> list[Tensor]:
    """The elements of a tensor in the shapes of `_rows`."""
    flat, (full, rest) = tensor.view(-1), divmod(tensor.numel(), size)
    return [flat[: full * size].view(full, size), *([flat[full * size :].view(1, rest)] if rest else [])]
