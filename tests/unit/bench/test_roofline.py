"""The parts of a step beside their ideals: they add up to the step, whatever was profiled."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.bench.parts import PartTimes
from pretrain.bench.plot import draw
from pretrain.bench.roofline import Row, elementwise_elements, ideal_seconds, limit, roofline
from pretrain.config.load import load_run_config
from pretrain.distributed.grid import ParallelLayout
from pretrain.model.flops import token_flops
from pretrain.model.size import count_parameters

IDEAL = {
    "matrix products": 1.0,
    "attention": 0.5,
    "elementwise and norms": 0.25,
    "communication": None,
    "optimizer": 0.125,
    "data": 0.0,
    "idle": 0.0,
}
seconds = st.floats(0, 100)


@given(
    st.dictionaries(
        st.sampled_from(["matrix products", "attention", "optimizer", "communication", "data"]), seconds, min_size=1
    ),
    st.floats(0.001, 100),
    seconds,
    st.booleans(),
)
def test_the_parts_add_up_to_the_step(parts, step, data, on_gpu):
    whole = sum(parts.values()) * 1.01 + 0.001
    rows = roofline(PartTimes(parts, whole, on_gpu), step, data, IDEAL)
    assert sum(row.seconds for row in rows) == pytest.approx(step)
    assert all(row.seconds >= 0 for row in rows)


def test_kernels_count_by_time_and_operators_in_proportion():
    parts = {"matrix products": 4.0, "optimizer": 1.0}
    by_gpu = {row.part: row.seconds for row in roofline(PartTimes(parts, 20.0, True), 8.0, 1.0, IDEAL)}
    assert by_gpu["matrix products"] == 4 and by_gpu["data"] == 1 and by_gpu["idle"] == 2
    by_cpu = {row.part: row.seconds for row in roofline(PartTimes(parts, 10.0, False), 5.0, 1.0, IDEAL)}
    assert by_cpu["matrix products"] == 2 and by_cpu["data"] == 1 and by_cpu["idle"] == 1.5
    waiting_while_busy = roofline(PartTimes({"matrix products": 7.5}, 8.0, True), 8.0, 3.0, IDEAL)
    assert {row.part: row.seconds for row in waiting_while_busy}["data"] == 0.5


def test_ideal_times_come_from_measured_rates():
    config = load_run_config(["model=tiny", "engine.precision=bf16"])
    tokens, flops = 16 * 256, token_flops(config.model, 1000)
    ideal = ideal_seconds(config, 1000, ParallelLayout(1), products=1e9, bandwidth=1e6)
    assert ideal["matrix products"] + ideal["attention"] == pytest.approx(tokens * flops.six_n_6lhs / 1e9)
    # Masters, two moments: read and written in fp32; fp32 gradients read twice; parameters written in 16 bits.
    assert ideal["optimizer"] == pytest.approx(count_parameters(config.model, 1000).total * (24 + 8 + 2) / 1e6)
    assert ideal["elementwise and norms"] == pytest.approx(2 * tokens * elementwise_elements(config.model, 1000) / 1e6)
    two = ideal_seconds(config, 1000, ParallelLayout(2), products=1e9, bandwidth=1e6)
    assert two["matrix products"] == ideal["matrix products"] / 2
    assert two["optimizer"] == ideal["optimizer"] / 2, "ZeRO-1 cuts the update"


def test_elements_moved_by_hand():
    model = load_run_config(["model=tiny"]).model  # 2 layers of 128 and 512, gelu, no rotary positions
    assert elementwise_elements(model, 1000) == 2 * (22 * 128 + 5 * 512) + 5 * 128 + 2 * 1000


def test_one_line_names_the_largest_part_and_the_largest_gain():
    rows = [Row("matrix products", 6.0, 5.4), Row("elementwise and norms", 3.0, 0.5), Row("idle", 1.0, 0.0)]
    assert limit(rows) == (
        "matrix products take most, 60% of the step, at 90% of the measured limit; "
        "the largest gain is in elementwise and norms: 2500.0 ms (25%) above its limit"
    )
    assert limit([Row("data", 9.0, 0.0), Row("matrix products", 1.0, 1.0)]).startswith("data takes most, 90%")


def test_without_profile_no_limit_is_reported():
    """Without CUPTI no kernel is seen, which does not mean that the step is idle."""
    rows = roofline(PartTimes({}, 20.0, on_gpu=True), 8.0, 1.0, IDEAL)
    assert (rows, limit(rows)) == ([], "not known")
    step = {"all": [1.0, 2.0], "median": 1.5, "p95": 2.0}
    with warnings.catch_warnings(action="error"):
        assert draw({"model": "tiny", "environment": {"device": "one"}, "step_seconds": step, "roofline": rows})
