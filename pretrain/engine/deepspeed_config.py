"""DeepSpeed's configuration, derived from ours: nobody writes it by hand."""

import math
from typing import Any

from pretrain.config.engine import EngineConfig, OffloadConfig
from pretrain.engine.nvme_offload import BUFFERS, Scratch
from pretrain.planner.memory import REDUCE_BUCKET_ELEMENTS


def deepspeed_config(
    engine: EngineConfig,
    *,
    reduce_per_step: bool,
    micro_batch_size: int,
    clip_grad_norm: float,
    dp: int,
    scratch: Scratch | None = None,
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`, on `dp` data-parallel ranks; `scratch`: where `nvme` is.

    Accumulation is 1 because Megatron's schedule divides the loss by the number of micro-batches already, and
    unmanaged because the schedule, not DeepSpeed's counter, knows where a step ends; but its one reduction per step
    wants the managed way.
    """
    stage, offload = engine.zero_stage, engine.offload
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * dp,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": reduce_per_step,
        # At stage 0 DeepSpeed counts a tied copy twice: there we clip (zero.py).
        "gradient_clipping": 0.0 if stage == 0 else clip_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its CPU Adam is compiled at the first start
        "zero_optimization": {
            "stage": stage,
            # Below stage 2, overlapping and unmanaged accumulation exclude each other (deepspeed 0.19.8).
            "overlap_comm": False,
            # A contiguous buffer has the precision of the parameters and would round the sums (at stages 1 and 2).
            "contiguous_gradients": not sums_in_fp32(engine),
            "reduce_bucket_size": REDUCE_BUCKET_ELEMENTS,
            "allgather_bucket_size": REDUCE_BUCKET_ELEMENTS,
            # No parameter is gathered before its use or stays after it: what is to be kept is held, and DeepSpeed's own
            # ways need a record of the step that 1F1B makes invalid (gathering.py).
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
            # The default replaces torch.nn.functional.linear for the whole process.
            "memory_efficient_linear": False,
            **_offload(offload, scratch),
        },
        "steps_per_print": None,
        # Its clock of samples a second, which nobody reads, waits for the device before each forward pass.
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
        if stage >= 2:
            # Below, this key selects another optimizer class or is refused; there `param.grad_dtype` does it.
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def sums_in_fp32(engine: EngineConfig) -> bool:
    """Whether gradients are summed in another precision than they are computed in."""
    return engine.precision != "fp32" and engine.grad_accum_dtype == "fp32"


def _offload(offload: OffloadConfig, scratch: Scratch | None) -> dict[str, Any]:
    places = {"offload_optimizer": offload.optimizer, "offload_param": offload.params}
    config: dict[str, Any] = {key: {"device": device} for key, device in places.items() if device != "none"}
    if scratch is None:
        return config
    if offload.optimizer == "nvme":
        config["offload_optimizer"] |= {"nvme_path": str(scratch.folder), "buffer_count": BUFFERS}
    if offload.params == "nvme":
        buffers = {"buffer_count": scratch.partitions, "buffer_size": scratch.partition_elements}
        config["offload_param"] |= {"nvme_path": str(scratch.folder), "max_in_cpu": 0, **buffers}
    return config
