"""The search for a layout finds what trying everything finds."""

import itertools
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from pretrain.config.checks import check_run
from pretrain.config.derived import with_micro_batch_size
from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.planner.choice import rounded_seconds
from pretrain.planner.memory import HEADROOM, Modes, choose_modes, plan_memory
from pretrain.planner.search import Search, layout_of, overrides_of, search, search_layouts, slower_by
from pretrain.planner.search_table import search_as_json, search_lines
from pretrain.planner.time.hardware import load_hardware
from pretrain.planner.time.step import predict_step

H100 = load_hardware("h100")
VOCAB, GIB = 50257, 2**30
WORDS = (
    "model=gpt3_1.3b",
    "model.num_layers=4",
    "engine=zero1_bf16",
    "train.micro_batch_size=1",
    "train.global_batch_size=4",
)
RANKS = 4


def config_of(*words: str) -> RunConfig:
    return load_run_config([*WORDS, *words])


@cache
def found(gib: float | None, *words: str) -> Search:
    budget = None if gib is None else int(gib * GIB)
    return search(config_of(*words), VOCAB, RANKS, H100, budget)


def everything(budget: float) -> dict[Any, float]:
    """The least time of each layout that has a setting that fits, by trying all settings without any shortcut."""
    best: dict[Any, float] = {}
    base = config_of()
    none = base.engine.recompute
    recomputations = (
        none,
        replace(none, granularity="selective", modules=("mlp",)),
        replace(none, granularity="full", method="uniform", num_layers=1),
    )
    shapes = itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4), (False, True), (1, 2, 4))
    for (tp, pp, vp, sp, size), zero, recompute in itertools.product(shapes, (0, 1, 2, 3), recomputations):
        if tp == 1 and sp:
            continue
        parallel = replace(base.parallel, tp=tp, pp=pp, vp=vp, sp=sp)
        engine = replace(base.engine, zero_stage=zero, recompute=recompute)
        tried = with_micro_batch_size(replace(base, parallel=parallel, engine=engine), size)
        try:
            check_run(tried, RANKS)
        except ConfigError:
            continue
        for modes in MODES:
            if (zero < 3 and modes.param_gather != "per_step") or (zero < 2 and modes != MODES[0]):
                continue
            peak = max(stage.peak for stage in plan_memory(tried, VOCAB, RANKS, modes))
            if peak <= HEADROOM * budget:
                seconds = rounded_seconds(predict_step(tried, VOCAB, RANKS, modes, H100))
                best[layout_of(tried)] = min(seconds, best.get(layout_of(tried), seconds))
    return best


MODES = [Modes(a, b) for a in ("per_step", "per_micro_batch") for b in ("per_step", "per_micro_batch")]


@pytest.mark.full
@pytest.mark.parametrize("gib", [2.5])
def test_no_shortcut_loses_a_layout_or_its_best_setting(gib: float) -> None:
    result: dict[Any, float] = {}
    for each in found(gib).candidates:
        result.setdefault(layout_of(each.config), rounded_seconds(each.step))
    expected = everything(gib * GIB)
    assert result == expected and 3 < len(expected) < len({layout_of(c.config) for c in found(None).candidates})


@pytest.mark.parametrize("gib", [2.5, None])
def test_candidates_are_legal_fit_and_are_sorted(gib: float | None) -> None:
    candidates = found(gib).candidates
    for each in candidates:
        check_run(each.config, RANKS)
        assert each.modes == choose_modes(each.config, VOCAB, RANKS, None)
        assert each.peak == max(stage.peak for stage in plan_memory(each.config, VOCAB, RANKS, each.modes))
        assert gib is None or each.peak <= HEADROOM * gib * GIB
    times = [rounded_seconds(each.step) for each in candidates]
    assert times == sorted(times) and len(times) > 20


def test_all_is_counted() -> None:
    small, whole = found(2.5), found(None)
    assert len(small.candidates) + small.illegal + small.too_large + small.slower == (
        len(whole.candidates) + whole.illegal + whole.slower
    )
    assert small.too_large > 0 == whole.too_large


def test_the_search_is_deterministic() -> None:
    again = search_layouts(config_of(), VOCAB, RANKS, H100, int(2.5 * GIB))
    assert again == found(2.5).candidates


def test_overrides_give_the_candidate() -> None:
    for each in found(2.5, "engine=zero3_bf16", "parallel.pp=2").candidates[:60:10]:
        words = [word.replace('"', "").replace("'[", "[").replace("]'", "]") for word in overrides_of(each, asked())]
        assert config_of("engine=zero3_bf16", "parallel.pp=2", *words) == each.config


def asked() -> RunConfig:
    return config_of("engine=zero3_bf16", "parallel.pp=2")


def test_the_configured_layout_is_placed() -> None:
    result = found(None)
    assert result.configured is not None and result.place is not None
    same = [each for each in result.candidates if each.config == result.configured.config]
    assert len(same) == 1 and rounded_seconds(same[0].step) == rounded_seconds(result.configured.step)
    assert rounded_seconds(result.candidates[result.place - 1].step) == rounded_seconds(result.configured.step)
    assert slower_by(result.candidates[-1], result.candidates[0])


def test_a_configured_layout_may_be_illegal_or_too_large() -> None:
    illegal = found(2.5, "parallel.tp=3")
    assert illegal.configured is None and illegal.place is None and "parallel.tp" in illegal.why_illegal
    assert illegal.candidates
    large = found(2.5, "engine.zero_stage=0", "train.micro_batch_size=8", "train.global_batch_size=32")
    assert large.configured is not None and not large.configured_fits and large.place is None


def test_a_rule_that_no_layout_can_keep_is_an_error() -> None:
    with pytest.raises(ConfigError, match="max_steps"):
        found(2.5, "train.max_steps=-1")


def test_no_layout_may_fit() -> None:
    nothing = found(0.01)
    assert not nothing.candidates
    assert any("nothing fits" in line for line in search_lines(nothing, config_of(), RANKS, H100, 0.01, 10))


def test_the_table_shows_the_best_setting_of_each_layout() -> None:
    lines = search_lines(found(2.5), config_of(), RANKS, H100, 2.5, 3)
    first = lines.index("overrides that give them:") + 1
    assert len(lines[first:]) == 3 + 2
    assert lines[2:4] == ["", lines[3]] and "why not faster" in lines[3] and "limited by" in lines[4]
    assert lines[-1].startswith("the configured layout")
    written = search_as_json(found(2.5), config_of())
    assert len(written["candidates"]) == len(found(2.5).candidates)
    assert written["candidates"][0]["overrides"] == overrides_of(found(2.5).candidates[0], config_of())


def test_the_command_searches_without_torch() -> None:
    words = ["plan", "--ranks", "4", "--hardware", "h100", "--gpu-memory", "4", "--search", "--top", "2", *WORDS]
    script = f"import sys; from pretrain.cli import main; code = main({words!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "overrides that give them:" in done.stdout


def test_a_search_needs_a_machine() -> None:
    command = [sys.executable, "-m", "pretrain", "plan", "--search", *WORDS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--hardware" in done.stderr


def test_long_samples_are_shared() -> None:
    long = ("model=llama_1b", "model.num_layers=4", "model.seq_length=65536", "train.global_batch_size=1")
    best = found(None, *long).candidates[0]
    assert best.config.parallel.cp > 1
    assert f"parallel.cp={best.config.parallel.cp}" in overrides_of(best, config_of(*long))
    assert all(each.config.parallel.cp == 1 for each in found(None).candidates), "samples are too short"
