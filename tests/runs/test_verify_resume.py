"""The real command repeats what a run recorded; a run that begins with another's weights says so."""

import hashlib
import json
import shutil
import subprocess

import pytest

from tests.support.runs import environment, files_below, torchrun_command, train_records, user_error


def stamps(folder):
    return {name: (folder / name).stat().st_mtime_ns for name in files_below(folder)}


def test_recorded_steps_are_repeated_bit_for_bit(shared, finished_run):
    before = stamps(finished_run)
    done = shared.command("verify-resume", "runs/finished", "--steps", "6")
    assert done.returncode == 0, done.stderr
    assert "runs/finished: steps 9 to 14 recomputed from step-00000008: exact\n" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[1:-1]]
    records = train_records(finished_run)
    assert [row[0] for row in rows] == [str(step) for step in range(9, 15)]
    for row in rows:
        record = records[int(row[0])]
        assert row[1] == record["batch_hash"] and row[2] == row[3] == repr(record["loss"]) and row[-1] == "0"
    assert stamps(finished_run) == before


def test_another_layout_is_equal_within_rounding(shared, plain_run, place):
    """The record has every second step, and one of its losses is changed."""
    run = place.run_dir("plain")
    shutil.copytree(plain_run, run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["step"] % 2 == 0]
    for record in kept:
        if record["kind"] == "train" and record["step"] == 16:
            record["loss"] += 0.01
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    before = stamps(run)
    words = ["verify-resume", "runs/plain", "--checkpoint", "8", "--json", "parallel.tp=2", "engine.zero_stage=1"]
    command = [*torchrun_command(2), *words]
    done = subprocess.run(command, cwd=place.folder, env=environment(), capture_output=True, text=True, timeout=150)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [step["step"] for step in report["steps"]] == [10, 12, 14, 16]
    for step in report["steps"][:3]:
        assert step["batch_hash"]["recorded"] == step["batch_hash"]["replayed"]
        assert step["loss"]["replayed"] == pytest.approx(step["loss"]["recorded"], rel=1e-5)
    assert report["kind"] == "diverged" and (report["divergence"]["step"], report["divergence"]["quantity"]) == (
        16,
        "loss",
    )
    assert report["divergence"]["recorded"] - report["divergence"]["replayed"] == pytest.approx(0.01, rel=1e-2)
    assert "parallel.tp 1 then, 2 now" in report["because"]
    assert stamps(run) == before


def test_what_cannot_be_replayed_is_an_error(shared, finished_run):
    message = user_error(shared.command("verify-resume", "runs/finished", "--steps", "90"))
    assert message.startswith("runs/finished: no 90 steps are recorded after a whole checkpoint")


def test_a_run_starts_from_the_weights_of_another(shared, plain_run):
    llama = ("model=tiny_llama", "model.num_query_groups=1", "train.max_steps=8")
    done = shared.train("next", *llama, "run.init_from=runs/plain", "engine.zero_stage=3")
    assert done.returncode == 0, done.stderr
    assert "weights of runs/plain/checkpoints/step-00000016 (step 16)" in done.stderr
    run = shared.run_dir("next")
    first, old = train_records(run)[1], train_records(plain_run)
    assert first["batch_hash"] == old[1]["batch_hash"] and first["lr"] == old[1]["lr"]  # its own data and schedule
    assert first["loss"] < old[1]["loss"] - 0.5
    digest = hashlib.sha256((plain_run / "checkpoints/step-00000016/manifest.json").read_bytes()).hexdigest()
    origin = {"checkpoint": "runs/plain/checkpoints/step-00000016", "step": 16, "manifest_sha256": digest}
    assert json.loads((run / "description.json").read_text())["init_from"] == origin

    # Without its last checkpoint it continues from its own, and not from the other's weights.
    losses = [record["loss"] for record in train_records(run).values()]
    shutil.rmtree(run / "checkpoints/step-00000008")
    again = shared.train("next", *llama, "run.init_from=runs/plain", "engine.zero_stage=3")
    assert again.returncode == 0, again.stderr
    assert "resume verified: 4 steps repeated, exact" in again.stderr and "weights of" not in again.stderr
    assert [record["loss"] for record in train_records(run).values()] == losses
    manifest = json.loads((run / "checkpoints/step-00000008/manifest.json").read_text())
    assert manifest["init_from"] == json.loads((run / "description.json").read_text())["init_from"] == origin


def test_weights_of_another_model_are_refused_at_the_start(shared, finished_run):
    done = shared.train("other", "run.init_from=runs/finished", "model.ffn_hidden_size=128")
    message = user_error(done)
    assert message.startswith("model.ffn_hidden_size=128: the weights in runs/finished/checkpoints/step-00000016 are")
    assert "with ffn_hidden_size=64" in message and not shared.run_dir("other").exists()
