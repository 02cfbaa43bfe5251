"""Live process groups, and the face that DeepSpeed asks them through."""

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.vendor_imports import megatron_imports


@dataclass(frozen=True)
class ProcessGroups:
    """The groups of this rank, and its place in each."""

    layout: ParallelLayout
    device: torch.device
    """The device of the tensors that the groups take, except those groups that are on the CPU."""
    tp_rank: int
    dp_rank: int
    pp_rank: int
    tensor_parallel: dist.ProcessGroup
    data_parallel: dist.ProcessGroup
    """The ranks that ZeRO divides a stage over: context-parallel peers are among them."""
    context_parallel: dist.ProcessGroup
    """The ranks that share samples."""
    pipeline_parallel: dist.ProcessGroup
    model_parallel: dist.ProcessGroup
    """Tensor- and pipeline-parallel peers together: the ranks that hold one copy of the model."""
    embedding: dist.ProcessGroup | None
    """The first and the last of several stages, which hold a copy of a tied embedding each; None on other stages."""
    expert_model: dist.ProcessGroup
    """The ranks that the experts of a layer are divided among."""
    expert_data: dist.ProcessGroup
    """The ranks that hold the same experts."""
    world: dist.ProcessGroup
    control: dist.ProcessGroup
    """All ranks, on the CPU: small messages that must not wait for the GPU."""
    saving: dist.ProcessGroup
    """All ranks, on the CPU: only for the thread that writes checkpoints."""

    @property
    def cp_rank(self) -> int:
        return self.dp_rank % self.layout.cp

    @property
    def replica(self) -> int:
        """Which samples this rank has, among those of `layout.replicas`."""
        return self.dp_rank // self.layout.cp

    @property
    def counts_samples(self) -> bool:
        """Whether this rank counts the samples of its batch: one of the ranks that have the same ones does."""
        return self.tp_rank == self.pp_rank == self.cp_rank == 0


def build_groups(
    layout: ParallelLayout, seed: int, timeout_minutes: float, device: torch.device, *, vp: int = 1
) -> ProcessGroups:
    """Make all groups, for `vp` chunks on each stage; a collective call, and the last one before the model.

    Megatron's random states are seeded here too: its rule is one stream per tensor-parallel rank, and the
    data-parallel rank has to be added by the caller.
    """
    with megatron_imports():
        from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=vp if vp > 1 else None,
        context_parallel_size=layout.cp,
        distributed_timeout_minutes=timeout_minutes,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        create_gloo_process_groups=False,  # for Megatron's own optimizer and checkpoints
    )
    tp_rank, dp_rank, pp_rank = layout.coordinates(dist.get_rank())
    tensor_parallel.model_parallel_cuda_manual_seed(seed + 10_000 * dp_rank + 100 * pp_rank, force_reset_rng=True)
    at_an_end = layout.pp > 1 and pp_rank in (0, layout.pp - 1)
    world = dist.group.WORLD
    of_host = partial(dist.new_group, backend="gloo", timeout=timedelta(minutes=timeout_minutes))
    control = world if device.type == "cpu" else of_host()
    assert world is not None and control is not None
    return ProcessGroups(
        layout=layout,
        device=device,
        tp_rank=tp_rank,
        dp_rank=dp_rank,
        pp_rank=pp_rank,
        tensor_parallel=parallel_state.get_tensor_model_parallel_group(),
        data_parallel=parallel_state.get_data_parallel_group(with_context_parallel=True),
        context_parallel=parallel_state.get_context_parallel_group(),
        pipeline_parallel=parallel_state.get_pipeline_model_parallel_group(),
        model_parallel=parallel_state.get_model_parallel_group(),
        embedding=parallel_state.get_embedding_group() if at_an_end else None,
        expert_model=parallel_state.get_expert_tensor_and_model_parallel_group(),
        expert_data=parallel_state.get_expert_data_parallel_group(),
        world=world,
        control=control,
        saving=of_host(),
    )


def ranks_of_stage() -> dist.ProcessGroup:
    """The group of all ranks of this rank's pipeline stage, which together hold its parameters."""
    from megatron.core import parallel_state

    group: dist.ProcessGroup = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    return group


def forget_groups() -> None:
    """Let a process build another layout after this one."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()


class DeepSpeedGroups:
    """The `mpu` of DeepSpeed: the data-parallel group, and TP x PP as the model-parallel one.

    The model-parallel *rank* is the tensor-parallel rank: DeepSpeed counts replicated parameters in the global
    norm only if it is 0, on every pipeline stage.
    """

    def __init__(self, groups: ProcessGroups) -> None:
        self.groups = groups

    def get_data_parallel_group(self) -> Any:
        return self.groups.data_parallel

    def get_data_parallel_rank(self) -> int:
        return self.groups.dp_rank

    def get_data_parallel_world_size(self) -> int:
        return self.groups.layout.dp

    def get_model_parallel_group(self) -> Any:
        return self.groups.model_parallel

    def get_model_parallel_world_size(self) -> int:
        return self.groups.layout.tp * self.groups.layout.pp

    def get_model_parallel_rank(self) -> int:
        return self.groups.tp_rank

    get_tensor_model_parallel_rank = get_model_parallel_rank
