"""DeepSpeed's configuration, derived from ours: nobody writes it by hand."""

import math
from typing import Any

from pretrain.config.engine import EngineConfig


def deepspeed_config(engine: EngineConfig, *, micro_batch_size: int, clip_grad_norm: float) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.

    Accumulation is 1 because Megatron's schedule divides the loss by the number of micro-batches already, and
    unmanaged because the schedule, not DeepSpeed's counter, knows where a step ends.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 in fp32 DeepSpeed clips but keeps the norm to itself; there we clip (zero.py).
        "gradient_clipping": 0.0 if engine.zero_stage == 0 and engine.precision == "fp32" else clip_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": engine.zero_stage,
            # Below stage 2, overlapping and unmanaged accumulation exclude each other (deepspeed 0.19.8).
            "overlap_comm": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            # The default replaces torch.nn.functional.linear for the whole process.
            "memory_efficient_linear": False,
        },
        "steps_per_print": None,
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
    if engine.precision != "fp32" and engine.zero_stage >= 2:
        # Below stage 2 the same key selects another optimizer class or is refused; there `param.grad_dtype` does it.
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config
