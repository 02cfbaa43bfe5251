"""Every patch of a vendor's code and every workaround, with version, reason, and the test that needs it.

When a vendor's version is raised, remove each patch in turn: if its test passes without it, delete the patch.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.engine import LossScaleConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.vendor_imports import without_compiler
from pretrain.model.parameters import EXPERTS

DEEPSPEED, MEGATRON, TORCH = "deepspeed 0.19.8", "megatron-core 0.16.1", "torch 2.13"
PARITY = "tests/ranks/test_parity.py::test_equals_one_process_of_plain_torch"


@dataclass(frozen=True)
class VendorPatch:
    """One patch or workaround."""

    changes: str
    """The vendor's attribute."""
    version: str
    """The version that it is written for."""
    where: str
    """Our file and function, or class, that does it."""
    reason: str
    test: str
    """A test that fails without it."""


PATCHES = (
    VendorPatch(
        "ZeRO optimizer .step",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::replace_step",
        "gradients must be completed and measured after DeepSpeed's reduction, part of which happens in engine.step(), "
        "and before its update",
        PARITY,
    ),
    VendorPatch(
        "ZeRO optimizer .finalize_gradient_accumulation_boundary",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::replace_finalize",
        "with states on a disk the gradients are written there before the update begins",
        "tests/ranks/test_nvme_offload.py::test_states_on_a_disk_train_as_in_host_memory",
    ),
    VendorPatch(
        "ZeRO optimizer .get_grad_norm_direct, .complete_grad_norm_calculation_for_cpu_offload, .has_overflow, "
        "._average_expert_grad_norms",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::NormOverride",
        "one collective per parameter group deadlocks if pipeline stages have different groups, and tied copies are "
        "counted twice",
        PARITY,
    ),
    VendorPatch(
        "ZeRO optimizer ._update_scale",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::postpone_scale_update",
        "the scale changes before the gradients are divided by it: if it grew, they get half their size",
        "tests/ranks/test_precision.py::test_gradients_are_unscaled_by_the_scale_of_their_step",
    ),
    VendorPatch(
        "ZeRO optimizer .backward_prologue",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::prepare_each_backward",
        "the second of two backward passes in a row, as in 1F1B, reduces no gradients; scaled gradients from the next "
        "pipeline stage are rejected",
        PARITY,
    ),
    VendorPatch(
        "parameter coordinator .reset_step",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::fetch_without_traces",
        "the recorded order of modules is invalid in 1F1B and in validation, and stages deadlock comparing it",
        "tests/ranks/test_any_layout.py::test_validation_and_logits_do_not_depend_on_the_layout",
    ),
    VendorPatch(
        "fp16 optimizer .loss_scaler",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::replace_loss_scaler",
        "the scaler at ZeRO-0 has no hysteresis",
        "tests/ranks/test_precision.py::test_fp16_finds_its_loss_scale_and_then_trains",
    ),
    VendorPatch(
        "loss_scaler.raise_error_at_min_scale",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::never_fail_at_min_scale",
        "an overflow at the smallest loss scale ends the run instead of skipping the step",
        "tests/ranks/test_precision.py::test_an_overflow_at_the_minimum_loss_scale_skips_the_step",
    ),
    VendorPatch(
        "deepspeed.ops.__compatible_ops__, accelerator.is_fp16_supported",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::import_deepspeed",
        "the first start on a CPU compiles an op that only inference uses; fp16 is rejected on most CPUs",
        "tests/ranks/test_precision.py::test_16_bits_stay_close_to_fp32",
    ),
    VendorPatch(
        "deepspeed.utils.groups._EXPERT_PARALLEL_GROUP, ._EXPERT_DATA_PARALLEL_GROUP",
        DEEPSPEED,
        "pretrain/engine/vendor_patches.py::show_experts",
        "below ZeRO-3 it reduces experts over their own group only if it finds a layer of its own class",
        PARITY,
    ),
    VendorPatch(
        "parameter .contiguous while it is partitioned; zero.Init's broadcast",
        DEEPSPEED,
        "pretrain/engine/param_gather.py::zero3_partitioner",
        "each rank would need all values of a parameter, and one rank would send them to all",
        "tests/ranks/test_param_gather.py::test_building_holds_the_share_and_one_tensors_share_twice",
    ),
    VendorPatch(
        "module.ds_grads_remaining",
        DEEPSPEED,
        "pretrain/engine/param_gather.py::BackwardCounts",
        "the second of two backward passes in a row frees no parameters",
        "tests/ranks/test_param_gather.py::test_per_micro_batch_gathering_keeps_few_layers",
    ),
    VendorPatch(
        "parameter.ds_active_sub_modules",
        DEEPSPEED,
        "pretrain/engine/param_gather.py::gather_until_step",
        "its own ways to keep parameters gathered need the recorded order of modules",
        "tests/ranks/test_param_gather.py::test_per_step_gathering_gathers_once",
    ),
    VendorPatch(
        "stage3.reduce_scatter_coalesced",
        DEEPSPEED,
        "pretrain/engine/flat_collectives.py::replace_reduce_scatter",
        "the host starts an operation for each pair of a parameter and a data-parallel rank in every reduction",
        "tests/ranks/test_dry_run.py::test_the_work_of_the_host_ignores_world_size",
    ),
    VendorPatch(
        "parameter.all_gather_coalesced",
        DEEPSPEED,
        "pretrain/engine/flat_collectives.py::gathers_together",
        "the host starts an operation for each pair of a parameter and a data-parallel rank in every gather",
        "tests/ranks/test_dry_run.py::test_the_work_of_the_host_ignores_world_size",
    ),
    VendorPatch(
        "parameter swapper .reserve_partitioned_swap_space",
        DEEPSPEED,
        "pretrain/engine/nvme_offload.py::reserve_for_shares",
        "the buffer for updated parameters is sized for whole parameters instead of this rank's parts",
        "tests/ranks/test_nvme_offload.py::test_parameters_on_a_disk_train_as_in_memory",
    ),
    VendorPatch(
        "lock of torch.utils.cpp_extension",
        TORCH,
        "pretrain/engine/nvme_offload.py::require_async_io",
        "it stays behind if a process is killed while it compiles, and all later ones wait forever",
        "tests/ranks/test_nvme_offload.py::test_states_on_a_disk_train_as_in_host_memory",
    ),
    VendorPatch(
        "MLP's second output",
        MEGATRON,
        "pretrain/model/feed_forward.py::FeedForward",
        "a parameter that is an output of a recomputed function makes the backward pass loop forever",
        "tests/ranks/test_recompute.py::test_recomputed_activations_change_no_bit",
    ),
    VendorPatch(
        "MLP.forward",
        MEGATRON,
        "pretrain/model/feed_forward.py::FeedForward",
        "SwiGLU keeps 5 matrices as wide as its output for the backward pass, of which 3 suffice",
        "tests/ranks/test_saved.py::test_a_layer_keeps_only_what_backward_reads",
    ),
    VendorPatch(
        "SelfAttention.forward, .get_query_key_value_tensors",
        MEGATRON,
        "pretrain/model/self_attention.py::SelfAttention",
        "values are a view that keeps the whole matrix of queries, keys and values in memory",
        "tests/ranks/test_saved.py::test_a_layer_keeps_only_what_backward_reads",
    ),
    VendorPatch(
        "RotaryEmbedding.forward",
        MEGATRON,
        "pretrain/model/rotary.py::RotaryTables",
        "each layer makes and keeps tables of cosines and sines of its own",
        "tests/ranks/test_saved.py::test_a_layer_keeps_only_what_backward_reads",
    ),
    VendorPatch(
        "GPTModel.setup_embeddings_and_output_layer",
        MEGATRON,
        "pretrain/model/gpt.py::Chunk",
        "it copies tied embeddings by a collective on weights that do not exist yet",
        PARITY,
    ),
    VendorPatch(
        "WrappedTorchNorm",
        MEGATRON,
        "pretrain/model/specs.py::Norm",
        "it rejects sequence parallelism, which needs nothing but a mark on the parameters",
        PARITY,
    ),
    VendorPatch(
        "warnings in tensor_parallel.layers and megatron.core.utils",
        MEGATRON,
        "pretrain/model/compile.py::compile_stage",
        "every linear layer warns, which breaks the compiled graph",
        "tests/ranks/test_compile.py::test_layers_share_one_graph_and_no_step_recompiles",
    ),
    VendorPatch(
        "torch.cuda calls of megatron.core",
        MEGATRON,
        "pretrain/distributed/megatron_on_cpu.py::redirect",
        "it creates tensors and reads random states on a GPU, which may be missing",
        PARITY,
    ),
)


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed without its log messages, ready for this device."""
    with without_compiler():
        import deepspeed
        from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401  # DeepSpeed imports it later in any case

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type != "cuda":
        # DeepSpeed would compile a shared-memory op on its first CPU run: half a minute, and it needs a compiler. It
        # looks up the op in this cache (deepspeed/ops/__init__.py) and continues without it.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
        # It rejects fp16 if the CPU has no instructions for it, but torch computes it, if slowly.
        deepspeed.get_accelerator().is_fp16_supported = lambda: True
    return deepspeed


def replace_step(optimizer: Any, step: Callable[..., None]) -> Callable[..., Any]:
    """Make DeepSpeed's engine call `step`; returns the optimizer's own method."""
    own: Callable[..., Any] = optimizer.step
    optimizer.step = step
    return own


def replace_finalize(optimizer: Any, finalize: Callable[..., None]) -> Callable[..., Any]:
    """Make DeepSpeed's engine call `finalize` after the last backward pass; returns the optimizer's own method."""
    own: Callable[..., Any] = optimizer.finalize_gradient_accumulation_boundary
    optimizer.finalize_gradient_accumulation_boundary = finalize
    return own


class NormOverride:
    """Makes DeepSpeed use our gradient norm. It combines the norms of its parameter groups: ours for the first, else 0.

    The overflow check uses our norm too. Otherwise DeepSpeed would read all gradients again and synchronize with the
    device.
    """

    def __init__(self, optimizer: Any, method: str) -> None:
        assert hasattr(optimizer, method) and hasattr(optimizer, "has_overflow")
        self._norm, self._is_first = math.nan, True
        setattr(optimizer, method, self._norm_of_group)
        optimizer.has_overflow = lambda *_, **__: not math.isfinite(self._norm)
        if hasattr(optimizer, "_average_expert_grad_norms"):  # ours is that of all ranks already
            optimizer._average_expert_grad_norms = lambda _: None

    def set(self, norm: float) -> None:
        """Set the norm before each step."""
        self._norm, self._is_first = norm, True

    def _norm_of_group(self, *_: Any, **__: Any) -> Tensor:
        norm = self._norm if self._is_first else 0.0
        self._is_first = False
        return torch.tensor(norm)


def postpone_scale_update(optimizer: Any) -> Callable[[bool], None]:
    """Keep the loss scale until the returned function is called with the step's overflow.

    DeepSpeed changes the scale before the update. If it grew, and nothing is clipped, gradients get half their size.
    """
    update: Callable[[bool], None] = optimizer._update_scale
    optimizer._update_scale = lambda *_: None
    return update


def prepare_each_backward(engine: Any, *, reduce_per_step: bool, also: Callable[[], None] = lambda: None) -> None:
    """Before each backward pass, reset DeepSpeed's state to that after a forward pass.

    In a pipeline the previous forward pass was another micro-batch's. `also` is called too.
    """
    optimizer = engine.optimizer
    own = optimizer.backward_prologue

    def backward_prologue(*args: Any, **kwargs: Any) -> Any:
        # Inner pipeline stages receive scaled gradients, which DeepSpeed rejects as unscaled.
        engine._manual_backward_expected = True
        if not reduce_per_step:
            # Otherwise the second of two backward passes in a row reduces nothing, without an error.
            optimizer.clear_backward_seen_flag()
        also()
        return own(*args, **kwargs)

    optimizer.backward_prologue = backward_prologue


def fetch_without_traces(optimizer: Any) -> None:
    """Fetch parameters when modules ask for them, in any order.

    DeepSpeed records the order in which modules run, to prefetch in later steps. In 1F1B no step has the order of the
    previous one, and validation has none: the record is discarded twice per step, compared over all ranks by a
    collective, in which stages with different modules deadlock, and an outdated one raises in validation.
    """
    coordinator = optimizer.parameter_offload.get_param_coordinator()
    assert coordinator.is_invalid_trace(), "no order is recorded at the start"
    coordinator.reset_step = coordinator._clean_inflight_param_registry


def replace_loss_scaler(optimizer: Any, config: LossScaleConfig) -> None:
    """Give ZeRO-0 the dynamic loss scale that the other stages have: its own has no hysteresis."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    optimizer.loss_scaler = DynamicLossScaler(
        init_scale=config.initial,
        scale_window=config.window,
        min_scale=config.minimum,
        delayed_shift=config.hysteresis,
        consecutive_hysteresis=False,
    )
    optimizer._update_scale = optimizer.loss_scaler.update_scale


def never_fail_at_min_scale(optimizer: Any) -> None:
    """Skip steps that overflow at the smallest loss scale, instead of ending the run."""
    optimizer.loss_scaler.raise_error_at_min_scale = False


def show_experts(stage: nn.Module, groups: ProcessGroups) -> None:
    """Let DeepSpeed know, below ZeRO-3, that experts are held by other ranks than the rest of the stage.

    It looks for a module of its own class, and for the groups among its own.
    """
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups as vendor_groups

    class Mark(MoE):
        def __init__(self, num_experts: int) -> None:
            nn.Module.__init__(self)
            self.num_experts = num_experts

        def set_deepspeed_parallelism(self, *_: object, **__: object) -> None:
            """Our groups exist already."""

    stage.expert_mark = Mark(groups.layout.ep)
    vendor_groups._EXPERT_PARALLEL_GROUP[EXPERTS] = groups.expert_model
    vendor_groups._EXPERT_DATA_PARALLEL_GROUP[EXPERTS] = groups.expert_data
