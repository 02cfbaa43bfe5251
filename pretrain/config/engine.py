"""How the optimizer step is carried out: ZeRO stage, precision, device."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig:
    """Dynamic loss scaling. Only used with engine.precision=fp16."""

    initial: float
    """Initial loss scale, a power of two."""
    window: int
    """Number of steps without overflow after which the scale is doubled."""
    minimum: float
    """Smallest loss scale. An overflow at this scale counts as a bad step for train.max_bad_steps."""
    hysteresis: int
    """Number of overflows before the scale is lowered. Each later overflow lowers it too, until the scale has doubled
    again."""


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Activation recomputation: activations are computed again in the backward pass instead of stored (Chen et al.
    2016, Korthikanti et al. 2022)."""

    granularity: Literal["none", "selective", "full"]
    """selective: recompute the parts named in `modules`, which need much memory and little compute. full: recompute
    whole layers."""
    modules: tuple[Literal["core_attn", "mlp"], ...]
    """Parts of a layer that granularity=selective recomputes."""
    method: Literal["uniform", "block"]
    """Used by granularity=full. uniform: recompute all layers, in groups of num_layers. block: recompute the first
    num_layers layers of each chunk."""
    num_layers: int
    """Used by granularity=full. Number of layers in a group (uniform), or recomputed in each chunk (block)."""


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """Model state kept in host memory or on NVMe disks instead of on the device. Needs ZeRO stage 1, 2 or 3."""

    optimizer: Literal["none", "cpu", "nvme"]
    """Device of master weights and Adam moments, and of their update. nvme: files in `nvme_path`, read and written in
    each step together with the finished gradients. nvme needs ZeRO-3 and gradients reduced after each micro-batch."""
    params: Literal["none", "cpu", "nvme"]
    """Device of this rank's partitions of the parameters. Needs ZeRO-3. nvme: files in `nvme_path`, read when a
    parameter is gathered. nvme needs parameters gathered for each micro-batch. Partitions under 1 MiB stay in host
    memory."""
    nvme_path: str | None
    """Folder on a fast local disk of each node, for `nvme`. Its files are scratch and are removed when the run ends.
    DeepSpeed's async_io is compiled at the first start, which needs libaio's headers and a C++ compiler."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """ZeRO stage, precision, memory savings and device. The configuration of DeepSpeed is derived from this section."""

    zero_stage: Literal[0, 1, 2, 3]
    """State that is partitioned over data-parallel ranks. 0: nothing. 1: optimizer states. 2: also gradients. 3: also
    parameters."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Precision of forward and backward passes. Master weights and optimizer states are always fp32."""
    grad_accum_dtype: Literal["fp32", "same"]
    """Precision in which gradients are summed over micro-batches and ranks. same: that of engine.precision. With
    offload.optimizer the finished fp32 sum is rounded once to 16 bits at ZeRO-1, and at ZeRO-2 with
    grad_reduction=per_step."""
    grad_reduction: Literal["auto", "per_micro_batch", "per_step"]
    """When ZeRO-2 and ZeRO-3 reduce gradients. per_micro_batch: after each micro-batch, so that a rank only stores its
    partition. per_step: once, so that a rank stores the whole gradient of its stage. auto: per_step if it fits in
    memory."""
    param_gather: Literal["auto", "per_micro_batch", "per_step"]
    """When ZeRO-3 gathers parameters. per_micro_batch: a layer's parameters are gathered for each forward and backward
    pass and freed after it. per_step: the parameters of the stage are gathered once per step. auto: per_step if it fits
    in memory."""
    recompute: RecomputeConfig
    offload: OffloadConfig
    loss_scale: LossScaleConfig
    device: Literal["auto", "cpu", "cuda"]
    """Device to run on. auto: a GPU if PyTorch finds one, else the CPU."""
    cpu_threads: int | None
    """Number of threads of each process on a CPU. null: the machine's cores divided by its number of processes."""
    timeout_minutes: float
    """Timeout of a collective operation. The run ends if one takes longer."""
    init_timeout_minutes: float
    """Timeout for all ranks to connect at start-up, counted from the first rank. After it the missing ranks are named
    and the run ends."""
    link_check: bool
    """Whether the network between nodes is checked and timed before the model is built. No effect on one node."""
    cross_entropy: Literal["plain", "in_place", "chunked"]
    """plain: the loss of PyTorch and Megatron, which also stores fp32 logits. in_place: the loss is computed in fp32
    for a few rows at a time, and the backward pass overwrites the logits with their gradient, so that only logits in
    engine.precision are stored. chunked: logits are computed for a part of the vocabulary at a time, at most 128 MiB,
    and again in the backward pass, so that they are never stored whole; the output layer computes a third more.
    in_place and chunked are compiled if engine.compile is set."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"]
    """PyTorch kernel for attention. auto: PyTorch chooses among the kernels that support the model and device. math:
    writes out the attention scores, and is the reference for the other kernels."""
    compile: Literal["none", "elementwise", "layers"]
    """Use of torch.compile. Graphs are compiled when training starts and cached in `compile/` of the run folder, or in
    TORCHINDUCTOR_CACHE_DIR. elementwise: the operations between matrix products (activation with bias, residual sum
    with bias, rotary embeddings). layers: one graph for each transformer layer, which excludes ZeRO-3, tensor
    parallelism, data.document_mask, selective recomputation and dropout."""
