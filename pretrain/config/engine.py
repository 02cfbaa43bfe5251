"""How the optimizer step is carried out: ZeRO stage, precision, device."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig:
    """Dynamic loss scaling; used by precision=fp16 only."""

    initial: float
    """First scale."""
    window: int
    """Steps without overflow after which the scale doubles."""
    minimum: float
    """The scale is never lowered below this; an overflow at it counts against train.max_bad_steps."""
    hysteresis: int
    """The overflow of this number lowers the scale, as does each later one until the scale has doubled again."""


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Activations computed anew in the backward pass instead of kept (Chen et al. 2016, Korthikanti et al. 2022)."""

    granularity: Literal["none", "selective", "full"]
    """selective: the parts named in `modules`, which cost much memory for little work; full: whole layers."""
    modules: tuple[Literal["core_attn", "mlp"], ...]
    """What selective computes anew."""
    method: Literal["uniform", "block"]
    """full: uniform computes all layers anew, in groups of num_layers; block the first num_layers of each chunk."""
    num_layers: int
    """full: layers in a group (uniform) or computed anew in each chunk (block)."""


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """What lives outside the device between uses; ZeRO stages 1 to 3."""

    optimizer: Literal["none", "cpu", "nvme"]
    """Master weights and Adam moments, with their update. nvme: files in `nvme_path`, read, updated and written in each
    step, and the finished gradients too; ZeRO-3, with gradients reduced after each micro-batch."""
    params: Literal["none", "cpu", "nvme"]
    """This rank's partitions of the parameters; ZeRO-3. nvme: files in `nvme_path`, each read when its parameter is
    gathered, with parameters gathered for each micro-batch; partitions under a MiB stay in the host's memory."""
    nvme_path: str | None
    """Folder on a fast disk of each node, for `nvme`; what is written there is scratch and removed when the run ends.
    Needs DeepSpeed's async_io, which is compiled at the first start: libaio's headers and a C++ compiler."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed's part, in our words; its own configuration is derived from this."""

    zero_stage: Literal[0, 1, 2, 3]
    """What is split over data-parallel ranks: 0 nothing, 1 optimizer states, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Arithmetic of forward and backward; master weights and optimizer states are fp32 always."""
    grad_accum_dtype: Literal["fp32", "same"]
    """Sums of gradients over micro-batches and ranks: in fp32, or in the precision itself. With offload.optimizer the
    finished fp32 sum is rounded once to 16 bits at ZeRO 1, and at ZeRO 2 with grad_reduction=per_step."""
    grad_reduction: Literal["auto", "per_micro_batch", "per_step"]
    """ZeRO 2 and 3. per_micro_batch: gradients are reduced to this rank's share after each micro-batch, so the share is
    all that is held; per_step: the stage's whole gradient is held and reduced once. auto: per_step if it fits."""
    param_gather: Literal["auto", "per_micro_batch", "per_step"]
    """ZeRO 3. per_micro_batch: a layer's parameters are gathered for each forward and backward and freed after it;
    per_step: the stage's parameters are gathered once and kept for the step. auto: per_step if it fits."""
    recompute: RecomputeConfig
    offload: OffloadConfig
    loss_scale: LossScaleConfig
    device: Literal["auto", "cpu", "cuda"]
    """auto: a GPU if torch sees one."""
    cpu_threads: int | None
    """Threads of each CPU process; null: the machine's cores shared among its processes."""
    timeout_minutes: float
    """A collective that takes longer ends the run."""
    meeting_minutes: float = 5.0
    """How long the ranks may take to meet when they start, from the first to the last; then the missing ones are named
    and the run ends."""
    link_check: bool = True
    """On several nodes: sums over the network are checked and timed before the model is built."""
    cross_entropy: Literal["plain", "in_place"] = "plain"
    """in_place: the logits, in the precision, are all that is held of [tokens, vocabulary]: the loss is made in fp32
    for some rows at a time, and the backward pass overwrites the logits with their gradient; compiled with what
    `compile` compiles. plain: torch's and Megatron's own, which hold fp32 ones too."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Which of torch's kernels computes attention. auto: torch chooses by the chip among those that can; math writes
    the scores out and is what the others are held against."""
    compile: Literal["none", "elementwise", "layers"] = "none"
    """Graphs by torch.compile, made when training starts and kept in `compile/` of the run folder (or where
    TORCHINDUCTOR_CACHE_DIR says). layers: each transformer layer is one graph; not with ZeRO-3, tensor parallelism,
    documents kept apart, selective recomputation or dropout. elementwise: what lies between its matrix products
    (activation with bias, residual sum with bias, rotary positions) is a graph each; with everything."""
