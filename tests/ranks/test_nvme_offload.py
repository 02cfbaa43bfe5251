"""Offload to a disk gives the same numbers and the same checkpoints, and leaves no files."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.errors import ConfigError
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.nvme_offload import own_folder, require_async_io
from pretrain.planner.memory import Modes, choose_modes, plan_memory
from pretrain.run.state import RunState
from tests.support.models import VOCAB_SIZE, batches, run_config
from tests.support.nvme import why_no_async_io
from tests.support.parts import full_except
from tests.support.ranks import RanksFailed, run_ranks
from tests.support.training import start, train, whole_state

# Sub-groups under a MiB stay in memory: these have 2 to 6 MB on each rank.
SHAPE = ("model.hidden_size=256", "model.ffn_hidden_size=1024", "optim.clip_grad_norm=0.2")
ON_DISK = ("engine.offload.optimizer=nvme",)
LAYOUTS = [
    ("gpt", {"tp": 2, "pp": 2, "sp": True}, 4, ()),  # sums over tensor-parallel ranks and over the tied ends
    ("llama", {"pp": 2}, 4, ("engine.precision=bf16",)),
    ("llama", {"tp": 1}, 2, ("engine.precision=fp16", "engine.offload.params=cpu")),
]

needs_async_io = pytest.mark.skipif(why_no_async_io() is not None, reason=str(why_no_async_io()))


# Otherwise each rank searches for the compiled op for seconds, one after the other.
run_on_disk = functools.partial(run_ranks, warm=require_async_io)


def config_of(model: str, shape: dict[str, int], world_size: int, *overrides: str) -> RunConfig:
    dp = world_size // (shape.get("tp", 1) * shape.get("pp", 1))
    return run_config(model, *SHAPE, *batches(dp, 3, 6), "engine.zero_stage=3", *overrides, **shape)


def trained(here: Runtime, config: RunConfig) -> tuple[list[float], dict[str, np.ndarray], int]:
    engine = start(here, config)
    results = train(here, config, engine, range(3))
    nvme = config.engine.offload.nvme_path
    files = [path.stat().st_size for path in Path(nvme).rglob("*.swp")] if nvme else []
    return [value for r in results for value in (r.loss, r.grad_norm)], whole_state(engine), sum(files)


def test_locks_of_killed_compilers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = [tmp_path / name / "lock" for name in ("async_io", "pin_memory")]
    for lock in locks:
        lock.parent.mkdir()
        lock.touch()
    found: list[bool] = []
    monkeypatch.setattr(AsyncIOBuilder, "load", lambda _, verbose: found.extend(lock.exists() for lock in locks))
    require_async_io()
    assert found == [False, False]


@needs_async_io
@pytest.mark.parametrize(("model", "shape", "world_size", "overrides"), full_except(LAYOUTS, LAYOUTS[:1]))
def test_states_on_a_disk_train_as_in_host_memory(
    model: str, shape: dict[str, int], world_size: int, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    at_host = "engine.offload.optimizer=cpu", "engine.grad_reduction=per_micro_batch"
    expected = run_on_disk(trained, world_size, config_of(model, shape, world_size, *overrides, *at_host))
    config = config_of(model, shape, world_size, *overrides, *ON_DISK, f"engine.offload.nvme_path={tmp_path}")
    parameters = sum(value.size for name, value in expected[0][1].items() if name.startswith("weight/"))
    for (numbers, state, _), (seen, swapped, on_disk) in zip(
        expected, run_on_disk(trained, world_size, config), strict=True
    ):
        assert seen == numbers
        assert swapped.keys() == state.keys()
        assert all(np.array_equal(swapped[name], value) for name, value in state.items())
        assert on_disk > 0.9 * 12 * parameters, "masters and moments are there, and not in memory"
        planned = plan_memory(config, VOCAB_SIZE, world_size, Modes("per_micro_batch", "per_micro_batch"))
        assert on_disk <= sum(stage.disk for stage in planned) * (world_size // len(planned)) * 1.01


# Parameter partitions under a MiB stay in memory: the largest ones here have 1 to 4 MiB.
LARGER = (
    "model.hidden_size=512",
    "model.ffn_hidden_size=2048",
    "model.seq_length=8",
    "optim.clip_grad_norm=0.2",
)
PARAMETERS_ON_DISK = ("engine.offload.params=nvme",)
PARAMETER_LAYOUTS: list[tuple[str, dict[str, int], int, tuple[str, ...], str]] = [
    ("gpt", {"tp": 2, "pp": 2, "sp": True}, 4, (), "none"),
    ("llama", {}, 2, (), "nvme"),
    ("llama", {"pp": 2}, 2, ("engine.precision=bf16",), "nvme"),
]


@needs_async_io
@pytest.mark.parametrize(
    ("model", "shape", "world_size", "overrides", "optimizer"), full_except(PARAMETER_LAYOUTS, PARAMETER_LAYOUTS[2:])
)
def test_parameters_on_a_disk_train_as_in_memory(
    model: str, shape: dict[str, int], world_size: int, overrides: tuple[str, ...], optimizer: str, tmp_path: Path
) -> None:
    shared = *LARGER, *overrides, "engine.grad_reduction=per_micro_batch"
    in_memory = "engine.param_gather=per_micro_batch", f"engine.offload.optimizer={optimizer.replace('nvme', 'cpu')}"
    on_disk = *PARAMETERS_ON_DISK, f"engine.offload.optimizer={optimizer}", f"engine.offload.nvme_path={tmp_path}"
    expected = run_on_disk(trained, world_size, config_of(model, shape, world_size, *shared, *in_memory))
    config = config_of(model, shape, world_size, *shared, *on_disk)
    seen = run_on_disk(trained, world_size, config)
    for (numbers, state, _), (found, swapped, written) in zip(expected, seen, strict=True):
        assert found == numbers
        assert all(np.array_equal(swapped[name], value) for name, value in state.items())
        planned = plan_memory(config, VOCAB_SIZE, world_size, choose_modes(config, VOCAB_SIZE, world_size, None))
        disk = sum(stage.disk for stage in planned) * (world_size // len(planned))
        assert 0.9 * disk < written <= 1.01 * disk


def saved(here: Runtime, config: RunConfig, folder: Path) -> dict[str, np.ndarray]:
    engine = start(here, config)
    train(here, config, engine, range(2))
    store = CheckpointStore(folder, groups=engine.groups, keep_last=1, keep_every=0)
    store.save(engine, RunState(step=2), {})
    return whole_state(engine)


def restored(here: Runtime, config: RunConfig, folder: Path) -> tuple[dict[str, np.ndarray], list[float]]:
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=1, keep_every=0)
    newest = store.newest()
    assert newest is not None
    store.restore(newest, engine)
    state = whole_state(engine)
    return state, [r.loss for r in train(here, config, engine, (2, 3))]


@needs_async_io
@pytest.mark.parametrize("saved_on_disk", full_except([True, False], [True]))
def test_a_checkpoint_moves_between_disk_and_memory(tmp_path: Path, saved_on_disk: bool) -> None:
    disk = (*ON_DISK, *PARAMETERS_ON_DISK, *LARGER, f"engine.offload.nvme_path={tmp_path / 'nvme'}")
    before, after = (disk, LARGER) if saved_on_disk else (LARGER, disk)
    folder = tmp_path / "checkpoints"
    (state, *_) = run_on_disk(saved, 2, config_of("gpt", {}, 2, *before), folder)
    expected = run_on_disk(restored, 2, config_of("gpt", {}, 2, *before), folder)[0]
    for seen, losses in run_on_disk(restored, 4, config_of("gpt", {"pp": 2}, 4, *after), folder):
        assert all(np.array_equal(seen[name], value) for name, value in state.items())
        np.testing.assert_allclose(losses, expected[1], rtol=1e-6)


def test_a_disk_without_room_is_refused_with_its_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.offload\.nvme_path=.* GiB free, and the 3 ranks .* need"):
        own_folder(str(tmp_path), "runs/one", 0, 2**60, 3)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"engine\.offload\.nvme_path: Not a directory"):
        own_folder(str(tmp_path / "file"), "runs/one", 0, 0, 1)


def without_compiler_tools(here: Runtime, config: RunConfig) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    def load(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to JIT load the async_io op\nlong story")

    AsyncIOBuilder.load = load
    start(here, config)


def test_a_failed_compilation_of_async_io_has_a_hint(tmp_path: Path) -> None:
    config = config_of("gpt", {}, 1, *ON_DISK, f"engine.offload.nvme_path={tmp_path}")
    with pytest.raises(
        RanksFailed, match=r"async_io cannot be compiled .*\(Unable to JIT load the async_io op\)\s+hint: install"
    ):
        run_ranks(without_compiler_tools, 1, dataclasses.replace(config))
