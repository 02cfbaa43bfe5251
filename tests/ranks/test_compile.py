"""engine.compile: layers share graphs, which are compiled once and equal the uncompiled layers."""

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine import build
from pretrain.model import compile, cross_entropy
from tests.support.models import batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import RanksFailed, run_ranks
from tests.support.training import own_batch, start, train, whole_state

LAYERS, ELEMENTWISE = "engine.compile=layers", "engine.compile=elementwise"
SETTINGS = ("optim.eps=1e-4", "model.num_layers=4", "engine.recompute.num_layers=2")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@dataclass(frozen=True)
class Seen:
    steps: list[tuple[float, float]]
    """Loss and gradient norm."""
    weights: dict[str, np.ndarray]
    graphs: tuple[int, int]
    """Graphs compiled after the first step, and the total after the following steps."""
    totals: list[float]
    """Totals of a validation afterwards, with larger and smaller batches. Skipped if each graph takes seconds."""
    cache: str
    copied: bool
    """Whether engine.cross_entropy=in_place copied the logits."""


def seen(here: Runtime, config: RunConfig, backend: str) -> Seen:
    """A backend that runs graphs eagerly tests all of torch.compile except its generated code."""
    build.compile_stage = functools.partial(compile.compile_stage, backend=backend)
    engine = start(here, config)
    steps = train(here, config, engine, [0])
    first = _graphs()
    steps += train(here, config, engine, range(1, 4))
    later = _graphs()
    tokens = own_batch(here, config, 9)[:5]
    ones = torch.ones(5, config.model.seq_length)
    totals = [] if backend == "inductor" else engine.evaluate(tokens, ones).tolist()
    state = {name: value for name, value in whole_state(engine).items() if name.startswith("weight/")}
    cache = os.environ.get(compile.CACHE, "")
    copied = cross_entropy._warn_about_copy.cache_info().currsize > 0
    return Seen([(step.loss, step.grad_norm) for step in steps], state, (first, later), totals, cache, copied)


def _graphs() -> int:
    from torch._dynamo.utils import counters

    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


LAYOUTS = {
    "gpt-zero0": (1, "gpt", {"zero_stage": 0}, ()),
    "llama-zero1-pp2-vp2": (2, "llama", {"zero_stage": 1, "pp": 2, "vp": 2}, ()),
    "llama_qk-zero2-full": (2, "llama_qk", {"zero_stage": 2}, ("engine.recompute.granularity=full",)),
    "gpt-zero1-in_place": (2, "gpt", {"zero_stage": 1}, ("engine.cross_entropy=in_place",)),
}
LAYERS_LAYOUTS = tuple(LAYOUTS)
LAYOUTS |= {
    "gpt-zero3-tp2": (4, "gpt", {"zero_stage": 3, "tp": 2}, ()),
    "gpt-zero3-full": (2, "gpt", {"zero_stage": 3}, ("engine.recompute.granularity=full",)),
    "llama-zero1-tp2-pp2-vp2": (4, "llama", {"zero_stage": 1, "tp": 2, "pp": 2, "vp": 2}, ()),
    "llama-zero2-documents": (2, "llama", {"zero_stage": 2}, ("data.document_mask=true",)),
    "gpt-zero1-dropout": (2, "gpt", {"zero_stage": 1}, ("model.hidden_dropout=0.1",)),
    "llama_tied-zero3-tp2-pp2-in_place": (
        4,
        "llama_tied",
        {"zero_stage": 3, "tp": 2, "pp": 2},
        ("engine.cross_entropy=in_place",),
    ),
    "llama-zero1-chunked": (1, "llama", {"zero_stage": 1}, ("engine.cross_entropy=chunked",)),
    "llama-zero0-selective": (1, "llama", {"zero_stage": 0}, ("engine.recompute.granularity=selective",)),
}

SHORT = ("llama-zero1-pp2-vp2", "llama_qk-zero2-full", "llama_tied-zero3-tp2-pp2-in_place")
"""Cases of every run of the tests."""


def config_of(layout: str, folder: Path, *overrides: str) -> tuple[int, RunConfig]:
    world_size, model, values, more = LAYOUTS[layout]
    dp = world_size // values.get("pp", 1)
    return world_size, run_config(model, *SETTINGS, *batches(dp, 2), f"run.dir={folder}", *more, *overrides, **values)


def assert_alike(found: Seen, expected: Seen) -> None:
    assert not found.copied and not expected.copied
    np.testing.assert_allclose(found.steps, expected.steps, rtol=1e-6)
    np.testing.assert_allclose(found.totals, expected.totals, rtol=1e-6)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in found.weights.items():
        np.testing.assert_allclose(value, expected.weights[name], rtol=0, atol=1e-5, err_msg=name)


@needs_compiler
@pytest.mark.parametrize("layout", full_except(LAYERS_LAYOUTS, SHORT))
def test_layers_share_one_graph_and_no_step_recompiles(layout: str, tmp_path: Path) -> None:
    plain = run_ranks(seen, *config_of(layout, tmp_path), "aot_eager")
    for found, expected in zip(run_ranks(seen, *config_of(layout, tmp_path, LAYERS), "aot_eager"), plain, strict=True):
        assert_alike(found, expected)
        # Recomputed layers have two graphs: one without gradients, one with.
        once = 2 if "full" in layout else 1
        # The in-place loss has one graph forward and one backward.
        once += 2 if "in_place" in layout else 0
        assert found.graphs == (once, once) and expected.graphs == (0, 0)


@needs_compiler
@pytest.mark.parametrize("layout", full_except(LAYOUTS, SHORT))
def test_elementwise_functions_compile_once_in_every_layout(layout: str, tmp_path: Path) -> None:
    plain = run_ranks(seen, *config_of(layout, tmp_path), "aot_eager")
    compiled_ones = run_ranks(seen, *config_of(layout, tmp_path, ELEMENTWISE), "aot_eager")
    for found, expected in zip(compiled_ones, plain, strict=True):
        assert_alike(found, expected)
        first, later = found.graphs
        assert 1 <= first == later and expected.graphs == (0, 0)


@needs_compiler
@pytest.mark.parametrize(("way", "number"), full_except([(LAYERS, 1), (ELEMENTWISE, 3)], [(ELEMENTWISE, 3)]))
def test_compiled_code_is_exact_and_cached_in_the_run_folder(way: str, number: int, tmp_path: Path) -> None:
    (expected,), (found,) = (
        run_ranks(seen, *config_of("gpt-zero0", tmp_path, *ways), "inductor", timeout=200.0) for ways in ((), (way,))
    )
    assert_alike(found, expected)
    assert found.graphs == (number, number)
    assert Path(found.cache) == tmp_path / "compile" and list((tmp_path / "compile").rglob("*.cpp"))


def without_compiler(here: Runtime, config: RunConfig) -> None:
    os.environ["PATH"], os.environ["CXX"] = "", "g++"
    start(here, config)


def test_a_cpu_without_a_compiler_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(RanksFailed, match=r"ConfigError: engine.compile=layers: needs a C\+\+ compiler on a CPU"):
        run_ranks(without_compiler, *config_of("gpt-zero0", tmp_path, LAYERS))
