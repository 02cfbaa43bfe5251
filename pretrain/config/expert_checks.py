"""Rules of a model with experts, and of their split over ranks."""

import dataclasses
from collections.abc import Iterator

from pretrain.config.errors import Problem
from pretrain.config.model import ModelConfig
from pretrain.config.numbers import divisors, either, nearest
from pretrain.config.parallel import ParallelConfig

ALIGNED = 8
"""Elements of 16 bytes in 16 bits (torch.nn.functional.grouped_mm of torch 2.13)."""


def expert_problems(model: ModelConfig) -> Iterator[Problem]:
    """Rules within the model."""
    experts = model.experts
    if experts.count < 1:
        return
    if experts.topk > experts.count:
        rule = f"must be at most model.experts.count={experts.count}"
        yield Problem("model.experts.topk", experts.topk, rule)
    if model.bias:
        yield Problem("model.bias", True, "experts have no biases", "set model.bias=false")
    for key, size in (("hidden_size", model.hidden_size), ("experts.ffn_hidden_size", model.expert_width)):
        if size % ALIGNED:
            rule = f"with experts, must be a multiple of {ALIGNED}: grouped matrix products need rows of 16 bytes"
            yield Problem(f"model.{key}", size, rule, f"choose {size // ALIGNED * ALIGNED or ALIGNED}")
    if experts.dense_layers >= model.num_layers:
        rule = f"leaves none of the model.num_layers={model.num_layers} layers with experts"
        yield Problem("model.experts.dense_layers", experts.dense_layers, rule, "or set model.experts.count=0")


def expert_layout_problems(model: ModelConfig, parallel: ParallelConfig, world_size: int) -> Iterator[Problem]:
    """Rules of the split of the experts. The other degrees must divide the ranks."""
    count, ep, etp = model.experts.count, parallel.ep, parallel.etp
    if count < 1:
        for key, value in (("parallel.ep", ep), ("parallel.etp", etp)):
            if value != 1:
                yield Problem(key, value, "the model has no experts", f"set {key}=1, or model.experts.count")
        return
    if parallel.tp > 1 and not parallel.sp:
        rule = "with experts, tensor-parallel ranks divide the tokens"
        yield Problem("parallel.sp", False, rule, "set parallel.sp=true")
    if count % ep:
        near = either(nearest(divisors(count), ep))
        yield Problem("parallel.ep", ep, f"must divide model.experts.count={count}", f"choose {near}")
    if model.expert_width % (etp * ALIGNED):
        rule = f"must leave each rank a multiple of {ALIGNED} of the inner width of an expert, {model.expert_width}"
        yield Problem("parallel.etp", etp, rule, f"choose {either(nearest(_widths(model), etp))}")
    shared = model.experts.shared_ffn_hidden_size
    if shared % parallel.tp:
        rule = f"must divide model.experts.shared_ffn_hidden_size={shared}"
        yield Problem("parallel.tp", parallel.tp, rule, f"choose {either(nearest(divisors(shared), parallel.tp))}")
    stage = world_size // parallel.pp
    if world_size % (parallel.tp * parallel.pp) == 0 and stage % (ep * etp):
        rule = f"ep * etp = {ep * etp} must divide the {stage} ranks of a pipeline stage"
        products = either(nearest(divisors(stage), ep * etp))
        yield Problem("parallel.ep, parallel.etp", (ep, etp), rule, f"make ep * etp {products}")


def fitting_experts(parallel: ParallelConfig, model: ModelConfig, world_size: int) -> ParallelConfig:
    """The layout with ep, etp and sp that fit its other degrees, as near to those asked for as that goes."""
    if not model.experts.count:
        return dataclasses.replace(parallel, ep=1, etp=1)
    stage = world_size // parallel.pp
    etp = _largest(_widths(model), parallel.etp, stage)
    ep = _largest(divisors(model.experts.count), parallel.ep, stage // etp)
    return dataclasses.replace(parallel, ep=ep, etp=etp, sp=parallel.sp or parallel.tp > 1)


def _widths(model: ModelConfig) -> list[int]:
    """Values of etp that divide an expert."""
    return divisors(max(model.expert_width // ALIGNED, 1))


def _largest(degrees: list[int], asked: int, ranks: int) -> int:
    return max(degree for degree in degrees if degree <= max(asked, 1) and ranks % degree == 0)
