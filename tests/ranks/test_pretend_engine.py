"""With all options an engine on the pretend GPU equals the CPU, and the host waits for the device only as listed."""

import contextlib
import functools
import gc
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine import zero as zero_module
from pretrain.engine.nvme_offload import require_async_io
from pretrain.pretend import device as pretend
from pretrain.pretend.device import ledger
from pretrain.pretend.machine import on_pretend_gpu
from tests.ranks import test_gpu
from tests.support.courses import SAVED_AFTER, Course, check_course, run_course
from tests.support.models import batches, run_config
from tests.support.nvme import why_no_async_io
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import join

Counts = dict[str, Counter[str]]
"""Counts by the part of a course."""


@dataclass(frozen=True)
class Case:
    """A configuration on some ranks."""

    ranks: int
    config: RunConfig
    padded: bool = False


@dataclass(frozen=True)
class Watched:
    """Waits and copies of one rank's device. For parts with the same name, the largest counts."""

    device: str
    waits: Counts
    copies: Counts


def course(here: Runtime, case: Case, folder: Path) -> Course:
    return run_course(here, join(here, case.config), case.config, folder, padded=case.padded)


def watched_course(here: Runtime, case: Case, folder: Path) -> tuple[Course, Watched]:
    seen = Watched(here.device.type, {}, {})

    @contextlib.contextmanager
    def watch(part: str) -> Iterator[None]:
        waits, copies = Counter(ledger.waits), Counter(ledger.copies)
        yield
        seen.waits[part] = seen.waits.get(part, Counter()) | (ledger.waits - waits)
        seen.copies[part] = seen.copies.get(part, Counter()) | (ledger.copies - copies)

    schedule = zero_module.run_schedule

    def watched(*args: Any, forward_only: bool) -> Any:
        with watch("forward" if forward_only else "forward and backward"):
            return schedule(*args, forward_only=forward_only)

    zero_module.run_schedule = watched
    gc.disable()  # it may destroy the previous engine at any time, which waits for the device
    done = run_course(here, join(here, case.config), case.config, folder, padded=case.padded, watch=watch)
    return done, seen


APART, IN_PLACE, CHUNKED = (
    "data.document_mask=true",
    *(f"engine.cross_entropy={way}" for way in ("in_place", "chunked")),
)
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
IN_THE_SAME, LAYERS = "engine.grad_accum_dtype=same", "model.num_layers=4"
OFTEN = {"grad_reduction": "per_micro_batch", "param_gather": "per_micro_batch"}
SELDOM = {"grad_reduction": "per_step", "param_gather": "per_step"}
STATES_OUT, ALL_OUT = "engine.offload.optimizer=cpu", "engine.offload.params=cpu"


def case(ranks: int, model: str, *overrides: str, padded: bool = False, **values: Any) -> Case:
    dp = ranks // values.get("tp", 1) // values.get("pp", 1)
    return Case(ranks, run_config(model, *batches(dp), *overrides, **values), padded)


def full(method: str, layers: int = 1) -> tuple[str, ...]:
    return (
        "engine.recompute.granularity=full",
        f"engine.recompute.method={method}",
        f"engine.recompute.num_layers={layers}",
    )


SELECTIVE = ("engine.recompute.granularity=selective", "engine.recompute.modules=[core_attn,mlp]")

