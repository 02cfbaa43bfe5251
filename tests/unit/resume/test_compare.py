"""Repeated steps beside their records: exact, equal for a reason, or named where they part."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.distributed.grid import ParallelLayout
from pretrain.resume.compare import StepPair, compare_steps, recorded_steps, relative_difference
from pretrain.resume.tolerance import Tolerance, facts_now, facts_of_checkpoint, tolerance_for
from pretrain.tracking.metrics_file import METRICS_FILE, all_records
from pretrain.tracking.provenance import describe_environment
from tests.support.models import run_config

STEP = {"batch_hash": "00ff00ff00ff00ff", "loss": 5.25, "grad_norm": 1.5, "lr": 3e-3, "loss_scale": 1.0}
ROUNDED = Tolerance(("tp 1 then, 2 now",), per_step=1e-5)


def pair(step, **replayed):
    return StepPair(step, STEP, STEP | replayed)


def test_the_same_to_the_last_bit_is_exact():
    comparison = compare_steps([pair(5), pair(6)], 4, ROUNDED)
    assert (comparison.kind, comparison.num_steps, str(comparison)) == ("exact", 2, "exact")
    bad = STEP | {"loss": math.nan, "grad_norm": math.inf}
    assert compare_steps([StepPair(5, bad, dict(bad))], 4, Tolerance()).kind == "exact"


def test_without_a_reason_any_difference_is_a_divergence():
    comparison = compare_steps([pair(5), pair(6, loss=math.nextafter(5.25, 6)), pair(7, loss=9.0)], 4, Tolerance())
    assert comparison.kind == "diverged"
    assert str(comparison) == "diverged at step 6: loss 5.25 recorded, 5.250000000000001 now; nothing known differs"


def test_with_a_reason_steps_are_equal_within_a_power_of_ten():
    comparison = compare_steps([pair(5, loss=5.25 * (1 + 3e-7)), pair(6, grad_norm=1.5 * (1 - 2e-6))], 4, ROUNDED)
    assert str(comparison) == "equal within 1e-05 because tp 1 then, 2 now"


@pytest.mark.parametrize("quantity", ["batch_hash", "lr", "loss_scale"])
def test_no_tolerance_for_batch_learning_rate_or_loss_scale(quantity):
    other = {"batch_hash": "00ff00ff00ff00fe", "lr": 3.0001e-3, "loss_scale": 2.0}[quantity]
    comparison = compare_steps([pair(5, **{quantity: other})], 4, replace(ROUNDED, at_least=0.25))
    assert comparison.kind == "diverged" and comparison.divergence.quantity == quantity


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_never_within_tolerance(value):
    assert compare_steps([pair(5, grad_norm=value)], 4, replace(ROUNDED, at_least=0.25)).kind == "diverged"


def test_tolerance_grows_with_the_steps_up_to_a_limit():
    drifted = 5.25 * (1 + 5e-5)
    assert compare_steps([pair(5, loss=drifted)], 4, ROUNDED).kind == "diverged"
    assert compare_steps([pair(14, loss=drifted)], 4, ROUNDED).kind == "within"
    assert compare_steps([pair(10**9, loss=7.5)], 4, ROUNDED).kind == "diverged"


finite = st.floats(1e-6, 1e6)


@given(finite, st.floats(-1e-4, 1e-4))
def test_the_power_of_ten_bounds_the_difference_closely(loss, relative):
    pairs = [StepPair(100, STEP | {"loss": loss}, STEP | {"loss": loss * (1 + relative)})]
    comparison = compare_steps(pairs, 0, ROUNDED)
    furthest = relative_difference(loss, loss * (1 + relative))
    assert comparison.kind == ("within" if furthest else "exact")
    if furthest:
        assert comparison.within / 10 * 0.999 <= furthest <= comparison.within * 1.001


# What differs


def facts(*overrides, world_size=1, **values):
    config = run_config("gpt", *overrides, **values)
    layout = ParallelLayout.of(config.model, config.parallel, world_size)
    return facts_now(config, layout, describe_environment())


def test_a_manifest_read_from_json_has_the_facts_of_its_run():
    config = run_config("gpt")
    layout, environment = {"world_size": 1, "tp": 1, "pp": 1}, describe_environment()
    from dataclasses import asdict

    manifest = json.loads(json.dumps({"config": asdict(config), "layout": layout, "environment": environment}))
    assert facts_of_checkpoint(manifest) == facts()
    assert tolerance_for([facts_of_checkpoint(manifest)], facts(), on_gpu=False) == Tolerance()


def test_another_layout_is_named_and_allows_rounding():
    found = tolerance_for([facts()], facts(tp=2, world_size=2), on_gpu=False)
    assert "layout 1 process(es) as tp1 pp1 then, 2 process(es) as tp2 pp1 now" in found.because
    assert "parallel.tp 1 then, 2 now" in found.because
    assert 0 < found.allowed(1) < found.allowed(10) < 1e-3


def test_16_bit_precision_has_a_wider_tolerance():
    wide, narrow = (
        tolerance_for([facts(precision=kind)], facts(precision=kind, zero_stage=2), on_gpu=False)
        for kind in ("fp32", "bf16")
    )
    assert narrow.allowed(1) > 100 * wide.allowed(1)


def test_restarted_dropout_is_named_and_allows_much():
    found = tolerance_for(
        [facts("model.hidden_dropout=0.1")], facts("model.hidden_dropout=0.1", world_size=2), on_gpu=False
    )
    assert found.because[-1] == "the random states of dropout started again" and found.allowed(1) > 0.1
    same_masks = tolerance_for(
        [facts("model.hidden_dropout=0.1")], facts("model.hidden_dropout=0.1", zero_stage=2), on_gpu=False
    )
    assert same_masks.allowed(1) < 1e-3


@pytest.mark.parametrize("override", ["optim.lr=1e-2", "train.max_steps=77", "run.seed=3", "data.document_mask=true"])
def test_a_changed_setting_is_named_and_adds_no_tolerance(override):
    key = override.partition("=")[0]
    found = tolerance_for([facts()], facts(override), on_gpu=False)
    assert len(found.because) == 1 and found.because[0].startswith(f"{key} ")
    assert found.allowed(10) == 0


@pytest.mark.parametrize("override", ["run.name=other", "checkpoint.every_steps=7", "tracking.log_every_steps=7"])
def test_settings_without_effect_on_numbers_are_not_named(override):
    assert tolerance_for([facts()], facts(override), on_gpu=False) == Tolerance()


def test_a_gpu_is_a_reason_by_itself():
    assert tolerance_for([facts()], facts(), on_gpu=True).because == ("a GPU sums in no fixed order",)


def test_unrecorded_facts_are_not_differences():
    assert tolerance_for([{}], facts(), on_gpu=False) == Tolerance()


# The record


def write(folder, *records):
    lines = [json.dumps({"kind": "train", "time": 0} | record) + "\n" for record in records]
    (folder / METRICS_FILE).write_text("".join(lines))


def test_the_last_record_counts_and_differences_are_logged(tmp_path):
    again = [STEP | {"step": 2}, STEP | {"step": 3, "loss": 5.5}]
    write(tmp_path, *(STEP | {"step": step} for step in (1, 2, 3)), *again, {"kind": "validation", "step": 3})
    steps, unlike = recorded_steps(all_records(tmp_path))
    assert list(steps) == [1, 2, 3] and steps[3]["loss"] == 5.5
    assert unlike == ["step 3 was recorded twice: loss 5.25, then 5.5, which counts"]


def test_without_a_record_there_are_no_steps(tmp_path):
    assert recorded_steps(all_records(tmp_path)) == ({}, [])
