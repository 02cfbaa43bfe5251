"""Choose the adapter for a ZeRO stage. This is the only place in the engine that branches on the stage."""

from dataclasses import dataclass

from pretrain.config.engine import EngineConfig
from pretrain.engine.optimizer.base import DeepSpeedOptimizer
from pretrain.engine.optimizer.offloaded import NvmeZero3, OffloadedZero3, OffloadedZero12
from pretrain.engine.optimizer.zero0 import Zero0
from pretrain.engine.optimizer.zero1_2 import Zero12
from pretrain.engine.optimizer.zero3 import Zero3


@dataclass(frozen=True)
class ZeroFamily:
    """A ZeRO stage with its offload, as the rest of the engine sees it."""

    optimizer: type[DeepSpeedOptimizer]
    reduces_in_backward: bool
    """Whether gradients can be reduced after each backward pass, instead of once per step."""


def family_of(engine: EngineConfig) -> ZeroFamily:
    offload = engine.offload.optimizer
    match engine.zero_stage:
        case 0:
            return ZeroFamily(Zero0, reduces_in_backward=False)
        case 1 | 2:
            optimizer = Zero12 if offload == "none" else OffloadedZero12
            return ZeroFamily(optimizer, reduces_in_backward=engine.zero_stage == 2)
        case 3:
            by_place = {"none": Zero3, "cpu": OffloadedZero3, "nvme": NvmeZero3}
            return ZeroFamily(by_place[offload], reduces_in_backward=True)
