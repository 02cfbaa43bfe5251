"""Validation, logits and checkpoints do not depend on the layout."""

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.grid import ParallelLayout
from pretrain.distributed.runtime import Runtime
from pretrain.run.state import RunState
from tests.support.models import batch_of, batches, run_config
from tests.support.parts import full_except
from tests.support.ranks import run_ranks
from tests.support.training import start, train, whole_state

SETTINGS = ("optim.clip_grad_norm=0.2", "optim.eps=1e-4", "model.num_layers=4")
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one": (1, {"zero_stage": 0}),
    "dp3-zero2": (3, {"zero_stage": 2}),
    "tp2-pp2-dp2-sp-zero3": (8, {"tp": 2, "pp": 2, "sp": True, "zero_stage": 3}),
    "pp4-zero1": (4, {"pp": 4, "zero_stage": 1}),
    "pp2-vp2-dp2-zero3-held": (4, {"pp": 2, "vp": 2, "zero_stage": 3, "param_gather": "per_step"}),
    "tp4-sp-zero1": (4, {"tp": 4, "sp": True, "zero_stage": 1}),
    "tp2-pp2-zero0": (4, {"tp": 2, "pp": 2, "zero_stage": 0}),
    "cp2-pp2-zero3": (4, {"cp": 2, "pp": 2, "zero_stage": 3}),
    "tp2-cp2-dp2-sp-zero1": (8, {"tp": 2, "cp": 2, "sp": True, "zero_stage": 1}),
    "pp2-dp2-zero2": (4, {"pp": 2, "zero_stage": 2}),
}
SAVED, LAST = 2, 5
SHORT = ("one", "tp2-pp2-dp2-sp-zero3", "pp2-vp2-dp2-zero3-held", "cp2-pp2-zero3")
"""Layouts with the most ways to cut a model; the others are one more case of each law."""


def config_of(model: str, layout: str, *overrides: str, micro_batches: int = 4) -> RunConfig:
    world_size, values = LAYOUTS[layout]
    dp = world_size // (values.get("tp", 1) * values.get("cp", 1) * values.get("pp", 1))
    return run_config(model, *SETTINGS, *batches(dp, micro_batches), *overrides, **values)


def world_of(layout: str) -> int:
    return LAYOUTS[layout][0]


@dataclass(frozen=True)
class Seen:
    totals: list[float]
    """Sum of losses and number of tokens over validation samples, some of which are masked."""
    logits: np.ndarray
    after: tuple[float, float]
    """Loss and gradient norm of a training step that follows."""


def seen(here: Runtime, config: RunConfig) -> Seen:
    engine = start(here, config)
    layout = ParallelLayout.of(config.model, config.parallel, here.world_size)
    dp_rank = engine.groups.replica
    samples = 14 * layout.replicas
    mask = torch.zeros(samples, config.model.seq_length, dtype=torch.int64)
    mask[:13] = 1
    batch = torch.from_numpy(batch_of(9, samples, config))
    batch[:13] = torch.from_numpy(batch_of(8, 13, config))
    for _ in range(2):  # many batches in a row, after training too
        totals = engine.evaluate(batch[dp_rank :: layout.replicas], mask[dp_rank :: layout.replicas]).tolist()
    logits = engine.logits(torch.from_numpy(batch_of(7, 2, config)[:, :11])).numpy()
    (result,) = train(here, config, engine, [0])
    for _ in range(3):
        engine.evaluate(batch[dp_rank :: layout.replicas], mask[dp_rank :: layout.replicas])
    train(here, config, engine, [1])
    return Seen(totals, logits, (result.loss, result.grad_norm))


@functools.cache
def seen_by_one(model: str) -> Seen:
    return run_ranks(seen, 1, config_of(model, "one"))[0]


@pytest.mark.parametrize(
    ("model", "layout"),
    full_except(
        [("gpt", name) for name in LAYOUTS if name != "one"] + [("llama", name) for name in LAYOUTS if "tp" in name],
        [("gpt", name) for name in SHORT] + [("llama", "tp2-pp2-dp2-sp-zero3")],
    ),
)
def test_validation_and_logits_do_not_depend_on_the_layout(model: str, layout: str) -> None:
    expected = seen_by_one(model)
    for rank in run_ranks(seen, world_of(layout), config_of(model, layout)):
        assert rank.totals == pytest.approx(expected.totals, rel=1e-6)
        assert rank.logits.shape == expected.logits.shape
        np.testing.assert_allclose(rank.logits, expected.logits, rtol=1e-4, atol=1e-5)
        assert rank.after == pytest.approx(expected.after, rel=1e-6)


