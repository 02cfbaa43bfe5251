"""A run that resumes in new processes equals the run that never stopped, at any ZeRO stage."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.checkpoint.store import CheckpointStore
from pretrain.config.run import RunConfig
from pretrain.distributed.runtime import Runtime
from pretrain.engine.interface import StepResult
from pretrain.run.state import RunState
from tests.support.models import batch_of, run_config, three_micro_batches
from tests.support.ranks import run_ranks
from tests.support.training import own_batch, start, train, whole_state

CLIP = "optim.clip_grad_norm=0.2"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
# The scale falls in the first steps and rises after each one that succeeds: its counters and Adam's differ.
RESTLESS_SCALE = ("engine.loss_scale.initial=2097152", "engine.loss_scale.hysteresis=2", "engine.loss_scale.window=1")
SAVED, LAST = 3, 6

State = dict[str, np.ndarray]


def settings(model: str, world_size: int, *overrides: str, **values: Any) -> RunConfig:
    return run_config(model, CLIP, *three_micro_batches(world_size), *overrides, **values)


@dataclass(frozen=True)
class Part:
    """Steps `SAVED + 1` to `LAST` of a run, or fewer."""

    results: list[StepResult]
    state: State

    @property
    def numbers(self) -> list[dict[str, float]]:
        """The results of the steps without their times."""
        return [{k: v for k, v in asdict(result).items() if not k.startswith("seconds")} for result in self.results]


def save_and_go_on(here: Runtime, config: RunConfig, folder: Path) -> tuple[Part, State]:
    """Train to `LAST`, saving at `SAVED`; returns what came after the save, and the state at it."""
    engine = start(here, config)
    train(here, config, engine, range(SAVED))
    saved = whole_state(engine)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0)
    store.save(engine, RunState(step=SAVED), {})
    return Part(train(here, config, engine, range(SAVED, LAST)), whole_state(engine)), saved


def never_save(here: Runtime, config: RunConfig) -> Part:
    engine = start(here, config)
    results = train(here, config, engine, range(LAST))
    return Part(results[SAVED:], whole_state(engine))


def resume(here: Runtime, config: RunConfig, folder: Path) -> tuple[Part, State]:
    """Restore and train to `LAST`; returns what came after, and the state that was restored."""
    engine = start(here, config)
    store = CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0)
    newest = store.newest()
    assert newest is not None
    state = store.restore(newest, engine)
    restored = whole_state(engine)
    return Part(train(here, config, engine, range(state.step, LAST)), whole_state(engine)), restored


def assert_same(state: State, expected: State) -> None:
    """Bit for bit."""
    assert state.keys() == expected.keys()
    different = [name for name, value in expected.items() if state[name].tobytes() != value.tobytes()]
    assert not different


CASES = [(stage, precision, 1) for stage in range(4) for precision in ("fp32", "bf16", "fp16")]
CASES += [(stage, "fp32", 2) for stage in range(4)]


@pytest.mark.parametrize(("stage", "precision", "world_size"), CASES)
def test_resume_matches_uninterrupted_run(tmp_path: Path, stage: int, precision: str, world_size: int) -> None:
    config = settings("gpt", world_size, *DROPOUT, *RESTLESS_SCALE, zero_stage=stage, precision=precision)
    whole, saved = run_ranks(save_and_go_on, world_size, config, tmp_path)[0]
    for part, restored in run_ranks(resume, world_size, config, tmp_path):
        assert_same(restored, saved)
        assert part.numbers == whole.numbers
        assert_same(part.state, whole.state)
    if precision == "fp16":
        assert len({result.loss_scale for result in whole.results}) > 1


@pytest.mark.parametrize("stage", range(4))
def test_saving_leaves_no_trace_in_the_run(tmp_path: Path, stage: int) -> None:
    config = settings("llama", 1, *DROPOUT, zero_stage=stage)
    (saving, _), (plain,) = run_ranks(save_and_go_on, 1, config, tmp_path)[0], run_ranks(never_save, 1, config)
    assert saving.numbers == plain.numbers
    assert_same(saving.state, plain.state)


@pytest.fixture(scope="module")
def saved_by_stage(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Part, State]]:
    """Checkpoints of two ranks, one for each ZeRO stage, made when first asked for."""
    made: dict[int, tuple[Path, Part, State]] = {}

    def saved(stage: int) -> tuple[Path, Part, State]:
        if stage not in made:
            folder = tmp_path_factory.mktemp(f"stage-{stage}")
            part, state = run_ranks(save_and_go_on, 2, settings("llama", 2, zero_stage=stage), folder)[0]
            made[stage] = folder, part, state
        return made[stage]

    return saved


@pytest.mark.parametrize(
    ("from_stage", "to_stage", "world_size"),
    [(old, new, (2, 1, 3)[(old + new) % 3]) for old in range(4) for new in range(4) if old != new],
)
def test_any_zero_stage_resumes_from_any_other(
    saved_by_stage: Callable[[int], tuple[Path, Part, State]], from_stage: int, to_stage: int, world_size: int
) -> None:
    folder, whole, saved = saved_by_stage(from_stage)
    config = settings("llama", world_size, zero_stage=to_stage)
    for part, restored in run_ranks(resume, world_size, config, folder):
        assert_same(restored, saved)
        # The step after the checkpoint sees the same parameters; Adam lets sums in another order drift apart later.
        assert part.results[0].loss == pytest.approx(whole.results[0].loss, rel=1e-6)
        assert part.results[0].grad_norm == pytest.approx(whole.results[0].grad_norm, rel=1e-6)
        assert part.results[1].loss == pytest.approx(whole.results[1].loss, rel=1e-5)


def resume_and_save(here: Runtime, config: RunConfig, folder: Path, into: Path) -> State:
    """Restore from one folder and save into another without training."""
    engine = start(here, config)
    old = CheckpointStore(folder, groups=engine.groups, keep_last=2, keep_every=0)
    newest = old.newest()
    assert newest is not None
    state = old.restore(newest, engine)
    CheckpointStore(into, groups=engine.groups, keep_last=2, keep_every=0).save(engine, state, {})
    return whole_state(engine)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_then_one_then_three_hold_the_same_bits(tmp_path: Path, stage: int) -> None:
    two, one, three = (settings("gpt_odd", world_size, zero_stage=stage) for world_size in (2, 1, 3))
    whole, saved = run_ranks(save_and_go_on, 2, two, tmp_path / "two")[0]
    (alone,) = run_ranks(resume_and_save, 1, one, tmp_path / "two", tmp_path / "one")
    assert_same(alone, saved)
    for part, restored in run_ranks(resume, 3, three, tmp_path / "one"):
        assert_same(restored, saved)
        assert part.results[0].loss == pytest.approx(whole.results[0].loss, rel=1e-6)


def logits_of(here: Runtime, config: RunConfig, folder: Path | None, save_to: Path | None) -> np.ndarray:
    """Logits of one sample, of weights restored without their optimizer or trained here."""
    engine = start(here, config)
    store = CheckpointStore(folder or save_to or Path(), groups=engine.groups, keep_last=2, keep_every=0)
    if folder is not None:
        newest = store.newest()
        assert newest is not None
        store.restore_weights(engine, newest, lambda: newest)
    else:
        train(here, config, engine, range(SAVED))
        store.save(engine, RunState(step=SAVED), {})
    return engine.logits(torch.from_numpy(batch_of(0, 1, config)[:, :-1])).cpu().numpy()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_alone_give_the_same_logits_on_one_process(tmp_path: Path, precision: str) -> None:
    config = settings("llama_tied", 2, zero_stage=3, precision=precision)
    trained = run_ranks(logits_of, 2, config, None, tmp_path)[0]
    alone = settings("llama_tied", 1, zero_stage=0, precision=precision)
    (restored,) = run_ranks(logits_of, 1, alone, tmp_path, None)
    np.testing.assert_allclose(restored, trained, rtol=1e-5, atol=1e-6)


def evaluation_between_steps(here: Runtime, config: RunConfig, evaluate: bool) -> list[float]:
    engine = start(here, config)
    losses = []
    for step in range(4):
        if evaluate:
            batch = own_batch(here, config, 100 + step)
            engine.evaluate(batch, torch.ones(len(batch), config.model.seq_length))
        losses += [result.loss for result in train(here, config, engine, [step])]
    return losses


@pytest.mark.parametrize("stage", range(4))
def test_evaluation_leaves_no_trace_in_the_run(stage: int) -> None:
    config = settings("llama", 2, *DROPOUT, zero_stage=stage)
    assert run_ranks(evaluation_between_steps, 2, config, True) == run_ranks(evaluation_between_steps, 2, config, False)
