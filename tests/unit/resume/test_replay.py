"""Which steps are repeated, from which checkpoint, as whose configuration."""

import json
import logging
from dataclasses import asdict

import pytest

from pretrain.config.changes import REPLAYED_WITH
from pretrain.config.errors import ConfigError, RunError
from pretrain.config.load import to_yaml, with_overrides
from pretrain.resume.on_start import ResumeProof
from pretrain.resume.replay import check_settings, plan_replay
from pretrain.resume.tolerance import Tolerance
from pretrain.run.config_history import record_config
from pretrain.tracking.metrics_file import METRICS_FILE
from tests.support.checkpoints import write_manifest
from tests.support.models import run_config

OLD, NEW = run_config("gpt", "optim.lr=1e-3"), run_config("gpt", "optim.lr=2e-3")
STEP = {"batch_hash": "0", "loss": 5.0, "grad_norm": 1.0, "lr": 1e-3, "loss_scale": 1.0}


def make_run(folder, *, saved, recorded, config=OLD, files=None):
    """A run folder without tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    lines = [json.dumps({"kind": "train", "step": step, "time": 0, "tokens": 0} | STEP) + "\n" for step in recorded]
    (folder / METRICS_FILE).write_text("".join(lines))
    for step in saved:
        make_checkpoint(folder, step, config, files)
    return folder


def make_checkpoint(folder, step, config=OLD, files=None):
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True, exist_ok=True)
    write_manifest(place, step, files=files or {}, config=asdict(config))
    (place / "tensors.json").write_text("{}")
    return place


def planned(run, steps=None, checkpoint=None):
    plan = plan_replay(run, steps, checkpoint)
    return plan.checkpoint.step, list(plan.recorded)


def test_a_finished_run_is_replayed_from_its_second_last_save(tmp_path):
    run = make_run(tmp_path, saved=(8, 12, 16), recorded=range(1, 17))
    assert planned(run) == (12, [13, 14, 15, 16])


def test_a_killed_run_is_replayed_from_its_newest_checkpoint(tmp_path):
    assert planned(make_run(tmp_path, saved=(8, 12), recorded=range(1, 15))) == (12, [13, 14])


def test_ten_steps_by_default(tmp_path):
    run = make_run(tmp_path, saved=(10, 40), recorded=range(1, 41))
    assert planned(run) == (10, list(range(11, 21)))
    assert planned(run, steps=30) == (10, list(range(11, 41)))


def test_more_steps_are_found_after_an_older_checkpoint(tmp_path):
    run = make_run(tmp_path, saved=(4, 8, 12), recorded=range(1, 15))
    assert planned(run, steps=5) == (8, [9, 10, 11, 12, 13])
    assert planned(run, checkpoint=4, steps=2) == (4, [5, 6])


def test_sparse_records_are_compared(tmp_path):
    assert planned(make_run(tmp_path, saved=(8, 12), recorded=(5, 10, 15))) == (12, [15])


def test_a_damaged_checkpoint_is_skipped_with_its_reason(tmp_path, caplog):
    run = make_run(tmp_path, saved=(4, 8), recorded=range(1, 11))
    make_checkpoint(run, 8, files={"__0_0.distcp": {"bytes": 1, "sha256": "0"}})
    with caplog.at_level(logging.WARNING):
        assert planned(run) == (4, list(range(5, 11)))
    assert "__0_0.distcp is missing; trying the one before" in caplog.text
    with pytest.raises(RunError, match=r"__0_0\.distcp is missing"):
        planned(run, checkpoint=8)


def test_steps_are_replayed_with_the_config_that_recorded_them(tmp_path):
    run = make_run(tmp_path, saved=(4, 8), recorded=range(1, 9))
    make_run(run, saved=(), recorded=range(1, 12), config=NEW)  # resumed from 8 with another learning rate
    assert plan_replay(run, 2, 4).config == OLD
    assert plan_replay(run, 2, 8).config == NEW
    assert {facts["optim.lr"] for facts in plan_replay(run, 2, 4).origins} == {1e-3}


@pytest.mark.parametrize("edit", ["optim.lr=2e-3", "model.hidden_size=128", "lr_schedule.name=linear"])
def test_edited_settings_are_refused_as_by_train(tmp_path, edit):
    run = make_run(tmp_path, saved=(4, 8), recorded=range(1, 11))
    (run / "config.yaml").write_text(to_yaml(run_config("gpt", "optim.lr=1e-3", edit)))
    with pytest.raises(RunError, match=rf"config\.yaml has other settings .*\n  {edit.partition('=')[0]}: .* now\n"):
        check_settings(run)


def test_settings_that_a_resume_accepted_are_allowed(tmp_path):
    """Whether it has saved since, or not; the folders of a run and its data may change at any time."""
    run = make_run(tmp_path, saved=(4, 8), recorded=range(1, 9))
    check_settings(run)
    record_config(run, NEW, 8)
    check_settings(run)
    make_checkpoint(run, 12, NEW)
    check_settings(run)
    (run / "config.yaml").write_text(to_yaml(run_config("gpt", "optim.lr=2e-3", "data.path=elsewhere")))
    check_settings(run)
    (run / "config.yaml").write_text(to_yaml(OLD))
    with pytest.raises(RunError, match=r"optim\.lr: 0\.002 there, 0\.001 now"):
        check_settings(run)


@pytest.mark.parametrize(
    ("made", "asked", "words"),
    [
        ({"saved": (), "recorded": (1, 2)}, {}, "no checkpoint yet\n  hint: train first"),
        ({"saved": (4,), "recorded": ()}, {}, "metrics.jsonl: no recorded steps"),
        ({"saved": (4,), "recorded": (1, 4)}, {}, "no step is recorded after a whole checkpoint; checkpoints are of"),
        ({"saved": (4,), "recorded": (1, 4, 5)}, {"steps": 2}, "no 2 steps are recorded after a whole checkpoint"),
        ({"saved": (4, 8), "recorded": (5, 8)}, {"checkpoint": 6}, "has no checkpoint of that step; .* of steps 4, 8"),
        ({"saved": (4, 8), "recorded": (5, 8)}, {"checkpoint": 8}, "no step is recorded after checkpoint 8"),
    ],
)
def test_nothing_to_replay_is_an_error(tmp_path, made, asked, words):
    with pytest.raises(RunError, match=words) as error:
        planned(make_run(tmp_path, **made), **asked)
    assert "\n" not in error.value.message


# Keys that may be given


def test_layout_and_engine_may_differ():
    changed = with_overrides(OLD, ["parallel.tp=2", "engine.zero_stage=3", "data.path='a b'"], REPLAYED_WITH)
    assert (changed.parallel.tp, changed.engine.zero_stage, changed.data.path) == (2, 3, "a b")
    assert changed.optim == OLD.optim


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lr=1", r"optim\.lr=1: here only parallel\.\*, engine\.\*, .* can be set"),
        ("parallel.tpp=2", "here only"),
        ("parallel=tp2", "here only"),
        ("engine.zero_stage=7", "engine.zero_stage=7: must be 0, 1, 2 or 3"),
        ("engine.zero_stage=[", "cannot be read as a value"),
    ],
)
def test_other_keys_and_wrong_values_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        with_overrides(OLD, [override], REPLAYED_WITH)


# What a resumed run says by itself


def watched(caplog, earlier, records, tolerance=Tolerance(), close=True):  # noqa: B008
    """The lines about records that come after checkpoint 4, of which an earlier attempt had some."""
    seen = []
    proof = ResumeProof(4, earlier, tolerance)
    record = proof.watching(lambda *arguments: seen.append(arguments))
    with caplog.at_level(logging.INFO, logger="pretrain.resume.on_start"):
        for step, values in records.items():
            record("train", step, values)
            record("validation", step, {"loss": 0.0})
        before_close = list(caplog.messages)
        if close:
            proof.close()
    assert [(kind, step) for kind, step, _ in seen if kind == "train"] == [("train", step) for step in records]
    return before_close, caplog.messages[len(before_close) :]


def test_one_line_at_the_end_of_the_overlap(caplog):
    earlier = dict.fromkeys((5, 6, 7), STEP)
    said, at_close = watched(caplog, earlier, dict.fromkeys(range(5, 12), STEP))
    assert said == ["resume verified: 3 steps repeated, exact"] and at_close == []


def test_steps_recorded_by_one_attempt_are_not_compared(caplog):
    said, _ = watched(caplog, dict.fromkeys((5, 10, 15), STEP), dict.fromkeys((10, 20), STEP))
    assert said == ["resume verified: 1 step repeated, exact"]


def test_a_run_that_ends_early_reports_its_repeated_steps(caplog):
    said, at_close = watched(caplog, dict.fromkeys((5, 6, 7), STEP), {5: STEP})
    assert said == [] and at_close == ["resume verified: 1 step repeated, exact; stopped before 2 more"]


def test_a_divergence_is_logged_at_once_and_once(caplog):
    records = {5: STEP, 6: STEP | {"loss": 5.5}, 7: STEP | {"loss": 9.0}, 8: STEP}
    said, at_close = watched(caplog, dict.fromkeys((5, 6, 7), STEP), records)
    (line,) = said
    assert line.startswith("RESUME NOT VERIFIED") and "step 6: loss 5.0 recorded, 5.5 now" in line
    assert at_close == [] and caplog.records[-1].levelno == logging.WARNING


def test_without_repeated_steps_nothing_is_logged(caplog):
    assert watched(caplog, {}, {5: STEP}) == ([], [])
