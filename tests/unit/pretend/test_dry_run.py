"""Which ranks and steps a dry run takes, how steps are extrapolated, and its mistakes in one line."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from pretrain.config.load import load_run_config
from pretrain.planner.shapes import all_stages
from pretrain.pretend.dry_run import resolved
from pretrain.pretend.measured import Step, Traffic, extrapolated
from pretrain.pretend.stages import distinct_stages, steps_to_take

TINY = ("model=tiny", "model.num_layers=8", "train.global_batch_size=64", "train.micro_batch_size=1")


def step(micro_batches: int, gathers: int, waits: int) -> Step:
    traffic = Traffic("data", "all-gather", 4, gathers, 100 * gathers)
    return Step(micro_batches, 1.0, 10 * micro_batches, 7, 5, 0, {"item": waits}, 50 * micro_batches, (traffic,))


def test_equal_stages_are_run_once() -> None:
    config = load_run_config([*TINY, "parallel.pp=4"])
    first, middle, last = distinct_stages(all_stages(config.model, config.parallel, 512))
    assert (first.first, middle.first, last.first) == (0, 1, 3)
    assert (first.others, middle.others, last.others) == ((), (2,), ())


@pytest.mark.parametrize(
    ("pp", "vp", "number", "pp_rank", "steps"),
    [
        (1, 1, 1, 0, (1, 1)),
        (1, 1, 8, 0, (1, 1, 2)),
        (4, 1, 16, 0, (1, 1, 5)),
        (4, 1, 16, 3, (1, 1, 2)),
        (4, 1, 5, 0, (1, 5)),
        (2, 2, 8, 0, (2, 2, 4)),
        (2, 2, 2, 0, (2, 2)),
    ],
)
def test_steps_reach_the_steady_state(pp: int, vp: int, number: int, pp_rank: int, steps: tuple[int, ...]) -> None:
    parallel = replace(load_run_config([*TINY]).parallel, pp=pp, vp=vp)
    assert steps_to_take(parallel, number, pp_rank) == steps


def test_counts_are_extrapolated_and_peaks_kept() -> None:
    whole = extrapolated(step(1, 3, 2), step(3, 7, 2), 11)
    assert (whole.micro_batches, whole.operations, whole.waits) == (11, 550, {"item": 2})
    assert whole.traffic == (Traffic("data", "all-gather", 4, 23, 2300),)
    assert whole.peak_forward_backward == 30
    assert extrapolated(step(1, 3, 2), step(3, 7, 2), 3) == step(3, 7, 2)


def test_bytes_received_are_those_of_a_ring() -> None:
    found = [Traffic("data", kind, 4, 1, 100).received for kind in ("all-reduce", "all-gather", "send", "receive")]
    assert found == [150, 75, 0, 100]


@pytest.mark.parametrize(
    ("overrides", "ranks", "message"),
    [
        (("parallel.tp=3",), 16, "parallel.tp=3"),
        (("engine.zero_stage=3", "engine.offload.optimizer=nvme", "engine.offload.nvme_path=/tmp"), 4, "nvme"),
        (("train.micro_batch_size=auto",), 4, "train.micro_batch_size=auto"),
        (("engine.attention=flash",), 4, "engine.attention=flash"),
    ],
)
def test_mistakes_are_refused_before_any_work(overrides: tuple[str, ...], ranks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(load_run_config([*TINY, *overrides]), ranks, None)


@pytest.mark.full
def test_the_command_prints_json_alone(tmp_path: Path) -> None:
    words = [*TINY, "parallel.tp=2", "parallel.pp=4", "engine=zero3_bf16", "tokenizer.vocab_size=512"]
    command = [sys.executable, "-m", "pretrain", "plan", "--dry-run", "--json", "--ranks", "64", *words]
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE)
    stages = json.loads(done.stdout)["stages"]
    assert [(stage["stage"], stage["stands_for"]) for stage in stages] == [(0, []), (1, [2]), (3, [])]
    for stage in stages:
        assert stage["elements"]["measured"] == stage["elements"]["planned"]
        for part in ("parameters", "master weights", "Adam's moments"):
            assert stage["memory"][part]["measured"] == stage["memory"][part]["planned"]
        for received in stage["data_parallel_received"].values():
            assert received["measured"] == pytest.approx(received["planned"], rel=0.02)
