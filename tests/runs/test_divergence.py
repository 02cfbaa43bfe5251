"""How a run handles losses that are not numbers."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from pretrain.config.errors import TrainingDiverged
from pretrain.config.load import load_run_config
from pretrain.config.run import RunConfig
from pretrain.engine.interface import Engine, StepResult
from pretrain.exit_codes import ExitCode
from pretrain.model.flops import token_flops
from pretrain.run.length import RunLength
from pretrain.run.state import RunState
from tests.support.ranks import run_ranks
from tests.support.runs import SHAPE, TRAINING, train_records


def test_a_diverged_run_stops_and_names_its_last_checkpoint(finished_run, place):
    run = Path(shutil.copytree(finished_run, place.run_dir("finished")))
    # Step 17 ruins the parameters; 18 and 19 may be bad, 20 may not.
    done = place.train(
        "finished",
        "model.hidden_dropout=0.1",
        "run.accept_changes=[optim.lr]",
        "optim.lr=1e30",
        "train.max_steps=24",
        "train.max_bad_steps=2",
    )
    assert done.returncode == ExitCode.DIVERGED and "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if "training diverged: " in line]
    assert "step 20: loss nan, gradient norm inf; batch of samples 152 to 159; 3 bad steps so far" in message
    assert "train.max_bad_steps=2 allowed; last good checkpoint: runs/finished/checkpoints/step-00000016" in message
    assert "  hint: lower optim.lr, or look at the text of that batch" in done.stderr.splitlines()
    # The rate was accepted by name, the length needs no leave; both are logged, and stay known.
    assert "changed after step 16: optim.lr: 0.003 there, 1e+30 now" in done.stderr
    assert "changed after step 16: train.max_steps: 16 there, 24 now" in done.stderr
    (changes,) = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert changes["step"] == 16
    assert changes["changes"] == {
        "optim.lr": [0.003, 1e30],
        "train.max_bad_steps": [0, 2],
        "train.max_steps": [16, 24],
    }
    records = train_records(run)
    assert [records[step]["bad_steps"] for step in (17, 18, 19)] == [0, 1, 2] and 20 not in records
    assert math.isnan(records[19]["loss"])
    assert max(path.name for path in (run / "checkpoints").iterdir()) == "step-00000016"


@dataclass
class Poisoned:
    """A real engine whose losses are NaN in some steps; remembers the whole state around each step."""

    engine: Any
    bad: frozenset[int]
    step: int = 0
    unchanged: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def poison(_module: object, _inputs: object, losses: Any) -> Any:
            return losses * math.nan if self.step in self.bad else losses

        self.engine.stage.chunks[-1].register_forward_hook(poison)

    def train_step(self, tokens: Any, lr: float, mask: Any = None) -> StepResult:
        self.step += 1
        before = self._state()
        result: StepResult = self.engine.train_step(tokens, lr, mask)
        after = self._state()
        self.unchanged[self.step] = all(np.array_equal(before[name], after[name]) for name in after)
        return result

    def _state(self) -> dict[str, np.ndarray]:
        engine: Engine = self.engine
        parts = engine.state_shards()
        return {f"{part.name}+{part.start}": part.data.detach().cpu().numpy().copy() for part in parts}


@dataclass(frozen=True)
class Seen:
    """The result of a run with bad steps."""

    outcome: str
    records: list[dict[str, Any]]
    unchanged: dict[int, bool]


class NoCheckpoints:
    """Saves nothing."""

    def due_by_clock(self) -> int:
        return 0

    def after_step(self, state: RunState, by_clock: int, *, last: bool) -> None:
        pass

    def last_name(self) -> str:
        return "none"


def run_poisoned(here: Any, config: RunConfig, folder: Path, bad: frozenset[int]) -> Seen:
    """The product's loop over real batches and a poisoned engine."""
    from pretrain.engine.build import build_engine
    from pretrain.tracking.speed import StepClock
    from pretrain.training.loop import run_loop
    from tests.support.training import join

    groups = join(here, config)
    dataset = PackedDataset.open(folder, "train")
    batch = config.train.global_batch_size
    batches = train_batches(dataset, seed=1, global_batch_size=batch, rank=here.rank, size=here.world_size, position=0)
    tokenizer = dataset.manifest.tokenizer
    engine = Poisoned(
        build_engine(config, tokenizer.vocab_size, groups, here.device, eod_id=tokenizer.eod_id),
        bad,
    )
    records: list[dict[str, Any]] = []
    try:
        _, outcome = run_loop(
            config=config,
            engine=engine,  # type: ignore[arg-type]
            batches=batches,
            state=RunState(),
            length=RunLength.of(config),
            last_step=6,
            samples_counted_here=True,
            clock=StepClock(token_flops(config.model, tokenizer.vocab_size), here.world_size, None),
            record=lambda kind, step, values: records.append({"kind": kind, "step": step, **values}),
            evaluate=lambda max_samples: {"loss": 0.0},
            checkpoints=NoCheckpoints(),
            stop_requested=lambda: False,
            control=groups.control,
        )
    except TrainingDiverged as error:
        outcome = str(error)
    finally:
        batches.close()  # type: ignore[attr-defined]
    return Seen(outcome, [r for r in records if r["kind"] == "train"], engine.unchanged)


def poisoned_config(precision: str, zero_stage: int, max_bad_steps: int) -> RunConfig:
    return load_run_config(
        [
            *SHAPE,
            *TRAINING,
            f"engine.precision={precision}",
            f"engine.zero_stage={zero_stage}",
            f"train.max_bad_steps={max_bad_steps}",
        ]
    )


@pytest.mark.parametrize(
    ("precision", "zero_stage", "world_size"),
    [("fp32", 0, 1), ("fp32", 1, 1), ("fp32", 2, 2), ("fp32", 3, 2), ("bf16", 0, 1), ("bf16", 2, 1), ("fp16", 1, 2)],
)
def test_bad_steps_that_are_allowed_are_skipped_and_counted(dataset, precision, zero_stage, world_size):
    config = poisoned_config(precision, zero_stage, max_bad_steps=2)
    for seen in run_ranks(run_poisoned, world_size, config, dataset, frozenset({2, 5})):
        assert seen.outcome == "finished"
        assert [record["bad_steps"] for record in seen.records] == [0, 1, 1, 1, 2, 2]
        assert {step for step, same in seen.unchanged.items() if same} == {2, 5}
        # A skipped step has used its samples up.
        assert [record["samples"] for record in seen.records] == [8, 16, 24, 32, 40, 48]
        assert all(math.isfinite(record["loss"]) for record in seen.records if record["step"] not in (2, 5))


def test_one_bad_step_too_many_stops_the_run(dataset):
    config = poisoned_config("fp32", 1, max_bad_steps=1)
    (seen,) = run_ranks(run_poisoned, 1, config, dataset, frozenset({2, 5}))
    assert seen.outcome.startswith("step 5: loss nan")
    assert "batch of samples 32 to 39; 2 bad steps so far, train.max_bad_steps=1 allowed" in seen.outcome
    assert "last good checkpoint: none" in seen.outcome
    assert seen.unchanged[5] and seen.records[-1]["step"] == 4
