"""ZeRO-3: how much of a stage's parameters is gathered, how often, and how much memory building needs."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.param_gather import gather_until_step
from pretrain.model.init import PIECE
from pretrain.planner import memory
from pretrain.pretend.machine import on_pretend_gpu
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import join, start, train


@dataclass(frozen=True)
class Gathering:
    """The parameters that one rank gathered in one step."""

    stage: int
    """Elements of this stage's parameters, including the padding of partitions."""
    received: int
    """Elements received in the step."""
    most: int
    """Largest number of elements that were gathered at the same time."""
    left: int
    """Elements that are gathered after the step."""
    layer: int
    """Elements of one layer."""
    ends: int
    """Elements outside the layers."""


def gathering(here: Runtime, config: RunConfig) -> Gathering:
    """The second step: DeepSpeed learns its order in the first."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine = start(here, config)
    train(here, config, engine, [0])
    parameters = [parameter for _, _, parameter in engine.stage.named()]
    received = most = 0

    def standing() -> int:
        return sum(p.ds_numel for p in parameters if p.ds_status != ZeroParamStatus.NOT_AVAILABLE)

    fetch = PartitionedParameterCoordinator.fetch_sub_module

    def counted_fetch(*args: object, **kwargs: object) -> None:
        nonlocal most
        fetch(*args, **kwargs)
        most = max(most, standing())

    PartitionedParameterCoordinator.fetch_sub_module = counted_fetch
    from deepspeed.runtime.zero import partition_parameters

    original = partition_parameters._dist_allgather_fn

    def counted(input_tensor: torch.Tensor, output_tensor: torch.Tensor, group: object = None) -> object:
        nonlocal received
        received += output_tensor.numel()
        return original(input_tensor, output_tensor, group)

    partition_parameters._dist_allgather_fn = counted
    train(here, config, engine, [1])
    sizes = {name: p.partition_numel() * engine.groups.layout.dp for name, _, p in engine.stage.named()}
    layers = [size for name, size in sizes.items() if "layers." in name]
    num_layers = len({name.split(".")[2] for name in sizes if "layers." in name})
    total = sum(sizes.values())
    return Gathering(total, received, most, standing(), sum(layers) // num_layers, total - sum(layers))


CASES = [
    ("gpt", "per_micro_batch", {"pp": 1, "vp": 1}),
    ("gpt", "per_micro_batch", {"pp": 2, "vp": 1}),
    ("llama", "per_micro_batch", {"pp": 2, "vp": 2}),
    ("llama", "per_step", {"pp": 1, "vp": 1}),
    ("gpt", "per_step", {"pp": 2, "vp": 2}),
]


def config_of(model: str, reduction: str, gather: str, shape: dict[str, int]) -> RunConfig:
    layers = "model.num_layers=12"
    return run_config(model, layers, *batches(2), zero_stage=3, param_gather=gather, grad_reduction=reduction, **shape)


@pytest.mark.parametrize(("model", "reduction", "shape"), full_except(CASES, CASES[2:4]))
def test_per_step_gathering_gathers_once(model: str, reduction: str, shape: dict[str, int]) -> None:
    for rank in run_ranks(gathering, 2 * shape["pp"], config_of(model, reduction, "per_step", shape)):
        assert rank.stage <= rank.received <= 1.05 * rank.stage
        assert rank.left == 0


@pytest.mark.parametrize(("model", "reduction", "shape"), full_except(CASES, CASES[2:4]))
def test_per_micro_batch_gathering_keeps_few_layers(model: str, reduction: str, shape: dict[str, int]) -> None:
    for rank in run_ranks(gathering, 2 * shape["pp"], config_of(model, reduction, "per_micro_batch", shape)):
        assert rank.most <= 2 * rank.layer + rank.ends < 0.75 * rank.stage
        assert rank.received > 4 * rank.stage
        assert rank.left == 0


@dataclass(frozen=True)
class Holding:
    """Bytes on the device, above what an engine at rest has there."""

    most: int
    """While the stage is gathered."""
    held: int
    """After that."""


def settled(size: Callable[[], int]) -> int:
    """The size once it has not changed for a while: gloo's threads free a buffer a moment after its message came."""
    last, since = size(), 0
    while since < 20:
        time.sleep(0.01)
        since = since + 1 if size() == last else 0
        last = size()
    return last