CASES = {
    "gpt-zero0": case(1, "gpt", "optim.fused=false", zero_stage=0),
    "gpt-zero0-bf16-padded": case(1, "gpt", IN_PLACE, zero_stage=0, precision="bf16", padded=True),
    "llama-zero0-fp16-dp2-documents": case(2, "llama", APART, zero_stage=0, precision="fp16"),
    "gpt-zero1-bf16-dropout": case(1, "gpt", *DROPOUT, zero_stage=1, precision="bf16"),
    "llama_qk-zero1-fp16-offload": case(1, "llama_qk", STATES_OUT, zero_stage=1, precision="fp16"),
    "gpt-zero1-tp2-documents-padded": case(2, "gpt", APART, zero_stage=1, tp=2, sp=True, padded=True),
    "llama-zero1-bf16-pp2-same": case(2, "llama", IN_THE_SAME, zero_stage=1, precision="bf16", pp=2),
    "llama_tied-zero1-pp2-uniform": case(2, "llama_tied", *full("uniform"), zero_stage=1, pp=2),
    "gpt-zero2-bf16-dp2-per-step": case(2, "gpt", zero_stage=2, precision="bf16", grad_reduction="per_step"),
    "llama-zero2-fp16-selective": case(
        1, "llama", *SELECTIVE, CHUNKED, "engine.attention=flash", zero_stage=2, precision="fp16"
    ),
    "all_sorts-zero2-offload-dp2": case(2, "all_sorts", STATES_OUT, zero_stage=2),
    "gpt-zero2-pp2-vp2-block": case(2, "gpt", *full("block"), LAYERS, zero_stage=2, pp=2, vp=2),
    "gpt-zero3-bf16-often": case(1, "gpt", zero_stage=3, precision="bf16", **OFTEN),
    "llama-zero3-fp16-dp2-documents-padded": case(
        2, "llama", APART, IN_PLACE, zero_stage=3, precision="fp16", padded=True
    ),
    "llama-zero3-bf16-offload-dp2": case(2, "llama", STATES_OUT, ALL_OUT, zero_stage=3, precision="bf16"),
    "gpt-zero3-dp2-math": case(2, "gpt", "engine.attention=math", zero_stage=3, **SELDOM),
    "gpt-zero3-tp2-pp2-documents-selective": case(4, "gpt", APART, *SELECTIVE, zero_stage=3, tp=2, sp=True, pp=2),
    "llama-zero1-bf16-cp2-documents": case(2, "llama", APART, zero_stage=1, precision="bf16", cp=2),
    "llama-zero3-bf16-pp2-vp2": case(2, "llama", IN_PLACE, LAYERS, zero_stage=3, precision="bf16", pp=2, vp=2),
}

SHORT = (
    "gpt-zero0",
    "llama-zero0-fp16-dp2-documents",
    "llama_qk-zero1-fp16-offload",
    "gpt-zero1-tp2-documents-padded",
    "llama-zero2-fp16-selective",
    "gpt-zero2-pp2-vp2-block",
    "llama-zero3-fp16-dp2-documents-padded",
    "llama-zero3-bf16-offload-dp2",
    "llama-zero3-bf16-pp2-vp2",
)
"""Cases of every run of the tests: each stage alone and split, each way of recomputing, documents, offload."""
STEPS = ("first step", "step", "step after a resume")
FIRST_STEPS = ("first step", "step after a resume", "forward and backward")
FORWARD_ONLY = ("evaluation", "generation")
ANY = 10**6
"""For places that wait once per module, parameter or state tensor."""


@dataclass(frozen=True)
class Wait:
    """A place at which the host may wait, `most` times in one of these parts."""

    place: str
    parts: tuple[str, ...]
    most: int
    where: Callable[[Case], bool] = lambda case: True


def zero(*stages: int) -> Callable[[Case], bool]:
    return lambda case: case.config.engine.zero_stage in stages


def offloads(*stages: int) -> Callable[[Case], bool]:
    return lambda case: zero(*stages)(case) and case.config.engine.offload.optimizer != "none"


def gathers_often(case: Case) -> bool:
    return case.config.engine.param_gather == "per_micro_batch"


def reduces_often(case: Case) -> bool:
    """After each of four micro-batches."""
    return case.config.engine.grad_reduction == "per_micro_batch"


def has_rotary_positions(case: Case) -> bool:
    return case.config.model.position == "rope"