def logits_of_whole_sample(here: Runtime, config: RunConfig) -> np.ndarray:
    tokens = torch.from_numpy(batch_of(7, 1, config)[:, : config.model.seq_length])
    return np.asarray(start(here, config).logits(tokens))


def test_logits_of_a_sample_whose_length_tp_does_not_divide() -> None:
    odd = run_config("gpt", "model.seq_length=15", "train.global_batch_size=2", "train.micro_batch_size=2")
    (expected,) = run_ranks(logits_of_whole_sample, 1, odd)
    for logits in run_ranks(logits_of_whole_sample, 2, replace(odd, parallel=replace(odd.parallel, tp=2))):
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


Steps = list[tuple[float, float]]


def save_and_go_on(here: Runtime, config: RunConfig, folder: Path) -> tuple[dict[str, np.ndarray], Steps, bytes]:
    """The state at the save; loss and norm of the steps after it; the state at the end."""
    engine = start(here, config)
    train(here, config, engine, range(SAVED))
    saved = whole_state(engine)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=1, keep_every=0)
    store.save(engine, RunState(step=SAVED), {})
    return saved, *go_on(here, config, engine)


def restore_and_go_on(here: Runtime, config: RunConfig, folder: Path) -> tuple[dict[str, np.ndarray], Steps, bytes]:
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=1, keep_every=0)
    newest = store.newest()
    assert newest is not None
    store.restore(newest, engine)
    return whole_state(engine), *go_on(here, config, engine)


def go_on(here: Runtime, config: RunConfig, engine: Any) -> tuple[Steps, bytes]:
    steps = [(result.loss, result.grad_norm) for result in train(here, config, engine, range(SAVED, LAST))]
    end = whole_state(engine)
    return steps, b"".join(end[name].tobytes() for name in sorted(end))


def restore_each(here: Runtime, config: RunConfig, folders: list[Path]) -> list[tuple[dict[str, str], Steps]]:
    """For each checkpoint: digests of the restored state, and loss and norm of the steps after it."""
    engine, found = start(here, config), []
    for folder in folders:
        store = CheckpointStore(folder, groups=engine.groups, keep_last=1)
        newest = store.newest()
        assert newest is not None
        store.restore(newest, engine)
        found.append((digests_of(whole_state(engine)), go_on(here, config, engine)[0]))
    return found


def digests_of(state: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in state.items()}


@functools.cache
def saved_by(model: str, layout: str, folder: Path) -> tuple[dict[str, str], Steps]:
    """Digests of the state that a run of the layout saved, loss and norm of the steps after it."""
    config = config_of(model, layout, micro_batches=2)
    run = run_ranks(save_and_go_on, world_of(layout), config, folder)[0]
    return digests_of(run[0]), run[1]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


NEXT = dict(zip(LAYOUTS, (*list(LAYOUTS)[1:], "one"), strict=True))


@pytest.mark.parametrize("restored_by", full_except(LAYOUTS, SHORT))
def test_a_checkpoint_of_any_layout_loads_in_any_other(checkpoints: Path, restored_by: str) -> None:
    assert_restored("all_sorts", checkpoints, restored_by, list(LAYOUTS))


@pytest.mark.parametrize("layout", full_except(LAYOUTS, SHORT))
def test_a_llama_checkpoint_loads_in_another_layout(checkpoints: Path, layout: str) -> None:
    assert_restored("llama", checkpoints, NEXT[layout], [layout])


def assert_restored(model: str, checkpoints: Path, restored_by: str, layouts: list[str]) -> None:
    folders = [checkpoints / model / layout for layout in layouts]
    saved = [saved_by(model, layout, folder) for layout, folder in zip(layouts, folders, strict=True)]
    config = config_of(model, restored_by, micro_batches=2)
    for rank in run_ranks(restore_each, world_of(restored_by), config, folders, timeout=240.0):
        for layout, expected, (digests, steps) in zip(layouts, saved, rank, strict=True):
            assert digests == expected[0], layout
            np.testing.assert_allclose(steps, expected[1], rtol=1e-5, err_msg=layout)


@pytest.mark.parametrize("layout", full_except(("tp2-pp2-dp2-sp-zero3", "pp2-vp2-dp2-zero3-held", "pp4-zero1"), SHORT))
def test_the_same_layout_resumes_bit_for_bit(tmp_path: Path, layout: str) -> None:
    config = config_of("gpt", layout, "model.hidden_dropout=0.1", "model.attention_dropout=0.1")
    _, steps, end = run_ranks(save_and_go_on, world_of(layout), config, tmp_path)[0]
    for rank in run_ranks(restore_and_go_on, world_of(layout), config, tmp_path):
        assert rank[1] == steps and rank[2] == end
