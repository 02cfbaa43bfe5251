"""`pretrain bench` by the real command, and the trace of chosen steps of a run."""

import gzip
import json
import re
import shutil

import pytest

from pretrain.bench.result import load
from pretrain.bench.table import as_table
from pretrain.tracking.metrics_file import read_metrics
from pretrain.training.profiling import step_mark
from tests.support.runs import SHAPE

SMALL = (*SHAPE, "engine.device=cpu", "engine.cpu_threads=1", "train.global_batch_size=8", "train.micro_batch_size=2")
FEW = ("--warmup", "2", "--steps", "4")
STEP = re.compile(r"step \d+")


@pytest.fixture(scope="module")
def measured(shared):
    """The printed output of a small measurement, and its folder."""
    done = shared.command("bench", *SMALL, *FEW, "--vocab-size", "300")
    assert done.returncode == 0, done.stderr
    return done.stdout, shared.folder / "bench" / "tiny"


def test_the_saved_result_equals_the_printed_one(measured):
    printed, folder = measured
    table = as_table(load(folder / "bench.json"))
    assert printed == f"{table}saved in bench/tiny\n"
    assert (folder / "table.txt").read_text() == table
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "only 2 warm-up and 4 timed steps" in printed and "pseudo-random tokens" in printed


def test_figures_follow_from_each_other(measured):
    result = load(measured[1])
    step = result["step_seconds"]
    assert len(step["all"]) == 4
    assert result["tokens_per_step"] == 8 * 32
    assert result["tokens_per_second"] == result["tokens_per_step"] / step["median"]
    assert min(step["all"]) <= step["median"] <= step["p95"] <= max(step["all"])
    assert sum(result["split_seconds"].values()) == pytest.approx(step["mean"])
    assert all(seconds > 0 for seconds in result["split_seconds"].values())
    parts = {row["part"]: row["seconds"] for row in result["roofline"]}
    assert sum(parts.values()) <= step["median"] * (1 + 1e-9)
    for part in ("matrix products", "attention", "elementwise and norms", "optimizer"):
        assert parts[part] > 0, part
    per_token = result["flops_per_token"]["six_n_6lhs"]
    of_products = result["tokens_per_second"] * per_token / (result["ceiling"]["tflops"] * 1e12)
    assert result["mfu"]["6n_6lhs"]["of_ceiling"] == pytest.approx(of_products)
    assert result["ceiling"]["tflops"] == max(result["ceiling"]["all_tflops"].values())
    assert 0.05 < result["memory"]["peak_gib"] < 20


def test_the_trace_holds_the_steps_after_the_timed_ones(measured):
    with gzip.open(measured[1] / "trace.json.gz") as file:
        assert steps_of(json.load(file)) == ["step 7", "step 8", "step 9"]


def test_pseudo_random_tokens_can_be_trained_on(measured, place):
    words = (f"data.path={measured[1].absolute() / 'data'}", "train.max_steps=4", "checkpoint.every_steps=0")
    done = place.train("random", *words)
    assert done.returncode == 0, done.stderr
    (validation,) = (record for record in read_metrics(place.run_dir("random")) if record["kind"] == "validation")
    assert validation["loss"] > 0 and "bits_per_byte" not in validation


def test_two_ranks_measure_the_configured_dataset_together(place):
    words = ["bench", *SMALL, f"data.path={place.dataset}", *FEW, "--out", "two"]
    done = place.command(*words, num_ranks=2)
    assert done.returncode == 0, done.stderr
    result = load(place.folder / "two")
    assert done.stdout == as_table(result) + "saved in two\n", "one rank speaks"
    assert result["layout"] == {"world_size": 2, "tp": 1, "pp": 1, "dp": 2}
    assert not result["data"]["synthetic"] and not (place.folder / "two" / "data").exists()
    assert result["tokens_per_second"] == 8 * 32 / result["step_seconds"]["median"], "of both ranks"
    per_device = result["tokens_per_second"] / 2 * result["flops_per_token"]["six_n"] / 1e12
    assert result["mfu"]["6n"]["of_ceiling"] == pytest.approx(per_device / result["ceiling"]["tflops"])


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_code_is_kept_with_the_result(place):
    words = ("--vocab-size=300", "engine.compile=elementwise", "data.document_mask=true", "--out=compiled")
    done = place.command("bench", *SMALL, *FEW, *words)
    assert done.returncode == 0, done.stderr
    assert "note: MFU and ideals count attention over whole samples, not documents" in done.stdout
    assert list((place.folder / "compiled" / "compile").rglob("*.cpp"))
    assert {path.name for path in place.folder.iterdir()} == {"compiled"}, "and nothing elsewhere"


@pytest.mark.full
def test_a_suite_continues_after_a_model_failed(place):
    """With one head `tiny` is legal and `tiny_llama`, with its two groups of keys, is not."""
    done = place.command("bench", "suite=tiny", *SMALL, "model.num_heads=1", *FEW, "--out", "suite")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("tiny")}
    assert f"{load(place.folder / 'suite' / 'tiny')['tokens_per_second']:,.0f}" in rows["tiny"]
    assert "failed: model.num_query_groups=2: does not divide model.num_heads=1" in rows["tiny_llama"]
    assert (place.folder / "suite" / "table.txt").read_text() == done.stdout


def test_a_run_writes_the_trace_of_exactly_the_given_steps(place):
    done = place.train("profiled", "profile.steps=[10,12]")
    assert done.returncode == 0, done.stderr
    (path,) = (place.run_dir("profiled") / "profile").iterdir()
    assert path.name == "steps-00000010-00000012-rank-00000.json"
    trace = json.loads(path.read_bytes())
    assert steps_of(trace) == [step_mark(10), step_mark(11), step_mark(12)]
    # Validation and save after step 12 do not count, nor are steps before and after.
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in trace["traceEvents"] if is_step(event)]
    operators = [event["ts"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    assert min(began for began, _ in spans) <= min(operators)
    assert max(operators) <= max(ended for _, ended in spans)


def is_step(event):
    return event.get("cat") == "user_annotation" and STEP.fullmatch(event["name"])


def steps_of(trace):
    return [event["name"] for event in sorted(filter(is_step, trace["traceEvents"]), key=lambda event: event["ts"])]