WAITS = (
    # Clipping needs the norm. Loss and number of targets are fetched after the whole step is enqueued.
    Wait("item in gradients.global_norm", STEPS, 1),
    Wait("tolist in zero.train_step", STEPS, 1),
    # Each chunk's table goes to the device with its first forward pass.
    Wait("copy from host in rotary._whole", (*STEPS[::2], "forward and backward"), 2, has_rotary_positions),
    Wait("copy to host in whole_texts.<listcomp>", ("generation",), 4),  # the logits of each new token
    Wait("copy to host in files._with_storage_of_its_own", ("save",), ANY),
    Wait("item in adam.<genexpr>", ("save",), ANY),  # how many updates Adam has made
    Wait("copy from host in store._load", ("restore",), ANY),
    # DeepSpeed 0.19.8 at ZeRO-3: when gradients are reduced, and when two reductions are in flight.
    *(
        Wait(f"synchronize in stage3.{place}", parts, most, where)
        for parts, most, where in ((STEPS, 1, zero(3)), ((*STEPS, "forward and backward"), 4, reduces_often))
        for place in ("independent_gradient_partition_epilogue", "__reduce_and_partition_ipg_grads")
    ),
    # A single data-parallel rank waits for its own copy.
    Wait("synchronize in partition_parameters.wait", (*STEPS, "forward and backward"), 1, zero(3)),
    # Parameters that are gathered module by module: at most two gathers are in flight.
    *(
        Wait(f"synchronize in {place}", (*parts, part), ANY, where)
        for parts, part, where in ((FORWARD_ONLY, "forward", zero(3)), (STEPS, "forward and backward", gathers_often))
        for place in (
            "partition_parameters.wait",
            "partition_parameters._allgather_params_sequential",
            "partitioned_param_coordinator._fetch_sub_module_impl",
        )
    ),
    # With offload each finished gradient is copied to the host, and the norm is computed there.
    Wait("copy from host in gradients.global_norm", STEPS, 1, offloads(1, 2, 3)),
    Wait("item in stage_1_and_2.update_offload_overflow_tracker", STEPS, ANY, offloads(1, 2)),
    Wait("synchronize in stage_1_and_2._wait_for_offload_copies", STEPS, ANY, offloads(1, 2)),
    Wait("copy from host in zero1_2.refresh_parameters", ("restore",), 2, offloads(1, 2)),
    Wait("copy from host in partition_parameters.<listcomp>", STEPS, ANY, offloads(3)),
    Wait("copy from host in flat_collectives.<listcomp>", STEPS, ANY, offloads(3)),
    Wait("copy from host in partition_parameters._all_gather_sequential", (*FORWARD_ONLY, "forward"), ANY, offloads(3)),
)
"""All allowed waits. Between a step's first forward and last backward pass only ZeRO-3 waits, for parameters."""


def too_many(case: Case, waits: Counts) -> list[str]:
    """Waits that the table does not allow."""
    allowed: Counter[tuple[str, str]] = Counter()
    for wait in WAITS:
        for part in wait.parts if wait.where(case) else ():
            allowed[part, wait.place] = max(allowed[part, wait.place], wait.most)
    return [
        f"{part}: {place}: {count}, {allowed[part, place]} allowed"
        for part, counts in waits.items()
        for place, count in counts.items()
        if count > allowed[part, place]
    ]


@pytest.fixture(scope="module", params=full_except(CASES, SHORT))
def courses(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, list[Course], list[tuple[Course, Watched]]]:
    """A case, its course on the CPU and on the pretend GPU, for each rank."""
    case, folder = CASES[request.param], tmp_path_factory.mktemp("courses")
    expected = run_ranks(course, case.ranks, case, folder / "cpu")
    return case, expected, run_ranks(watched_course, case.ranks, case, folder / "gpu", around=on_pretend_gpu)


