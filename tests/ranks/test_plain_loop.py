"""The plain loop that the engine's time is held against (tests/benchmarks/engine_overhead.py) does the same work."""

import functools
import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine import build
from pretrain.model import compile
from pretrain.model.gpt import Stage
from tests.benchmarks import engine_overhead
from tests.benchmarks.engine_overhead import PlainLoop
from tests.support.models import EOD_ID, VOCAB_SIZE, batches, run_config
from tests.support.ranks import run_ranks
from tests.support.training import LR, join, own_batch

STEPS = 6
IN_PLACE, DOCUMENTS = "engine.cross_entropy=in_place", "data.document_mask=true"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


def losses(here: Runtime, config: RunConfig) -> tuple[list[float], list[float], list[int]]:
    """Results of the engine and of the plain loop, and the graphs that each compiled."""
    build.compile_stage = engine_overhead.compile_stage = functools.partial(compile.compile_stage, backend="aot_eager")
    groups, graphs = join(here, config), []
    engine = build.build_engine(config, VOCAB_SIZE, groups, here.device, eod_id=EOD_ID)
    ours = [engine.train_step(own_batch(here, config, number), LR).loss for number in range(STEPS)]
    graphs.append(counters["aot_autograd"]["ok"])
    torch._dynamo.reset()  # else the plain loop takes the engine's
    given = (own_batch(here, config, number) for number in range(STEPS))
    loop = PlainLoop(config, VOCAB_SIZE, given, groups, here.device, eod_id=EOD_ID, lr=LR)
    assert sums_of(loop.stage) == sums_of(engine.stage)
    plain = [loop().item() for _ in range(STEPS)]
    return ours, plain, [*graphs, counters["aot_autograd"]["ok"] - graphs[0]]


def sums_of(stage: Stage) -> dict[str, torch.dtype | None]:
    """In which precision gradients are summed over micro-batches."""
    return {name: parameter.grad_dtype for name, parameter in stage.named_parameters()}


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "fp32": (("optim.clip_grad_norm=0.1",), {"zero_stage": 0}, 1e-6),
    "bf16-zero0": ((IN_PLACE,), {"zero_stage": 0, "precision": "bf16"}, 1e-4),
    "bf16-zero1-documents": ((IN_PLACE, DOCUMENTS), {"zero_stage": 1, "precision": "bf16"}, 1e-4),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_the_plain_loop_takes_the_engines_steps(model: str, case: str) -> None:
    overrides, values, bound = CASES[case]
    ((ours, plain, _),) = run_ranks(losses, 1, run_config(model, *batches(1, 3), *overrides, **values))
    assert plain == pytest.approx(ours, rel=bound)


@needs_compiler
@pytest.mark.parametrize("way", ["layers", "elementwise"])
def test_the_plain_loop_runs_compiled_where_the_engine_does(way: str) -> None:
    config = run_config("llama", *batches(1, 3), f"engine.compile={way}", zero_stage=1, precision="bf16")
    ((ours, plain, graphs),) = run_ranks(losses, 1, config)
    assert plain == pytest.approx(ours, rel=1e-4)
    assert 0 < graphs[0] == graphs[1]
