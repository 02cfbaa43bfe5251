"""Tests that need a GPU. `pytest tests/ranks/test_gpu.py` on a machine that has one.

Besides what the program needs: pytest, pytest-timeout, hypothesis with sortedcontainers, and zstandard.
"""

import functools
import itertools
import math
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.bench.result import load
from pretrain.config.attention_kernels import AttentionRequest, Kernel, unsupported_reason
from pretrain.config.run import RunConfig
from pretrain.distributed.groups import ProcessGroups
from pretrain.distributed.runtime import Runtime
from pretrain.engine import zero
from pretrain.engine.build import build_engine
from pretrain.model.attention import attend, chosen_kernels
from tests.ranks.test_attention import Operations
from tests.support.courses import Course, check_course, whole_course
from tests.support.gpu import Outcome, on_gpu, reason_for_none
from tests.support.models import EOD_ID, VOCAB_SIZE, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.runs import environment, program_command
from tests.support.training import join, start, train

WHY_NOT = reason_for_none()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
    pytest.mark.timeout(900),  # the first of several tests computes for all
]

DEVICE = "engine.device=cuda"
IN_PLACE, DOCUMENTS = "engine.cross_entropy=in_place", "data.document_mask=true"
STEPS = range(4)


def losses_on_cpu(here: Runtime, config: RunConfig) -> list[float]:
    return [step.loss for step in train(here, config, start(here, config), STEPS)]


def losses(here: Runtime, groups: ProcessGroups, config: RunConfig) -> list[float]:
    """Results of steps. After the first one, a device sync between first forward and last backward pass is an error."""
    engine, schedule = build_engine(config, VOCAB_SIZE, groups, here.device, eod_id=EOD_ID), zero.run_schedule

    def unasked(*args: Any, **kwargs: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return schedule(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    first = train(here, config, engine, STEPS[:1])  # libraries are loaded, tables made
    zero.run_schedule = unasked
    try:
        return [step.loss for step in (*first, *train(here, config, engine, STEPS[1:]))]
    finally:
        zero.run_schedule = schedule


WAYS = {"plain": (), "documents": (DOCUMENTS, IN_PLACE)}


@functools.cache
def expected_losses(model: str, way: str) -> list[float]:
    """The course in fp32 on a CPU, where every ZeRO stage gives the same numbers."""
    (expected,) = run_ranks(losses_on_cpu, 1, run_config(model, *batches(1), *WAYS[way]))
    return expected


@functools.cache
def trained() -> Mapping[str, Outcome]:
    cases = {
        f"{model} {way} {precision} {stage}": run_config(
            model, *batches(1), *WAYS[way], DEVICE, zero_stage=stage, precision=precision
        )
        for model, way, precision, stage in itertools.product(("gpt", "llama"), WAYS, ("bf16", "fp32"), range(4))
    }
    return on_gpu(losses, cases)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["gpt", "llama"])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2e-3), ("fp32", 1e-4)])
@pytest.mark.parametrize("stage", range(4))
def test_gpu_losses_equal_cpu_losses_without_device_syncs(
    stage: int, precision: str, bound: float, model: str, way: str
) -> None:
    found = trained()[f"{model} {way} {precision} {stage}"].result()
    assert found == pytest.approx(expected_losses(model, way), rel=bound)


COURSES = {
    "gpt fp32": (("gpt",), {"zero_stage": 1}, 1e-4),
    "gpt fp16": (("gpt",), {"zero_stage": 0, "precision": "fp16"}, 2e-3),
    "llama bf16 documents": (("llama", DOCUMENTS, IN_PLACE), {"zero_stage": 3, "precision": "bf16"}, 2e-3),
    "llama bf16 offloaded": (("llama", "engine.offload.optimizer=cpu"), {"zero_stage": 2, "precision": "bf16"}, 2e-3),
}
"""Model, settings, and tolerance relative to an fp32 course on a CPU."""


def course_config(name: str, *device: str, **values: object) -> RunConfig:
    (model, *settings), of_case, _ = COURSES[name]
    return run_config(model, *batches(1), *settings, *device, **{**of_case, **values})


def course_on_cpu(here: Runtime, config: RunConfig) -> Course:
    return whole_course(here, join(here, config), config)


@functools.cache
def expected_course(name: str) -> Course:
    (expected,) = run_ranks(course_on_cpu, 1, course_config(name, precision="fp32"))
    return expected


@functools.cache
def found_courses() -> Mapping[str, Outcome]:
    return on_gpu(whole_course, {name: course_config(name, DEVICE) for name in COURSES})


@pytest.mark.parametrize("name", COURSES)
def test_gpu_evaluation_generation_and_resume_match_a_cpu(name: str) -> None:
    check_course(found_courses()[name].result(), expected_course(name), COURSES[name][2])


def attention(
    kernel: Kernel, request: AttentionRequest, dtype: torch.dtype, starts: Tensor | None
) -> tuple[list[Tensor], set[str]]:
    """Context and gradients in fp32, and the operations of the forward pass."""
    generator = torch.Generator().manual_seed(request.head_width)
    heads = (4, 2, 2) if request.grouped else (4, 4, 4)
    given = [torch.randn(256, 2, count, request.head_width, generator=generator).bfloat16() for count in heads]
    inputs = [tensor.to(request.device, dtype).requires_grad_() for tensor in given]
    with Operations() as ran:
        context = attend(*inputs, starts, kernels=chosen_kernels(kernel, request))  # type: ignore[arg-type]
    context.backward(torch.randn(context.shape, generator=generator).bfloat16().to(context))
    gradients = [tensor.grad for tensor in inputs if tensor.grad is not None]
    return [value.detach().float() for value in (context, *gradients)], ran.names


