"""Derive DeepSpeed's configuration from ours."""

import math
from typing import Any

from pretrain.config.engine import EngineConfig, OffloadConfig
from pretrain.engine.nvme_offload import BUFFERS, NvmeScratch
from pretrain.engine.optimizer.families import family_of
from pretrain.planner.passes.gradients import REDUCE_BUCKET_ELEMENTS


def deepspeed_config(
    engine: EngineConfig,
    *,
    reduce_per_step: bool,
    micro_batch_size: int,
    clip_grad_norm: float,
    dp: int,
    scratch: NvmeScratch | None = None,
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize` on `dp` data-parallel ranks; `scratch`: the folder for offload to a disk.

    Gradient accumulation is 1 because Megatron's schedule already divides the loss by the number of micro-batches. It
    is unmanaged because the schedule, not DeepSpeed's counter, decides when a step ends; but DeepSpeed's single
    reduction per step requires managed accumulation.
    """
    family = family_of(engine)
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * dp,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": reduce_per_step,
        "gradient_clipping": clip_grad_norm if family.optimizer.deepspeed_clips else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its CPU Adam is compiled at the first start
        "zero_optimization": {
            "stage": engine.zero_stage,
            # Below ZeRO-2 it excludes unmanaged accumulation (deepspeed 0.19.8).
            "overlap_comm": False,
            # A contiguous buffer has the precision of the parameters, and would round the sums at ZeRO-1 and 2.
            "contiguous_gradients": not sums_in_fp32(engine),
            "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
            "allgather_bucket_size": REDUCE_BUCKET_ELEMENTS,
            # Parameters are gathered at their use and freed after it, unless param_gather.py keeps them gathered.
            # DeepSpeed's own prefetching needs a record of the step, which 1F1B makes invalid.
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
            # The default replaces torch.nn.functional.linear for the whole process.
            "memory_efficient_linear": False,
            **_offload(engine.offload, scratch),
        },
        "steps_per_print": None,
        # DeepSpeed's clock, which is not used, waits for the device before each forward pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if engine.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if engine.precision == "fp16":
        scale = engine.loss_scale
        config["fp16"] = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": int(math.log2(scale.initial)),
            "loss_scale_window": scale.window,
            "min_loss_scale": scale.minimum,
            "hysteresis": scale.hysteresis,
        }
    if sums_in_fp32(engine):
        config["communication_data_type"] = "fp32"
        if family.reduces_in_backward:
            # At ZeRO-1 this key selects another optimizer class, and at ZeRO-0 it is rejected. There
            # `parameter.grad_dtype` does the same (zero.py).
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def sums_in_fp32(engine: EngineConfig) -> bool:
    """Whether gradients are summed in fp32 but computed in 16 bits."""
    return engine.precision != "fp32" and engine.grad_accum_dtype == "fp32"


def _offload(offload: OffloadConfig, scratch: NvmeScratch | None) -> dict[str, Any]:
    devices = {"offload_optimizer": offload.optimizer, "offload_param": offload.params}
    config: dict[str, Any] = {key: {"device": device} for key, device in devices.items() if device != "none"}
    if scratch is None:
        return config
    if offload.optimizer == "nvme":
        config["offload_optimizer"] |= {"nvme_path": str(scratch.folder), "buffer_count": BUFFERS}
    if offload.params == "nvme":
        buffers = {"buffer_count": scratch.partitions, "buffer_size": scratch.partition_elements}
        config["offload_param"] |= {"nvme_path": str(scratch.folder), "max_in_cpu": 0, **buffers}
    return config