def test_all_values_equal_the_cpus(courses: Any) -> None:
    case, expected, found = courses
    for here, (there, seen) in zip(expected, found, strict=True):
        assert seen.device == pretend.NAME
        if case.config.model.hidden_dropout:  # a GPU rounds it once, a CPU twice
            assert [step[0] for step in there.steps] == pytest.approx([step[0] for step in here.steps], rel=1e-3)
        else:
            assert there == here
        assert there.resumed == there.steps[SAVED_AFTER:]


def test_the_host_waits_only_at_the_listed_places(courses: Any) -> None:
    case, _, found = courses
    for _, seen in found:
        assert not too_many(case, seen.waits)


def test_a_step_copies_to_the_host_only_what_is_offloaded(courses: Any) -> None:
    case, _, found = courses
    for _, seen in found:
        for part in ("forward and backward", "forward", *(() if offloads(1, 2, 3)(case) else STEPS)):
            assert not [place for place in seen.copies[part] if place.startswith("copy to host")]


@pytest.mark.skipif(why_no_async_io() is not None, reason=str(why_no_async_io()))
def test_values_with_nvme_offload_equal_the_cpus(tmp_path: Path) -> None:
    """Sub-groups under a MiB would stay in memory: these are larger."""
    large = ("model.hidden_size=256", "model.ffn_hidden_size=1024")
    on_disk = (f"engine.offload.{what}=nvme" for what in ("optimizer", "params"))
    settings = (*large, *on_disk, f"engine.offload.nvme_path={tmp_path}")
    config = run_config("gpt", *batches(1, 2, 6), *settings, zero_stage=3, precision="bf16", **OFTEN)
    run = functools.partial(run_ranks, warm=require_async_io)
    expected = run(course, 1, Case(1, config), tmp_path / "cpu")
    ((found, seen),) = run(watched_course, 1, Case(1, config), tmp_path / "gpu", around=on_pretend_gpu)
    assert seen.device == pretend.NAME and [found] == expected


@pytest.mark.parametrize("name", test_gpu.COURSES)
def test_the_gpu_tests_pass_on_the_pretend_gpu(name: str) -> None:
    config = test_gpu.course_config(name, test_gpu.DEVICE)
    (found,) = run_ranks(test_gpu.course_on_cpu, 1, config, around=on_pretend_gpu)
    check_course(found, test_gpu.expected_course(name), test_gpu.COURSES[name][2])


def test_the_cases_have_every_option() -> None:
    engines = [case.config.engine for case in CASES.values()]
    parallel = [(case.ranks, case.config.parallel) for case in CASES.values()]
    for engine_name, options in {
        "zero_stage": {0, 1, 2, 3},
        "precision": {"fp32", "bf16", "fp16"},
        "grad_accum_dtype": {"fp32", "same"},
        "grad_reduction": {"auto", "per_micro_batch", "per_step"},
        "param_gather": {"auto", "per_micro_batch", "per_step"},
        "cross_entropy": {"plain", "in_place", "chunked"},
        "attention": {"auto", "flash", "math"},
    }.items():
        assert {getattr(engine, engine_name) for engine in engines} == options
    assert {(engine.zero_stage, engine.precision) for engine in engines} >= set(
        itertools.product(range(4), ("bf16", "fp16"))
    )
    assert {engine.recompute.granularity for engine in engines} == {"none", "selective", "full"}
    assert {engine.recompute.method for engine in engines} == {"uniform", "block"}
    assert {(engine.offload.optimizer, engine.offload.params) for engine in engines} == {
        ("none", "none"),
        ("cpu", "none"),
        ("cpu", "cpu"),
    }
    assert {ranks for ranks, _ in parallel} == {1, 2, 4}
    assert {(split.tp, split.sp, split.pp, split.vp) for _, split in parallel} == {
        (1, False, 1, 1),
        (2, True, 1, 1),
        (1, False, 2, 1),
        (1, False, 2, 2),
        (2, True, 2, 1),
    }
