"""A planned step beside a measured one."""

import dataclasses
from pathlib import Path

import pytest

from pretrain.config.errors import ConfigError
from pretrain.config.load import load_run_config
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.versus import beside_run, beside_trace, check_hardware, planned_step

PLANNED = StepTime(
    seconds=0.1,
    low=0.09,
    high=0.12,
    parts={"matrix products": 0.04, "attention": 0.02, "data parallel": 0.01, "optimizer": 0.01, "host": 0.02},
    limit="matrix products",
    ranks=1,
    tokens=1024,
    mfu={},
    hardware="mine",
    origins={},
)
RUN = {"seconds_step": 0.11, "seconds_data": 0.0, "seconds_forward_backward": 0.085, "seconds_optimizer": 0.02}


def test_the_part_with_the_largest_difference_is_named() -> None:
    versus = beside_run(PLANNED, RUN | {"seconds_optimizer": 0.024})
    assert versus.most_off is not None and versus.most_off.part == "forward and backward"
    assert versus.ratio == pytest.approx(0.1 / 0.11)
    assert "planned 100 ms for mine, measured 110 ms (planned / measured 0.91, within the planned band)" in versus.line
    assert versus.line.endswith("most off is forward and backward: planned 80 ms, measured 85 ms")


def test_waiting_for_data_was_not_planned() -> None:
    versus = beside_run(PLANNED, RUN | {"seconds_step": 0.2, "seconds_data": 0.09})
    assert versus.most_off is not None and versus.most_off.part == "data"
    assert "outside the planned band" in versus.line


def test_planned_parts_are_those_of_the_trace() -> None:
    measured = {"matrix products": 0.04, "attention": 0.02, "elementwise and norms": 0.03, "idle": 0.02, "data": 0.0}
    versus = beside_trace(PLANNED, 0.11, measured)
    rows = {row.part: (row.planned, row.measured) for row in versus.rows}
    assert rows["waiting"] == (0.02, 0.02) and rows["communication"] == (0.01, 0.0)
    assert versus.most_off is not None and versus.most_off.part == "elementwise and norms"
    assert sum(row.planned for row in versus.rows) == pytest.approx(PLANNED.seconds)


def test_without_a_trace_only_the_whole_step_is_compared() -> None:
    versus = beside_trace(PLANNED, 0.11, {})
    assert versus.most_off is None and versus.line.endswith("band)")


def test_a_machine_is_named_or_known_by_its_gpu() -> None:
    config = load_run_config(["tracking=off"])
    assert planned_step(config, 512, 1, 2**34, None) is None
    assert planned_step(config, 512, 1, 2**34, "Some GPU") is None
    known = planned_step(config, 512, 1, 2**34, "NVIDIA H100 80GB HBM3")
    assert known is not None and known.hardware == "h100"
    named = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, hardware="a100_80"))
    chosen = planned_step(named, 512, 1, 2**34, "NVIDIA H100 80GB HBM3")
    assert chosen is not None and chosen.hardware == "a100_80"


def test_a_record_that_cannot_be_read_is_refused_early(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        check_hardware(load_run_config([f"cluster.hardware={tmp_path}/none.yaml"]))
    check_hardware(load_run_config([]))
