"""A machine measured by the real code, with few and small measurements."""

from pathlib import Path
from unittest import mock

from pretrain.bench.record import alone, attention, engine, links, passes, products, record, timer
from pretrain.bench.record.record import record_machine
from pretrain.config.load import load_run_config
from pretrain.planner.time.hardware import Hardware, load_hardware, read_hardware
from pretrain.pretend.machine import on_pretend_gpu
from tests.support.ranks import run_ranks

COMMAND = ("pretrain", "bench", "--record", "mine.yaml")


def recorded(path: Path) -> Hardware | None:
    for module, changes in {
        timer: {"SERIES_SECONDS": 0.0},
        products: {"SIZES_ON_CPU": (16, 32), "SIZES_ON_GPU": (16, 32)},
        attention: {
            "WIDTHS_ON_CPU": (16,),
            "WIDTHS_ON_GPU": (16,),
            "LENGTHS_ON_CPU": (16, 32),
            "LENGTHS_ON_GPU": (16, 32),
            "TOKENS_ON_GPU": 64,
        },
        passes: {
            "SECONDS": 0.0,
            "COPIED_ON_CPU": 2**16,
            "SUMMED_ON_CPU": 2**16,
            "TABLE": (64, 16),
            "COPIED_ON_GPU": 2**16,
            "SUMMED_ON_GPU": 2**16,
            "PARAMETERS_ON_CPU": 2**12,
            "PARAMETERS_ON_GPU": 2**12,
            "TOKENS": (1, 2),
        },
        engine: {"WARM_UP": 0, "STEPS": 1, "MANY_LAYERS": 2, "MANY_MICRO_BATCHES": 2},
        alone: {"ZERO_STAGES": (1,), "ACTIVATIONS": ("gelu",)},
        links: {"ROUNDS": 3, "LARGE_BYTES_ON_CPU": 2**16, "CROWDED_SECONDS": 0.01},
    }.items():
        for name, value in changes.items():
            setattr(module, name, value)
    with (
        mock.patch.object(timer.Timer.best, "__defaults__", (0.0,)),
        mock.patch.object(products.measure_products, "__defaults__", (0.0,)),
        mock.patch.object(record, "_in_own_process", lambda overrides: load_hardware("cpu")),
    ):
        return record_machine(load_run_config(["engine.device=cpu"]), path, [], COMMAND)


def test_one_rank_measures_all_but_links(tmp_path: Path) -> None:
    (found,) = run_ranks(recorded, 1, tmp_path / "mine.yaml", joined=False)
    assert found == read_hardware(tmp_path / "mine.yaml") and found.name == "mine"
    guesses = [name for origin, names in found.origins().items() if origin != "measured" for name in names]
    assert {name.partition(".")[0] for name in guesses} == {
        "context_gib",
        "nccl_gib",
        "devices_per_node",
        "in_node",
        "between_nodes",
        "nics_per_node",
        "nics_per_ring",
    }
    heading = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    assert heading.startswith("# A machine as measured by `pretrain bench --record mine.yaml`")
    assert found.cpu is not None and found.cpu.threads == 1
    assert "torch 2" in found.copy_gbps.source


def test_two_ranks_add_their_links(tmp_path: Path) -> None:
    found, other = run_ranks(recorded, 2, tmp_path / "mine.yaml", joined=False)
    assert other is None, "one rank writes"
    assert found == read_hardware(tmp_path / "mine.yaml")
    assert found.in_node.gbps.origin == found.in_node.latency_us.origin == "measured"
    assert found.in_node.gbps.value > 0 and found.in_node.hop_us.origin == "guess", "two ranks show no further hop"


def test_the_code_for_a_gpu_runs(tmp_path: Path) -> None:
    """Without a GPU its times mean nothing, but every operation is one that a GPU takes."""
    (found,) = run_ranks(recorded, 1, tmp_path / "mine.yaml", joined=False, around=on_pretend_gpu)
    assert found.cpu is None
    assert found.host_layer_us.origin == found.host_step_us.origin == "measured"