def holding(here: Runtime, config: RunConfig, piece: int, planned: int) -> Holding:
    from pretrain.pretend.device import ledger

    memory.GATHER_ELEMENTS = piece
    engine = start(here, config)
    gc.collect()  # garbage of the start must not be freed later
    at_rest = settled(lambda: ledger.now)
    ledger.begin()
    gather_until_step(engine.stage.parameters())
    limit = time.monotonic() + 30
    while ledger.now - at_rest > planned and time.monotonic() < limit:
        time.sleep(0.01)  # gloo's threads let go of a buffer a moment after its message has come
    return Holding(ledger.peak - at_rest, ledger.now - at_rest)


@pytest.mark.parametrize("piece", [10_000, 30_000, 10**9], ids=["small pieces", "larger ones", "all at once"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_per_step_gathering_uses_the_planned_memory(
    monkeypatch: pytest.MonkeyPatch, precision: str, piece: int
) -> None:
    shape = ("model.num_layers=4", "model.hidden_size=64", "model.ffn_hidden_size=128")
    config = run_config("gpt", *shape, *batches(2), zero_stage=3, precision=precision, param_gather="per_step")
    monkeypatch.setattr(memory, "GATHER_ELEMENTS", piece)
    (plan,) = memory.plan_memory(config, VOCAB_SIZE, 2, memory.Modes("per_micro_batch", "per_step"))
    if piece == 10**9:
        assert plan.gather_buffer == plan.gathered
    for found in run_ranks(holding, 2, config, piece, plan.gathered, around=on_pretend_gpu):
        assert found.held == plan.gathered
        assert plan.gathered < found.most <= plan.gathered + 2 * plan.gather_buffer  # and of the one before, on gloo


@dataclass(frozen=True)
class Building:
    """Bytes."""

    share: int
    largest: int
    """This rank's part of the largest tensor."""
    peak: int
    """Above what the process held before."""


def building(here: Runtime, small: RunConfig, config: RunConfig) -> Building:
    from pretrain.distributed.groups import DeepSpeedGroups
    from pretrain.engine.deepspeed_config import deepspeed_config
    from pretrain.engine.param_gather import zero3_partitioner
    from pretrain.model.gpt import Stage, build_stage

    groups = join(here, config)
    vendor = deepspeed_config(
        config.engine, reduce_per_step=False, micro_batch_size=1, clip_grad_norm=1.0, dp=groups.layout.dp
    )
    partition = zero3_partitioner(DeepSpeedGroups(groups), vendor)

    def build(wanted: RunConfig, vocab_size: int) -> Stage:
        return build_stage(
            wanted.model,
            parallel=wanted.parallel,
            engine=wanted.engine,
            vocab_size=vocab_size,
            seed=1,
            groups=groups,
            device=here.device,
            partition=partition,
        )

    build(small, 256)  # the first one imports modules and touches memory that is not the model's
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed before would be used again, and not be seen as growth
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = process_memory("VmHWM")
    stage = build(config, 32768)
    peak = process_memory("VmHWM") - before
    width = 2 if config.engine.precision == "bf16" else 4
    shares = [parameter.ds_tensor.numel() * width for parameter in stage.local]
    return Building(sum(shares), max(shares), peak)


def process_memory(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.parametrize(
    ("precision", "world_size", "shape"),
    full_except(
        [("fp32", 2, ()), ("bf16", 2, ()), ("fp32", 4, ("parallel.tp=2",)), ("bf16", 4, ("parallel.pp=2",))],
        [("fp32", 2, ()), ("bf16", 4, ("parallel.pp=2",))],
    ),
)
def test_building_holds_the_share_and_one_tensors_share_twice(
    precision: str, world_size: int, shape: tuple[str, ...]
) -> None:
    ways = ("model=tiny_llama", "engine.zero_stage=3", "engine.device=cpu", f"engine.precision={precision}", *shape)
    size = ("hidden_size=1024", "ffn_hidden_size=4096", "num_layers=6", "num_heads=8")
    large = load_run_config([*ways, *(f"model.{setting}" for setting in size)])
    for rank in run_ranks(building, world_size, load_run_config(ways), large):
        # What is drawn at a time in fp32, and what the allocator and the interpreter take.
        assert rank.share <= rank.peak <= rank.share + rank.largest + 4 * PIECE + 16 * 2**20, rank
