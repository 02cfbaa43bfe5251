"""Behaviours of training programs: how they move bytes, communicate and start kernels around matrix products.

This program is one behaviour. The programs behind published step times are others: with their behaviours the same model
is checked against those (tests/benchmarks/planned_time.py). `Constants` are shared by all.
"""

from dataclasses import dataclass
from typing import Literal

from pretrain.config.engine import EngineConfig
from pretrain.planner.time.attention import Kernel
from pretrain.planner.time.hardware import Kind


@dataclass(frozen=True)
class Constants:
    """Numbers of the model that no source publishes. All were fitted together on published step times."""

    straggling: float = 0.01
    """Share that a step grows by with every 2^10 ranks, because all wait for the slowest."""
    eager_bytes: float = 2.87
    """Bytes of elementwise operations, one kernel each, over those of fused ones."""
    compiled_bytes: float = 1.63
    """The same under torch.compile."""
    narrow_heads_gpu: float = 1.0
    """Rate of fused attention with heads of 64 columns over that with 128."""
    optimizer_bytes: float = 40.0
    """Bytes that the optimizer moves for each parameter: gradients, masters, moments, 16-bit copies."""
    eager_loss_bytes: float = 28.0
    """Bytes for each logit of an unfused cross-entropy, forward and backward."""
    megatron_bytes: float = 0.62
    """The same in Megatron-LM with its fused kernels."""
    megatron_host: float = 1.89
    """Host time of a layer in Megatron-LM, over that of the machine's record."""
    megatron_eager_softmax_us: float = 340.0
    megatron_collective_us: float = 13.6
    megatron_micro_batch_us: float = 1440.0
    host_overlap_power: float = 4.7
    """Exponent of the norm that adds the device's and the host's time of a pass. Infinite: the longer of both."""
    overlap_slowdown: float = 0.25
    """Share of hidden communication that still lengthens the step, because it takes bandwidth and multiprocessors."""


CONSTANTS = Constants()


@dataclass(frozen=True)
class Behaviour:
    """How one training program works."""

    name: str
    elementwise: float
    """Bytes of norms, activations and sums over those of fused operations."""
    loss_bytes: float
    """Bytes for each logit in the cross-entropy."""
    attention: Kernel
    reduction: Literal["after", "overlapped"]
    """Whether gradients are reduced behind the last backward pass, or after it."""
    gather: Literal["serial", "overlapped"]
    """Whether ZeRO-3 gathers and reduces behind the passes."""
    optimizer_bytes: float
    reduced_bytes: float | None = None
    """Bytes of a gradient element when it is reduced. None: those of the gradient sum."""
    accumulates: bool = True
    """Whether weight gradients are added to fp32 sums within the product."""
    stops_early: bool = False
    """Whether recomputation of a layer stops before its last product, which no gradient needs."""
    host_layer: float = 1.0
    """Time of the host for a layer, over that of the machine's record."""
    host_collective_us: float = 0.0
    """Microseconds of the host that each further rank of the group adds to a collective of a layer."""
    host_eager_softmax_us: float = 0.0
    """Microseconds of the host for an unfused softmax, where the fused one does not take the shape."""
    host_micro_batch_us: float = 0.0
    host_overlaps: bool = True
    """Whether the host starts kernels while earlier ones run."""
    splits_sends: bool = True
    """Whether tensor-parallel ranks each send a part between stages."""
    nics_per_ring: float | None = None


def behaviour_of(engine: EngineConfig, kind: Kind, constants: Constants = CONSTANTS) -> Behaviour:
    """The behaviour of this program with this engine, on a GPU or a CPU."""
    kernels: dict[str, Kernel] = {"auto": "fa2", "flash": "fa2", "cudnn": "cudnn", "efficient": "efficient"}
    attention = "cpu" if kind == "cpu" else kernels.get(engine.attention, "unfused")
    if kind == "gpu" and engine.precision == "fp32":
        attention = "unfused"  # the rates of fused kernels are those of 16 bits
    elementwise = {
        "none": constants.eager_bytes,
        "elementwise": (constants.eager_bytes + constants.compiled_bytes) / 2,
        "layers": constants.compiled_bytes,
    }
    loss = {"plain": constants.eager_loss_bytes, "in_place": 24.0 if engine.compile == "none" else 8.0}
    host = {"none": 1.0, "elementwise": 0.9, "layers": 0.3}
    return Behaviour(
        name="pretrain",
        elementwise=elementwise[engine.compile],
        loss_bytes=loss.get(engine.cross_entropy, 24.0),
        attention=attention,
        reduction="after",  # DeepSpeed's overlap_comm is off
        gather="serial",  # and so is its prefetching
        optimizer_bytes=constants.optimizer_bytes + (16 if engine.zero_stage == 0 else 8),
        accumulates=False,
        stops_early=False,
        host_layer=host[engine.compile],
        host_overlaps=kind == "gpu",
        splits_sends=False,
    )
