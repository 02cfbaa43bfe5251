"""Figures follow from the steps; a result is read back as it was saved, compared, and nothing else is taken for one."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards.reader import PackedDataset
from data_pipeline.stream.loader import train_batches
from pretrain.bench.compare import compare
from pretrain.bench.data import EOD_ID, document_lengths, open_prepared, write_synthetic
from pretrain.bench.measure import BenchOptions, bench, check_memory
from pretrain.bench.result import FORMAT, load, mfu, new_folder, step_figures
from pretrain.bench.suite import SUITES, run_suite
from pretrain.commands import bench as bench_command
from pretrain.config.checks import check_run
from pretrain.config.errors import RunError
from pretrain.config.load import load_run_config
from pretrain.config.redact import public_words
from pretrain.distributed.grid import ParallelLayout
from pretrain.model.flops import TokenFlops
from pretrain.model.size import count_parameters
from tests.support.runs import ROOT

NO_OPTIONS = {
    "warmup": None,
    "steps": None,
    "out": None,
    "vocab_size": None,
    "only": [],
    "row_minutes": None,
    "record": None,
}


def test_median_p95_and_split_of_the_steps():
    steps = [
        {"seconds_step": 1.0 + i, "seconds_data": 0.1, "seconds_forward_backward": 0.5, "seconds_optimizer": 0.2}
        for i in range(21)
    ]
    figures = step_figures(steps)
    assert figures["step_seconds"]["median"] == 11.0
    assert figures["step_seconds"]["p95"] == pytest.approx(20.0)
    assert figures["split_seconds"] == pytest.approx(
        {"data": 0.1, "forward_backward": 0.5, "optimizer": 0.2, "rest": 10.2}
    )


def test_mfu_by_three_conventions_against_peak_and_products():
    shares = mfu(TokenFlops(6e9, 7e9, 8e9), tokens_per_second=200, num_devices=2, peak=1e12, ceiling=0.8e12)
    assert shares == {
        "6n": {"of_peak": pytest.approx(0.6), "of_ceiling": pytest.approx(0.75)},
        "6n_6lhs": {"of_peak": pytest.approx(0.7), "of_ceiling": pytest.approx(0.875)},
        "6n_12lhs": {"of_peak": pytest.approx(0.8), "of_ceiling": pytest.approx(1.0)},
    }
    assert mfu(TokenFlops(6e9, 7e9, 8e9), 200, 1, None, 1e12)["6n"]["of_peak"] is None


def result(tokens_per_second: float, precision: str, torch: str) -> dict:
    return {
        "format": FORMAT,
        "version": 1,
        "tokens_per_second": tokens_per_second,
        "step_seconds": {"median": 1000 / tokens_per_second, "p95": 2.0},
        "mfu": {name: {"of_peak": None, "of_ceiling": 0.5} for name in ("6n", "6n_6lhs", "6n_12lhs")},
        "ceiling": {"tflops": 1.0, "bandwidth_gb_per_second": 10.0},
        "memory": {"peak_gib": 2.0},
        "roofline": [{"part": "idle", "seconds": 0.0, "ideal_seconds": 0.0}],
        "config": {"engine": {"precision": precision}, "run": {"name": precision}},
        "layout": {"tp": 1},
        "data": {"synthetic": True},
        "steps": {"timed": 50},
        "environment": {"device": "one", "versions": {"torch": torch}},
    }


def test_a_comparison_lists_differing_conditions_first(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps(result(100.0, "fp32", "2.12")))
    (tmp_path / "b.json").write_text(json.dumps(result(150.0, "bf16", "2.13")))
    lines = compare(tmp_path / "a.json", tmp_path / "b.json").splitlines()
    assert lines[3:5] == [
        "  config.engine.precision: A fp32, B bf16",
        "  environment.versions.torch: A '2.12', B '2.13'",
    ]
    rows = {line[:26].strip(): line[26:].split() for line in lines[7:]}
    assert rows["tokens/s"] == ["100", "150", "1.500"]
    assert rows["step median, ms"][-1] == "0.667"
    assert rows["idle, ms"] == ["0", "0", "-"]
    assert "same settings, versions and machine" in compare(tmp_path / "a.json", tmp_path / "a.json")


@pytest.mark.parametrize(
    ("place", "key", "values"),
    [
        ("environment", "host", ("one", "other")),
        ("environment", "git", ({"revision": "a", "dirty": False}, {"revision": "a", "dirty": True})),
        ("config", "run", ({"seed": 1}, {"seed": 2})),
        ("config", "model", ({"seq_length": 1024}, {"seq_length": 2048})),
    ],
)
def test_values_reported_as_equal_are_equal(tmp_path: Path, place: str, key: str, values: tuple):
    for name, value in zip("ab", values, strict=True):
        given = result(100.0, "fp32", "2.12")
        given[place][key] = value
        (tmp_path / f"{name}.json").write_text(json.dumps(given))
    reported = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert f"  {place}.{key}" in reported and "same settings" not in reported


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "something else"}', "\x00\xff"])
def test_a_file_that_is_not_a_result_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "bench.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match=r"bench\.json: is not a result of `pretrain bench`"):
        load(path)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["compare", "a.json"], {}, "takes two results"),
        (["compare", "a.json", "b.json"], {}, "a.json: cannot be read"),
        (["suite=giant"], {}, "suite=giant: unknown suite\n  hint: choose single_gpu or tiny"),
        (
            ["suite=tiny"],
            {"only": ["tiny,big", "t*a"]},
            "--only big: suite=tiny has no such row\n  hint: choose from tiny, tiny_llama",
        ),
        (["model=tiny"], {"only": ["tiny"]}, "add suite=NAME"),
        (["model=tiny"], {"row_minutes": 1.0}, "add suite=NAME"),
        (["model=tiny"], {"vocab_size": 1}, "--vocab-size 1: must be at least 2"),
        (["model=tiny"], {"out": Path("taken")}, "--out taken: exists, and nothing is overwritten"),
        (["model=tiny"], {"out": Path("taken/bench.json/out")}, "bench.json/out: cannot be created (Not a directory)"),
        (["suite=tiny"], {"out": Path("taken/bench.json/out")}, "bench.json/out: cannot be created (Not a directory)"),
        (["train.micro_batch_size=5"], {}, "train.global_batch_size=16: must be a multiple"),
        (["suite=tiny"], {"record": Path("a.yaml"), "steps": 3}, "it does not go with --steps, suite=tiny"),
        ([], {"record": Path("none/a.yaml")}, "--record none/a.yaml: there is no folder none\n  hint: make it"),
        ([], {"record": Path("taken")}, "--record taken: must end in .yaml"),
    ],
)
def test_a_mistake_is_reported_in_one_line(tmp_path, monkeypatch, words, options, message):
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/bench.json").touch()
    given = NO_OPTIONS | options
    with pytest.raises(UserError) as caught:
        bench_command.run(argparse.Namespace(overrides=words, **given))
    assert message in str(caught.value) and "\n" not in caught.value.message


def test_a_model_too_large_for_any_device_is_refused_early():
    config = load_run_config(["model=gpt3_6.7b", "engine=zero0_bf16"])
    with pytest.raises(RunError, match=r"gpt3_6.7b: does not fit: 8\d\.\d GiB .* which has 80\.0 GiB"):
        check_memory(config, 50257, ParallelLayout(1), 80 * 2**30)
    check_memory(config, 50257, ParallelLayout(1), 139 * 2**30)


def test_a_suite_under_torchrun_is_an_error_as_is_oom(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(RunError, match="run it without torchrun"):
        patched.setenv("WORLD_SIZE", "2")
        run_suite("tiny", [], BenchOptions(out=tmp_path / "suite"))
    assert not (tmp_path / "suite").exists()

    def without_memory(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr("pretrain.bench.measure._measure", without_memory)
    with pytest.raises(RunError, match="tiny: out of memory"):
        bench(load_run_config(["model=tiny"]), BenchOptions(out=tmp_path / "out", vocab_size=300))


def test_a_suite_without_a_working_model_has_all_reasons(tmp_path):
    table, worked = run_suite("tiny", ["model.num_heads=3", "train.max_steps=0"], BenchOptions(out=tmp_path / "suite"))
    assert not worked
    rows = [line for line in table.splitlines() if "failed: " in line]
    assert len(rows) == 2 and all("model.num_heads=3" in row and "train.max_steps=0" in row for row in rows)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_models_of_a_suite_are_legal_runs(suite, device):
    for overrides in SUITES[suite].models.values():
        check_run(load_run_config([*overrides, f"engine.device={device}"]), world_size=1)


@pytest.mark.parametrize("suite", SUITES)
def test_suite_rows_are_sorted_by_cost(suite):
    """A suite that is cut short has then measured all it could."""
    models = [load_run_config(overrides).model for overrides in SUITES[suite].models.values()]
    sizes = [count_parameters(model, 50257).total for model in models]
    assert sizes == sorted(sizes)


def write_program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def until_gone(process: int, seconds: float = 20.0) -> None:
    """Wait until a process has ended; fail if it continues."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for _ in range(int(seconds / 0.01)):
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:  # its parent may reap it later
                return
            time.sleep(0.01)
        pytest.fail(f"process {process} still runs")