@pytest.mark.parametrize("documents", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("grouped", [False, True], ids=["all", "grouped"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kernel", ["flash", "cudnn", "efficient", "math"])
def test_attention_kernels_agree(kernel: Kernel, width: int, grouped: bool, documents: bool) -> None:
    request = AttentionRequest("cuda", "bf16", head_width=width, dropout=0.0, documents=documents, grouped=grouped)
    if (reason := unsupported_reason(kernel, request)) is not None:
        pytest.skip(f"{kernel} {reason}")
    starts = torch.tensor([1, 100, 256, 300, 301, 511]) if documents else None
    expected, _ = attention("math", request, torch.float32, starts)
    found, ran = attention(kernel, request, torch.bfloat16, starts)
    assert kernel == "math" or f"aten::_scaled_dot_product_{kernel}_attention" in ran
    assert len(found) == 4
    for value, other in zip(found, expected, strict=True):
        assert (value - other).norm() < 0.02 * other.norm()


LARGE_VOCAB, LOGITS = 32768, 16 * 512 * 32768 * 2
"""Bytes of the logits of a micro-batch of 16 samples of 512 tokens in bf16."""


def peak_of_a_step(here: Runtime, groups: ProcessGroups, config: RunConfig) -> int:
    """Bytes of memory that a step needs beyond those held between steps."""
    engine = build_engine(config, LARGE_VOCAB, groups, here.device, eod_id=EOD_ID)
    train(here, config, engine, [0, 1])  # libraries have their work spaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(here, config, engine, [2])
    return torch.cuda.max_memory_allocated() - before


@functools.cache
def peaks() -> Mapping[str, Outcome]:
    shape = ("gpt", *batches(1, 1, 16), "model.seq_length=512", DEVICE)
    cases = {
        f"{way} {stage}": run_config(*shape, f"engine.cross_entropy={way}", zero_stage=stage, precision="bf16")
        for way, stage in itertools.product(("in_place", "plain"), range(4))
    }
    return on_gpu(peak_of_a_step, cases)


@pytest.mark.parametrize("stage", range(4))
def test_in_place_cross_entropy_holds_the_logits_once(stage: int) -> None:
    """in_place also needs two or three times 64 MiB for some rows in fp32."""
    least, usual = (peaks()[f"{way} {stage}"].result() for way in ("in_place", "plain"))
    assert LOGITS < least < 1.7 * LOGITS
    assert usual > 2 * least


def compiled_losses(here: Runtime, groups: ProcessGroups, config: RunConfig) -> tuple[list[float], int]:
    """Results of the steps, and the number of compiled graphs."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    found = losses(here, groups, config)
    assert not counters["graph_break"], dict(counters["graph_break"])
    return found, counters["stats"]["unique_graphs"]


@functools.cache
def compiled() -> tuple[Mapping[str, Outcome], bool]:
    """Outcomes, and whether compiled code is cached in the run folder."""
    with tempfile.TemporaryDirectory() as folder:
        cases = {
            f"{model} {precision} {way}": run_config(
                model,
                *batches(1),
                DEVICE,
                f"run.dir={folder}",
                f"engine.compile={way}",
                zero_stage=1,
                precision=precision,
            )
            for model, precision in (("gpt", "fp32"), ("llama", "bf16"))
            for way in ("none", "layers", "elementwise")
        }
        outcomes = on_gpu(compiled_losses, cases)
        return outcomes, any(Path(folder).glob("compile/*"))


@pytest.mark.parametrize("way", ["layers", "elementwise"])
@pytest.mark.parametrize(("model", "precision", "bound"), [("gpt", "fp32", 1e-4), ("llama", "bf16", 2e-3)])
def test_compiled_code_computes_the_same(model: str, precision: str, bound: float, way: str) -> None:
    outcomes, kept = compiled()
    (expected, none), (found, some) = (outcomes[f"{model} {precision} {each}"].result() for each in ("none", way))
    assert found == pytest.approx(expected, rel=bound)
    assert none == 0 < some and kept


def test_the_bench_measures_a_tiny_model(tmp_path: Path) -> None:
    words = ["bench", "model=tiny", "engine=zero1_bf16", DEVICE, "--warmup", "2", "--steps", "3", "--out", "out"]
    done = subprocess.run(
        [*program_command(), *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-6000:]
    result = load(tmp_path / "out")
    assert result["environment"]["device"] == torch.cuda.get_device_name()
    assert result["memory"]["of"] == "allocated on the GPU" and result["memory"]["peak_gib"] > 0
    assert result["tokens_per_second"] > 0 and all(map(math.isfinite, result["step_seconds"]["all"]))
    if unseen := [note for note in result["notes"] if "CUPTI" in note]:
        pytest.skip(unseen[0])
    parts = {row["part"]: row["seconds"] for row in result["roofline"]}
    for part in ("matrix products", "attention", "elementwise and norms", "optimizer"):
        assert parts.get(part, 0.0) > 0, parts
