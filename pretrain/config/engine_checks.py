"""Rules of `engine`: loss scale, recomputation, the modes of ZeRO, offload and the attention kernel."""

import math
from collections.abc import Iterator

from pretrain.config.attention_kernels import attention_problems, attention_request
from pretrain.config.engine import EngineConfig
from pretrain.config.errors import Problem
from pretrain.config.layout_checks import chunks_or_none
from pretrain.config.numbers import divisors, either, nearest
from pretrain.config.run import RunConfig


def engine_problems(config: RunConfig) -> Iterator[Problem]:
    """Every broken rule of the section."""
    yield from _loss_scale(config)
    yield from _recompute(config)
    yield from _modes(config.engine)
    yield from _offload(config.engine)
    yield from _attention(config)
    yield from _experts(config)
    yield from _muon(config)


def _muon(config: RunConfig) -> Iterator[Problem]:
    place = config.engine.offload.optimizer
    if config.optim.name == "muon" and place != "none":
        rule = "optim=muon multiplies whole matrices on the device, where its states must be"
        yield Problem("engine.offload.optimizer", place, rule, "set it to none, or optim=adamw")


def _loss_scale(config: RunConfig) -> Iterator[Problem]:
    scale = config.engine.loss_scale.initial
    if scale < 1 or not math.log2(scale).is_integer():
        yield Problem("engine.loss_scale.initial", scale, "must be a power of two", "choose 65536")


def _recompute(config: RunConfig) -> Iterator[Problem]:
    recompute, chunks = config.engine.recompute, chunks_or_none(config)
    if recompute.granularity == "selective" and not recompute.modules:
        rule = "engine.recompute.granularity=selective needs at least one"
        yield Problem("engine.recompute.modules", recompute.modules, rule, "choose [core_attn], [mlp] or both")
    if recompute.granularity != "full" or recompute.num_layers < 1 or chunks is None:
        return
    sizes = sorted({chunk.num_layers for chunk in chunks if chunk.num_layers})
    # Megatron's uniform groups run past the end of a chunk that they don't divide; its block ends with the chunk.
    if recompute.method == "uniform" and any(size % recompute.num_layers for size in sizes):
        rule = f"engine.recompute.method=uniform: must divide the layers of each chunk, {_and(sizes)}"
        fitting = nearest(divisors(math.gcd(*sizes)), recompute.num_layers)
        yield Problem("engine.recompute.num_layers", recompute.num_layers, rule, f"choose {either(fitting)}")
    if recompute.method == "block" and recompute.num_layers > max(sizes):
        rule = "engine.recompute.method=block: is more than any chunk has layers"
        yield Problem("engine.recompute.num_layers", recompute.num_layers, rule, f"choose at most {max(sizes)}")


def _modes(engine: EngineConfig) -> Iterator[Problem]:
    stage = engine.zero_stage
    if engine.grad_reduction == "per_micro_batch" and stage < 2:
        rule = f"engine.zero_stage={stage} holds whole gradients and reduces them once per step"
        yield Problem("engine.grad_reduction", engine.grad_reduction, rule, "set it to auto, or engine.zero_stage to 2")
    if engine.param_gather != "auto" and stage < 3:
        rule = f"engine.zero_stage={stage} holds whole parameters: there is nothing to gather"
        yield Problem("engine.param_gather", engine.param_gather, rule, "set it to auto, or engine.zero_stage=3")


def _offload(engine: EngineConfig) -> Iterator[Problem]:
    stage, offload = engine.zero_stage, engine.offload
    for name, place, at_least in (
        ("optimizer", offload.optimizer, 3 if offload.optimizer == "nvme" else 1),
        ("params", offload.params, 3),
    ):
        if place != "none" and stage < at_least:
            above = f"engine.zero_stage={at_least}" if at_least == 3 else f"engine.zero_stage={at_least} or above"
            rule = f"needs {above}; the stage is {stage}"
            yield Problem(f"engine.offload.{name}", place, rule, f"set {above}, or engine.offload.{name}=none")
    if "nvme" in (offload.optimizer, offload.params) and offload.nvme_path is None:
        rule = "nvme in engine.offload needs a folder on a disk of each node"
        yield Problem("engine.offload.nvme_path", None, rule, "set it, or cpu for nvme")
    if offload.optimizer == "nvme" and engine.grad_reduction == "per_step":
        rule = "engine.offload.optimizer=nvme needs gradients reduced after each micro-batch"
        yield Problem("engine.grad_reduction", "per_step", rule, "set it to auto, or engine.offload.optimizer=cpu")
    if offload.params == "nvme" and engine.param_gather == "per_step":
        rule = "engine.offload.params=nvme needs parameters gathered for each micro-batch"
        yield Problem("engine.param_gather", "per_step", rule, "set it to auto, or engine.offload.params=cpu")


def _experts(config: RunConfig) -> Iterator[Problem]:
    engine, parallel, optim = config.engine, config.parallel, config.optim
    if not config.model.experts.count:
        return
    if optim.name == "muon":
        yield Problem("optim.name", "muon", "does not divide stacked experts into matrices", "set optim=adamw")
    for key in ("base_width", "base_depth"):
        if (base := getattr(optim, key)) is not None:
            rule = "its rules are not known for experts"
            yield Problem(f"optim.{key}", base, rule, f"set optim.{key}=null, or model.experts.count=0")
    if parallel.ep * parallel.etp == parallel.tp:
        return
    if engine.zero_stage == 2 and engine.precision != "fp32" and engine.grad_accum_dtype == "fp32":
        rule = "DeepSpeed sums the gradients of experts in 16 bits there"
        yield Problem("engine.zero_stage", 2, rule, "set it to 1 or 3, or engine.grad_accum_dtype=same")


def _attention(config: RunConfig) -> Iterator[Problem]:
    """If engine.device=auto, the kernel is checked later, when the device is known (engine/build.py)."""
    model, device = config.model, config.engine.device
    if device != "auto" and model.num_heads > 0:
        yield from attention_problems(
            config.engine, attention_request(model, config.engine, device, documents=config.data.document_mask)
        )


def _and(values: list[int]) -> str:
    return f"{', '.join(map(str, values[:-1]))} and {values[-1]}" if len(values) > 1 else str(values[0])