def test_after_a_slow_row_is_killed_the_next_row_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = """
        case "$*" in *model=tiny_llama*) echo 'pretrain: error: no' >&2; exit 2;; esac
        mkdir -p out/tiny/compile
        sh -c 'sleep 600 & echo $! > pid; wait'
        echo done >&2
    """
    monkeypatch.setattr("sys.executable", write_program(tmp_path / "python", script))
    table, worked = run_suite("tiny", [], BenchOptions(out=Path("out")), row_minutes=0.05)
    rows = [line.split(maxsplit=7) for line in table.splitlines() if "failed" in line]
    assert not worked and [(row[0], row[-1]) for row in rows] == [
        ("tiny", "failed: took longer than --row-minutes 0.05"),
        ("tiny_llama", "failed: no"),
    ]
    assert {path.name for path in Path("out").iterdir()} == {"table.txt", "tiny.log", "tiny_llama.log"}
    assert not Path("out/tiny.log").read_text()
    until_gone(int(Path("pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_row_does_not_outlive_its_suite(tmp_path, number):
    """`timeout` and schedulers end the suite only: its row would continue and hold the GPU."""
    row = write_program(tmp_path / "row", "echo $$ >&2; exec sleep 600")
    script = f"""
import sys
from pathlib import Path
from pretrain.bench.measure import BenchOptions
from pretrain.bench.suite import run_suite
sys.executable = {row!r}
run_suite("tiny", [], BenchOptions(out=Path({str(tmp_path / "out")!r})))
"""
    log_file = tmp_path / "out" / "tiny.log"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as suite:
        try:
            while not (log_file.exists() and log_file.read_text().endswith("\n")):
                assert suite.poll() is None
                time.sleep(0.01)
        finally:
            suite.send_signal(number)
    process = int(log_file.read_text())
    try:
        until_gone(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def test_a_suite_shows_overrides_of_all_rows(tmp_path, monkeypatch):
    """Else a row that is called after one model could stand for another."""
    monkeypatch.setattr("sys.executable", write_program(tmp_path / "python", "exit 3"))
    for overrides, second in ((["model=tiny", "optim.lr=1"], "every row with model=tiny optim.lr=1"), ([], "")):
        table, _ = run_suite("tiny", overrides, BenchOptions(out=tmp_path / f"with {len(overrides)}"))
        assert table.splitlines()[1] == second


def test_the_saved_command_has_no_secrets(tmp_path, monkeypatch):
    words = [
        "data.path=https://me:hidden@host/data?X-Amz-Signature=hidden",
        "+cluster.environment.TOKEN=hidden",
        "+cluster={environment: {TOKEN: hidden}}",
        "model=tiny",
    ]
    reported = public_words(words)
    assert reported[0] == "data.path=https://host/data" and reported[-1] == "model=tiny"
    assert [word.partition("=")[0] for word in reported] == [word.partition("=")[0] for word in words]
    monkeypatch.setattr("sys.executable", write_program(tmp_path / "python", "exit 3"))
    table, _ = run_suite("tiny", words, BenchOptions(out=tmp_path / "out"))
    kept = []
    monkeypatch.setattr("pretrain.bench.measure.bench", lambda config, wanted: kept.extend(wanted.command))
    monkeypatch.setattr("sys.argv", ["pretrain", "bench", *words])
    bench_command.run(argparse.Namespace(overrides=["model=tiny"], **NO_OPTIONS))
    assert kept == ["pretrain", "bench", *reported] and "hidden" not in table + "".join(kept)


def test_only_the_rows_that_are_named_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", write_program(tmp_path / "python", "exit 3"))
    for only, rows in ((["*_llama"], ["tiny_llama"]), (["tiny_*", "tiny"], ["tiny", "tiny_llama"])):
        table, _ = run_suite("tiny", [], BenchOptions(out=tmp_path / only[0]), only=only)
        assert [line.split()[0] for line in table.splitlines() if "failed" in line] == rows


def test_results_do_not_overwrite_each_other(tmp_path: Path):
    assert [new_folder(None, "tiny", beside=tmp_path).name for _ in range(2)] == ["tiny", "tiny-2"]


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_pseudo_random_tokens_are_read_by_the_real_loader(tmp_path: Path, packing: str):
    config = load_run_config(["model.seq_length=256", f"data.packing={packing}", f"data.path={tmp_path}/none"])
    assert open_prepared(config) is None
    write_synthetic(tmp_path / "data", config, 300)
    dataset = PackedDataset.open(tmp_path / "data", "train")
    dataset.verify()
    batches = train_batches(dataset, seed=1, global_batch_size=16, rank=0, size=1, position=0)
    tokens = next(batches).tokens
    batches.close()
    assert tokens.shape == (16, 257)
    assert tokens.max() < 300 and (tokens == EOD_ID).any()
    record = dataset.manifest.tokenizer
    assert (record.kind, record.file, record.vocab_size) == ("synthetic", "", 300), "it claims no tokenizer"
    write_synthetic(tmp_path / "again", config, 300)
    assert PackedDataset.open(tmp_path / "again", "train").manifest.digest == dataset.manifest.digest


def test_synthetic_documents_are_as_long_as_web_texts(tmp_path: Path):
    """Many short ones, some of several samples: so a step with data.document_mask pays for what it would pay for."""
    config = load_run_config(["model.seq_length=2048", "train.global_batch_size=64"])
    write_synthetic(tmp_path / "data", config, 300)
    split = PackedDataset.open(tmp_path / "data", "train").manifest.splits["train"]
    assert split.num_samples >= 256
    assert 550 < split.num_tokens / split.num_documents < 850
    lengths = document_lengths(np.random.default_rng(1), 10**6)
    assert 380 < np.median(lengths) < 460
    assert (lengths > 2048).mean() == pytest.approx(0.056, abs=0.02)
    assert lengths.min() >= 2 and lengths.sum() >= 10**6 > lengths[:-1].sum()
