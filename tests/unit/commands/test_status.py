"""`pretrain status` of run folders that the tests write; nothing is trained."""

import argparse
import fcntl
import json
import pwd
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.commands.run_status import Status, all_statuses, find_runs, status_of
from pretrain.commands.status import lines, run
from pretrain.config.errors import RunError
from pretrain.config.load import load_run_config, to_yaml
from pretrain.run import attempts
from pretrain.run.lock import hold_run_folder, lock_holder
from pretrain.slurm_client import QueuedJob, own_jobs, parse_jobs
from pretrain.tracking.metrics_file import TAIL, last_step, latest_records

NOW = 10_000.0


def make_run(folder: Path, steps: int = 0, *, max_steps: int = 100, seconds: float = 2.0, **values: Any) -> Path:
    """A run that trained so many steps, the last of them just now."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(load_run_config([f"train.max_steps={max_steps}"])))
    records = [
        {"kind": "train", "step": n, "time": NOW - (steps - n) * seconds, "loss": 4.0, "tokens_per_second": 1e5}
        | values
        for n in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def begin(run_dir: Path, number: int, job: str | None = "7") -> None:
    attempts.began(run_dir, number, job=job, restart=number - 1, nodes=["a"], ranks=1, step=0)


def end(run_dir: Path, number: int, outcome: attempts.Outcome, cause: str, code: int = 1) -> None:
    attempts.ended(run_dir, number, outcome=outcome, exit_code=code, cause=cause, step=5)


def job(state: str, reason: str = "", id_: str = "7") -> dict[str, QueuedJob]:
    return {id_: QueuedJob(id_, "pretrain", state, reason, "/home/me")}


def test_a_live_run_is_known_by_its_lock_and_has_an_eta(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 60)
    with hold_run_folder(folder):
        found = status_of(folder, {}, NOW + 3)
    assert found.state == "running" and found.holder is not None and found.holder.startswith("process ")
    assert (found.step, found.steps, found.loss, found.tokens_per_second) == (60, 100, 4.0, 1e5)
    assert found.seconds_to_go == pytest.approx(80.0) and found.seconds_since_record == pytest.approx(3.0)
    assert status_of(folder, {}, NOW).state == "ended" and status_of(folder, {}, NOW).seconds_to_go is None


def test_the_time_to_go_holds_the_final_validation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 60)
    (folder / "description.json").write_text(json.dumps({"data": {"final_validation_samples": 500}}))
    with (folder / "metrics.jsonl").open("a") as file:
        record = {"kind": "validation", "step": 50, "time": NOW, "samples": 100, "seconds": 4.0}
        file.write(json.dumps(record) + "\n")
    with hold_run_folder(folder):
        assert status_of(folder, {}, NOW).seconds_to_go == pytest.approx(80.0 + 20.0)


def test_the_pause_between_two_attempts_is_not_in_the_time_to_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 40)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records[:30]:
        record["time"] -= 3600
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with hold_run_folder(folder):
        assert status_of(folder, {}, NOW).seconds_to_go == pytest.approx(120.0)


def test_a_clock_set_back_gives_no_eta(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 40)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records[20:]:
        record["time"] -= 3600
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with hold_run_folder(folder):
        found = status_of(folder, {}, NOW - 3700)
    assert found.seconds_to_go == pytest.approx(120.0) and found.seconds_since_record == 0.0


@pytest.mark.parametrize(
    "line", ['{"kind": "train", "step": 6}', '{"kind": "train", "step": 6, "time": "noon"}', '{"kind": "train", "st']
)
def test_a_malformed_line_is_skipped(tmp_path: Path, line: str) -> None:
    folder = make_run(tmp_path / "run", 5)
    with (folder / "metrics.jsonl").open("a") as metrics:
        metrics.write(line)
    assert status_of(folder, {}, NOW).step == 5


def test_a_value_that_is_not_a_number_is_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5, loss="low", tokens_per_second=[1])
    found = status_of(folder, {}, NOW)
    assert found.loss is None and found.tokens_per_second is None


def test_the_state_comes_from_lock_then_job_then_attempt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", 5)
    assert status_of(make_run(tmp_path / "new"), {}, NOW).state == "not started"
    assert status_of(make_run(tmp_path / "done", 100), {}, NOW).state == "finished"
    begin(folder, 1)
    assert status_of(folder, {}, NOW).state == "ended"
    end(folder, 1, "failed", "rank 1 was killed")
    assert status_of(folder, {}, NOW).state == "failed"
    assert status_of(folder, job("completed"), NOW).state == "failed"
    pending = status_of(folder, job("pending", "BeginTime"), NOW)
    assert pending.state == "pending" and pending.jobs == ["7 (pending: BeginTime)"]
    begin(folder, 2)
    assert status_of(folder, job("running"), NOW).state == "starting"
    with hold_run_folder(folder):
        found = status_of(folder, job("running"), NOW)
    assert found.state == "running" and found.restarts == 1
    assert found.ended == "attempt 1 failed after step 5: rank 1 was killed"


def test_status_does_not_hold_the_run_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "run.lock").write_text("")
    assert lock_holder(folder) is None
    with (folder / "run.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(RunError, match="in use"), hold_run_folder(folder):
            pass
    with hold_run_folder(folder):
        assert lock_holder(folder) is not None
    assert lock_holder(folder) is None


def test_jobs_and_array_tasks_are_found_by_job_id(tmp_path: Path) -> None:
    text = "124|124|pretrain|PENDING|Priority|/home/me\n130_2|131|sweep|RUNNING|None|/a|b\ntorn\n"
    found = parse_jobs(text)
    assert set(found) == {"124", "130_2", "131"}
    assert found["124"].state == "pending" and found["124"].reason == "Priority"
    assert found["131"] == QueuedJob("130_2", "sweep", "running", "", "/a|b")


def test_only_jobs_without_a_run_are_listed_as_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho '7|7|mine|RUNNING|None|/x'\necho '8|8|next|PENDING|Resources|/x'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    folder = make_run(tmp_path / "runs" / "one", 5)
    begin(folder, 1)
    found, waiting = all_statuses([folder])
    assert found[0].jobs == ["7 (running)"] and [job.id for job in waiting] == ["8"]
    reported = list(lines(found, waiting))
    assert reported[-1] == "job 8 next: pending (Resources), submitted in /x, no attempt of these runs yet"


def test_a_user_whose_number_has_no_name_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs as one."""

    def nameless(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert own_jobs() == {}


def test_runs_are_found_while_others_are_deleted(tmp_path: Path) -> None:
    def make_and_delete() -> None:
        while not done.is_set():
            (tmp_path / "grid" / "1" / "logs").mkdir(parents=True)
            shutil.rmtree(tmp_path / "grid")

    make_run(tmp_path / ".one")
    done = threading.Event()
    thread = threading.Thread(target=make_and_delete)
    thread.start()
    try:
        assert all(find_runs(tmp_path) == [tmp_path / ".one"] for _ in range(1000))
    finally:
        done.set()
        thread.join()


def test_runs_and_members_of_sweeps_are_found(tmp_path: Path) -> None:
    make_run(tmp_path / "b")
    make_run(tmp_path / "b" / "wandb")
    make_run(tmp_path / "grid" / "1")
    begin(tmp_path / "first", 1)
    (tmp_path / "other").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "b", tmp_path / "first", tmp_path / "grid" / "1"]


