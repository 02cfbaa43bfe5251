"""A measured record: its file, its grids, and the arithmetic between measurements and costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.bench.record.destination import check_destination
from pretrain.bench.record.engine import (
    FEW_LAYERS,
    Probe,
    Times,
    engine_cost,
    layer_cost,
    layer_host_seconds,
    wide_probes,
)
from pretrain.bench.record.links import sizes_up_to
from pretrain.bench.record.links_of import with_links
from pretrain.bench.record.products import shapes
from pretrain.bench.record.record import guessed
from pretrain.bench.record.summary import summary
from pretrain.bench.record.timer import Timer
from pretrain.config.errors import RunError
from pretrain.planner.time.cpu_costs import Collective
from pretrain.planner.time.hardware import load_hardware, write_hardware


def test_a_new_file_and_an_older_record_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    check_destination(file)
    write_hardware(load_hardware("cpu"), file, "older")
    check_destination(file)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"], "nothing is left of the trial"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/mine.yaml", "there is no folder .*nowhere"),
        ("mine.json", "must end in .yaml"),
        ("folder.yaml", "is a folder"),
        ("other.yaml", "exists and is not a record of a machine"),
        ("of-another-version.yaml", "exists and is not a record of a machine.*unknown key"),
        ("file/mine.yaml", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "other.yaml").write_text("model: tiny\n")
    write_hardware(load_hardware("cpu"), tmp_path / "of-another-version.yaml", "newer")
    with (tmp_path / "of-another-version.yaml").open("a") as stream:
        stream.write("version: 7\n")
    before = (tmp_path / "of-another-version.yaml").read_text()
    with pytest.raises(RunError, match=words):
        check_destination(tmp_path / name)
    assert (tmp_path / "of-another-version.yaml").read_text() == before


def test_a_folder_that_takes_no_file_is_refused() -> None:
    with pytest.raises(RunError, match=r"/proc/mine.yaml: cannot be written"):
        check_destination(Path("/proc/mine.yaml"))


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_grid_of_products_grows_and_is_bounded(on_cpu: bool) -> None:
    found = shapes(on_cpu=on_cpu)
    operations = [2 * m * k * n for m, k, n in found]
    assert operations == sorted(operations) and len(set(found)) == len(found)
    assert operations[-1] <= (2.2e9 if on_cpu else 2.3e12)


def test_the_least_of_several_calls_counts() -> None:
    timer = Timer(torch.device("cpu"), 1)
    calls: list[int] = []
    assert timer.best(lambda: calls.append(1), seconds=0.0) > 0
    assert len(calls) == 4, "one that does not count, and three"


def steps_of(law: Any) -> Any:
    """Steps whose times follow a law."""
    return SimpleNamespace(times=law)


def test_engine_costs_are_found_in_steps_that_follow_them() -> None:
    def law(probe: Probe) -> Times:
        parameters = probe.layers * 2 * probe.hidden * probe.inner
        own = 2e-9 * parameters if probe.zero_stage == 1 else 0.0
        passes = probe.micro_batches * (3e-4 + probe.layers * (5e-4 + 1e-4 * (probe.zero_stage == 1))) + own
        return Times(passes + 7e-4 + probe.layers * 2e-4 + 1e-9 * parameters, passes)

    cost = engine_cost(steps_of(law), 1, "fp32", layer_host_seconds(steps_of(law), "gelu", "fp32"), 1e-9)
    tiny = 2 * 16 * 16 * 3e-3  # us of a tiny layer's own parameters
    assert cost.micro_batch_us == pytest.approx(300, rel=1e-6)
    assert cost.layer_us == pytest.approx(100, rel=1e-6)
    assert cost.step_layer_us == pytest.approx(200 + tiny, rel=1e-6)
    assert cost.step_us == pytest.approx(700, rel=1e-6)
    assert cost.parameter_ns == pytest.approx(2.0, rel=0.01)


def test_a_layers_cost_is_what_kernels_leave() -> None:
    probes = wide_probes("swiglu", "bf16")
    kernels = [0.0, 3e-3, 5e-3]

    def passes(probe: Probe, kernel: float) -> float:
        moved = probe.tokens * (20e-9 * probe.hidden + 4e-9 * probe.inner)
        return 2e-3 + probe.layers * (kernel + 6e-4 + moved)

    kernels[0] = kernels[1]
    seconds = [passes(probe, kernel) for probe, kernel in zip(probes, kernels, strict=True)]
    cost = layer_cost(probes, seconds, kernels[1:], 6e-4)
    assert (cost.activation, cost.precision) == ("swiglu", "bf16")
    assert cost.host_us == pytest.approx(600)
    assert cost.hidden_ns == pytest.approx(20) and cost.inner_ns == pytest.approx(4)
    assert probes[0].layers == FEW_LAYERS


def test_noise_makes_no_negative_cost() -> None:
    still = steps_of(lambda probe: Times(1e-3 / probe.layers, 9e-4 / probe.micro_batches))
    cost = engine_cost(still, 3, "bf16", 1.0, 1.0)
    assert min(cost.step_us, cost.step_layer_us, cost.micro_batch_us, cost.layer_us, cost.parameter_ns) >= 0


@pytest.mark.parametrize(("number", "sizes"), [(1, []), (2, [2]), (3, [2, 3]), (8, [2, 4, 8]), (6, [2, 4, 6])])
def test_groups_grow_to_all_ranks(number: int, sizes: list[int]) -> None:
    assert sizes_up_to(number) == sizes


def group(ranks: int, latency: float, gbps: float) -> list[Collective]:
    return [Collective(kind, ranks, latency, gbps) for kind in ("all_reduce", "all_gather", "reduce_scatter", "send")]


def test_links_are_those_of_the_collectives() -> None:
    base = load_hardware("h100")
    inside, between = [group(2, 10, 100), group(8, 22, 160)], [group(2, 30, 40), group(16, 60, 150)]
    record = with_links(base, inside, between, {}, "here")
    assert record.in_node.latency_us.value == 10 and record.in_node.hop_us.value == pytest.approx(2)
    assert record.in_node.gbps.value == pytest.approx(160 * 2 * 7 / 8)
    assert record.between_nodes.gbps.value == pytest.approx(40)
    assert record.nics_per_ring.value == round(150 * 2 * 15 / 16 / 40)
    assert {record.in_node.gbps.origin, record.nics_per_ring.origin} == {"measured"}
    assert record.copy_gbps == base.copy_gbps
    assert "links in the node: 10 us" in summary(record)


def test_an_unknown_machine_keeps_no_published_value() -> None:
    record = guessed(load_hardware("a100_80"), "as an A100")
    assert {quantity.origin for _, quantity in record.quantities()} == {"guess"}
    assert record.copy_gbps.value == load_hardware("a100_80").copy_gbps.value
