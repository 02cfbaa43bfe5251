"""Costs of a CPU between measured ones."""

import dataclasses

import pytest

from pretrain.planner.time.cpu_costs import CpuCosts, LossCost
from pretrain.planner.time.cpu_kernels import DATA_GRADIENT, FORWARD, WEIGHT_GRADIENT, CpuKernels
from pretrain.planner.time.hardware import AttentionCurve, Product, ProductTable, load_hardware

COSTS = CpuCosts("here", 1, 2, (), (), (), 1.0, 1.0, {})


@pytest.mark.parametrize(
    ("crowding", "ranks", "factor"),
    [
        ({}, 1, 1.0),
        ({}, 2, 1.0),
        ({}, 4, 2.0),
        ({"1": 1.0, "2": 1.1}, 2, 1.1),
        ({"1": 1.0, "2": 1.1}, 8, 4.4),
        ({"1": 1.0, "2": 1.1, "4": 2.3}, 3, 1.7),
        ({"1": 1.0, "2": 1.1, "4": 2.4}, 8, 4.8),
    ],
)
def test_more_ranks_than_cores_slow_each_other_down(crowding: dict[str, float], ranks: int, factor: float) -> None:
    assert dataclasses.replace(COSTS, crowding=crowding).slowdown(ranks) == pytest.approx(factor)


def test_losses_are_interpolated_by_the_number_of_logits() -> None:
    cost = LossCost("plain", "fp32", {"1024": 1.0, "4096": 3.0})
    assert [cost.at(logits) for logits in (1, 1024, 2048, 4096, 10**9)] == [1, 1, 2, 3, 3]


def kernels() -> CpuKernels:
    sizes = [16, 64, 256]
    rows = [
        Product(m, k, n, 0.001 * (m * k * n) ** 0.5, accumulate=accumulate, data_gradient=gradient)
        for m in sizes
        for k in sizes
        for n in sizes
        for gradient, accumulate in (FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT)
        if m * k * n < 256**3
    ]
    curve = AttentionCurve("cpu", "forward", 64, "measured", "here", {"64": 0.01, "256": 0.04})
    hardware = dataclasses.replace(
        load_hardware("cpu"), products=(ProductTable("fp32", "measured", "here", tuple(rows)),), attention=(curve,)
    )
    return CpuKernels(hardware, "fp32")


@pytest.mark.parametrize("role", [FORWARD, DATA_GRADIENT, WEIGHT_GRADIENT])
@pytest.mark.parametrize("shape", [(16, 64, 16), (32, 64, 128), (16, 20, 30)])
def test_products_follow_a_power_law_between_points(shape: tuple[int, int, int], role: tuple[bool, bool]) -> None:
    m, k, n = shape
    assert kernels().product(*shape, role) == pytest.approx(2e-9 * (m * k * n) ** 0.5)


def test_beyond_the_grid_the_rate_stays() -> None:
    border, twice = kernels().product(16, 64, 256, FORWARD), kernels().product(16, 64, 512, FORWARD)
    assert twice == pytest.approx(2 * border)


def test_a_missing_corner_takes_its_neighbours() -> None:
    assert kernels().product(256, 256, 256, FORWARD) > 0
    assert kernels().product(250, 256, 256, FORWARD) > 0


def test_attention_is_interpolated_by_length() -> None:
    seconds = kernels().attention("forward", 2, 128, 4, 64)
    assert seconds == pytest.approx(2 * 2 * 4 * 128**2 * 64 / 0.02e12)
    assert kernels().attention("backward", 2, 128, 4, 64) > 0, "no curve: the rate of products"