def test_json_is_strict_and_lines_have_a_second_one_for_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", 3, loss="nan")
    begin(folder, 1, None)
    end(folder, 1, "stopped", "by a signal", 75)
    assert run(argparse.Namespace(runs=[folder], json=True)) == 0
    (found,) = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))["runs"]
    assert found["loss"] == "nan" and found["jobs"] == [] and found["state"] == "stopped"
    assert set(found) == set(Status.__dataclass_fields__)
    assert run(argparse.Namespace(runs=[folder], json=False)) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{folder}: stopped, step 3/100, loss nan, tokens/s 100k, record ")
    assert second == "  attempt 1 stopped after step 5: by a signal"


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_run(tmp_path / "good", 3), make_run(tmp_path / "bad", 3)
    (bad / "metrics.jsonl").unlink()
    (bad / "metrics.jsonl").mkdir()
    assert run(argparse.Namespace(runs=[bad, good], json=False)) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{bad}: unreadable (Is a directory)" and second.startswith(f"{good}: ended, step 3/100")
    assert run(argparse.Namespace(runs=[bad], json=True)) == 0


@pytest.mark.parametrize(
    "line", ['{"kind": "train", "step": 9}', '{"kind": "train", "step": 9, "time": "x"}', "[" * 100_000]
)
def test_malformed_lines_change_nothing(tmp_path: Path, line: str) -> None:
    folder = make_run(tmp_path / "run", 3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert status_of(folder, {}, NOW).step == 3


@pytest.mark.parametrize("loss", ["x", None, [1]])
def test_a_loss_that_is_not_a_number_is_unknown(tmp_path: Path, loss: Any) -> None:
    assert status_of(make_run(tmp_path / "run", 3, loss=loss), {}, NOW).loss is None


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the folder of a run"):
        status_of(tmp_path, {}, NOW)


def test_last_records_are_read_from_the_end_of_the_file(tmp_path: Path) -> None:
    assert latest_records(tmp_path, "train", 3) == [] and last_step(tmp_path) == 0
    line = b'{"kind": "train", "step": %d, "time": 1.0}\n'
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(2**36)
        file.seek(0, 2)
        file.write(b"\n" + b"".join(line % step for step in range(1, 1 + TAIL // 20)))
        file.write(b'{"kind": "validation", "step": 1, "time": 1.0}\n' + (line % 7)[:-9])
    began = time.monotonic()
    last = TAIL // 20
    assert [record["step"] for record in latest_records(tmp_path, "train", 3)] == [last - 2, last - 1, last]
    assert last_step(tmp_path) == last and time.monotonic() - began < 5
    assert len(latest_records(tmp_path, "validation", 3)) == 1
