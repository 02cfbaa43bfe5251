"""Whatever ends a run, the same command continues as if nothing had happened: bit for bit on a CPU."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from pretrain.exit_codes import ExitCode
from tests.support.runs import Workplace, files_below, train_records, user_error, validation_records

DROPOUT = "model.hidden_dropout=0.1"
SLOW = 0.2
"""Seconds of a step, so that a run of few steps does not end before what is to happen between two of them."""
COMPUTED = ("loss", "grad_norm", "lr", "tokens", "samples", "epoch", "loss_scale", "bad_steps", "batch_hash")


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory, dataset):
    """The same training as `finished_run`: killed in a step, killed in a save, asked to stop, then let run."""
    place = Workplace(tmp_path_factory.mktemp("interrupted"), dataset)
    folder = place.run_dir("finished") / "checkpoints"

    with place.training("finished", DROPOUT, step_seconds=SLOW) as run:
        run.wait_for_step(5)
        run.freeze_where(lambda: folder.exists() and names(folder) == ["step-00000004"])
        second = place.train("finished", DROPOUT)  # frozen is still alive
        run.kill()
    assert f"in use by another live process (process {run.process.pid} on" in user_error(second, ExitCode.IN_USE)
    assert names(folder) == ["step-00000004"]

    with place.training("finished", DROPOUT, step_seconds=SLOW) as run:
        run.freeze_where(lambda: bool(list(folder.glob("*.partial"))))
        run.kill()
    assert "step 4, sample 32" in run.log
    killed_in_save = names(folder)
    assert "step-00000004" in killed_in_save and any(name.endswith(".partial") for name in killed_in_save)

    # No more saves by steps: nothing else replaces what the killed one left.
    with place.training("finished", DROPOUT, "checkpoint.every_steps=0", step_seconds=SLOW) as run:
        run.wait_for(lambda: re.search(r"step \d+/16  loss", run.log) is not None)
        os.kill(run.process.pid, signal.SIGTERM)
        assert run.end() == 75, run.log
    assert "SIGTERM: stopping after the next step at the latest, with a checkpoint" in run.log
    stopped = max(train_records(place.run_dir("finished")))
    assert stopped < 16 and names(folder)[-1] == f"step-{stopped:08d}"
    assert f"stopped after step {stopped} of 16, saved; run the same command to resume" in run.log

    done = place.train("finished", DROPOUT, "checkpoint.every_steps=0")
    assert done.returncode == 0, done.stderr
    assert f"step {stopped}, sample {8 * stopped}" in done.stderr
    return place.run_dir("finished")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_resume_matches_uninterrupted_run(finished_run, interrupted_run):
    whole, continued = train_records(finished_run), train_records(interrupted_run)
    assert list(continued) == list(whole) == list(range(1, 17))
    for step, record in whole.items():
        assert {key: continued[step][key] for key in COMPUTED} == {key: record[key] for key in COMPUTED}, f"step {step}"
    assert len({record["batch_hash"] for record in whole.values()}) == 16
    for step, record in validation_records(finished_run).items():
        assert validation_records(interrupted_run)[step]["loss"] == record["loss"]


def test_final_checkpoints_are_equal_bit_for_bit(finished_run, interrupted_run):
    last = "checkpoints/step-00000016"
    for name in ("__0_0.distcp", "random-00000.safetensors", "tensors.json"):
        assert (interrupted_run / last / name).read_bytes() == (finished_run / last / name).read_bytes(), name
    states = [json.loads((run / last / "manifest.json").read_text()) for run in (finished_run, interrupted_run)]
    for state in states:
        del state["state"]["train_seconds"]
    assert states[0]["state"] == states[1]["state"] and states[0]["counters"] == states[1]["counters"]


def test_each_resume_logs_its_proof(interrupted_run):
    log = (interrupted_run / "logs/rank-00000.log").read_text()
    lines = re.findall(r"(?:resumed|resume verified|RESUME NOT VERIFIED).*", log)
    resumed, proved = lines[::2], lines[1::2]
    assert len(resumed) == len(proved) == 3, lines
    # After two kills steps are repeated, the second time perhaps not all before the run is stopped again.
    assert all(re.match(r"resume verified: \d+ steps? repeated, exact", line) for line in proved[:2]), lines
    stopped = int(re.search(r"step (\d+), sample", resumed[2]).group(1))
    # What the stopped attempt had not taken again of the killed one's steps is repeated now.
    replaced = map(json.loads, (interrupted_run / "metrics.replaced.jsonl").read_text().splitlines())
    left = {record["step"] for record in replaced if record["kind"] == "train" and record["step"] > stopped}
    last = train_records(interrupted_run)[stopped]["batch_hash"]
    said = f"resume verified: the last batch before the checkpoint reads the same (hash {last}); 3 files of"
    repeated = f"resume verified: {len(left)} step{'s' if len(left) > 1 else ''} repeated, exact"
    assert proved[2].startswith(repeated if left else said), lines


def test_what_a_killed_save_left_is_cleaned_up(interrupted_run):
    assert all(name.startswith("step-") and name[5:].isdigit() for name in names(interrupted_run / "checkpoints"))


def test_a_finished_run_says_so_and_changes_nothing(shared, finished_run):
    before = {name: (finished_run / name).stat().st_mtime_ns for name in files_below(finished_run)}
    done = shared.train("finished", DROPOUT)
    assert done.returncode == 0
    assert "runs/finished is finished after step 16; nothing to do" in done.stderr
    after = {name: (finished_run / name).stat().st_mtime_ns for name in files_below(finished_run)}
    assert {name for name in after if after[name] != before.get(name)} <= {"logs/rank-00000.log", "run.lock"}


def test_a_run_without_its_checkpoints_restarts_only_on_request(shared, finished_run):
    run = Path(shutil.copytree(finished_run, finished_run.with_name("gone")))
    shutil.rmtree(run / "checkpoints")
    records = (run / "metrics.jsonl").read_bytes()
    message = user_error(shared.train("gone", DROPOUT))
    assert "step 16 was saved in runs/gone/checkpoints/step-00000016" in message
    assert "runs/gone/checkpoints is missing" in message and "run.restart=true" in message
    assert (run / "metrics.jsonl").read_bytes() == records
    done = shared.train("gone", DROPOUT, "run.restart=true", "train.max_steps=4")
    assert done.returncode == 0, done.stderr
    assert list(train_records(run)) == [1, 2, 3, 4]
    assert (run / "metrics.replaced.jsonl").read_bytes() == records
