"""`pretrain train -m` around the runs that it starts: the runs themselves are tests/runs/test_multirun.py."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from pretrain.cli import main
from pretrain.commands import multirun
from pretrain.commands.multirun import Forwarding, find_or_make, labels_of, refuse_launcher
from pretrain.exit_codes import ExitCode
from pretrain.run.outcome import record_end, record_start
from pretrain.run.sweep import Sweep, check_members, read_sweep, write_sweep
from pretrain.tracking.comparison import Cell
from tests.support.outcomes import end_of

GRID = ["optim.lr=1e-4,3e-4", "train.max_steps=5"]


pytestmark = pytest.mark.usefixtures("place")


class Runs:
    """In place of training: each run ends with its code, and with the outcome that belongs to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **codes: int) -> None:
        self.codes = codes
        self.started: list[str] = []
        self.signal = 0
        """Comes during each run, if not 0."""
        monkeypatch.setattr(Forwarding, "run", self.run)

    def run(self, command: list[str]) -> int:
        if self.signal:
            os.kill(os.getpid(), self.signal)
        name = next(word.removeprefix("run.name=") for word in command if word.startswith("run.name="))
        self.started.append(name)
        code = self.codes.get(name.replace("-", "_"), 0)
        run_dir = Path("runs") / name
        if code != ExitCode.MISTAKE:
            run_dir.mkdir(parents=True, exist_ok=True)
            record_start(run_dir, 0)
            record_end(run_dir, end_of({0: "finished", ExitCode.STOPPED: "stopped"}.get(code, "failed"), "why"))
        return code


def train(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "-m", *words])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.fixture(autouse=True)
def no_hard_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrain` leaves past the interpreter's clean-up after a failure."""
    monkeypatch.setattr(os, "_exit", sys.exit)


def test_every_combination_is_a_run_of_its_own_in_one_group(place: Path, monkeypatch, capsys) -> None:
    runs = Runs(monkeypatch)
    assert train("--name", "rates", *GRID) == 0
    assert runs.started == ["rates-0", "rates-1"]
    sweep = read_sweep(Path("sweeps/rates"))
    assert [member.run_dir for member in sweep.members] == ["runs/rates-0", "runs/rates-1"]
    assert all("tracking.wandb_group=rates" in member.overrides for member in sweep.members)
    assert list(labels_of(sweep).values()) == ["optim.lr=0.0001", "optim.lr=0.0003"]
    table = capsys.readouterr().out
    assert table.count("finished") == 2 and "sweeps/rates/comparison.html" in table
    assert (place / "sweeps/rates/comparison.png").exists() and (place / "sweeps/rates/comparison.html").exists()


def test_nothing_that_is_shown_of_the_members_holds_a_secret(place: Path, monkeypatch, capsys) -> None:
    Runs(monkeypatch)
    inputs = "data.inputs=[https://me:hunter2@host/a.jsonl],[https://me:hunter2@host/b.jsonl]"
    variables = "cluster.environment.HF_TOKEN=hunter2,hunter2b"
    assert train("--name", "secret", inputs, variables) == 0
    first, second, third, _ = labels_of(read_sweep(Path("sweeps/secret"))).values()
    hidden = "cluster.environment.HF_TOKEN=(not stored)"
    assert first == f"data.inputs=[https://host/a.jsonl] {hidden} run.name=secret-0"
    assert second.endswith("run.name=secret-1") and "b.jsonl" in third
    with pytest.raises(UserError) as caught:
        find_or_make("secret", GRID)
    with pytest.raises(UserError, match=r"member 0 \(.*data\.inputs=\[https://host/a\.jsonl\]") as refused:
        check_members({0: ("optim.lr=fast", r"data.inputs=[https\://me\:hunter2@host/a.jsonl]")}, print, "nothing")
    printed = capsys.readouterr()
    page = Path("sweeps/secret/comparison.html").read_text()
    assert "hunter2" not in f"{printed.out}{printed.err}{page}{caught.value}{refused.value}"


def test_the_same_command_skips_finished_members(monkeypatch) -> None:
    runs = Runs(monkeypatch, sweep_1_1=ExitCode.STOPPED)
    assert train(*GRID, "run.seed=1,2,3") == ExitCode.STOPPED
    assert runs.started == ["sweep-1-0", "sweep-1-1"], "a stop ends the grid"
    runs.codes.clear()
    runs.started.clear()
    assert train(*GRID, "run.seed=1,2,3") == 0
    assert runs.started == [f"sweep-1-{number}" for number in range(1, 6)]
    assert train(*GRID, "run.seed=4,5") == 0 and read_sweep(Path("sweeps/sweep-2")).name == "sweep-2"


def test_a_signal_stops_a_sweep_that_has_members_left(monkeypatch) -> None:
    runs = Runs(monkeypatch)
    runs.signal = signal.SIGTERM
    assert train("--name", "rates", *GRID) == ExitCode.STOPPED
    assert runs.started == ["rates-0"]
    assert train("--name", "rates", *GRID) == 0
    assert runs.started == ["rates-0", "rates-1"]


def test_a_failing_run_does_not_stop_the_others(monkeypatch, capsys) -> None:
    runs = Runs(monkeypatch, rates_0=ExitCode.DIVERGED)
    assert train("--name", "rates", *GRID) == ExitCode.FAILED
    assert runs.started == ["rates-0", "rates-1"]
    assert "failed: why" in capsys.readouterr().out


@pytest.mark.parametrize("code", [ExitCode.MISTAKE, ExitCode.REFUSED])
def test_a_mistake_that_all_share_starts_no_more_of_them(monkeypatch, capsys, code) -> None:
    runs = Runs(monkeypatch, a_0=code, a_1=code)
    assert train("--name", "a", "run.seed=1,2,3,4") == ExitCode.FAILED
    assert runs.started == ["a-0", "a-1"] and "not started" in capsys.readouterr().out


def test_all_are_checked_before_the_first_starts(place: Path, monkeypatch, capsys) -> None:
    runs = Runs(monkeypatch)
    assert train("model.num_heads=4,3,5") == ExitCode.MISTAKE
    error = capsys.readouterr().err
    assert "nothing was started" in error and "member 1 (" in error and "member 2 (" in error
    assert runs.started == [] and not (place / "sweeps").exists()
    assert train("--check", *GRID) == 0 and not (place / "sweeps").exists()


def test_a_name_of_another_grid_is_refused(monkeypatch) -> None:
    Runs(monkeypatch)
    assert train("--name", "rates", *GRID) == 0
    with pytest.raises(UserError, match="was created with other overrides"):
        find_or_make("rates", ["optim.lr=1,2"])
    Path("sweeps/cluster").mkdir()
    write_sweep(Path("sweeps/cluster"), Sweep("cluster", tuple(GRID), ()).after_job("7", []))
    with pytest.raises(UserError, match="--rerun sweeps/cluster"):
        find_or_make("cluster", GRID)


def test_a_launcher_is_refused(monkeypatch) -> None:
    refuse_launcher({})
    with pytest.raises(UserError, match="without torchrun or srun"):
        refuse_launcher({"WORLD_SIZE": "1"})


def send_when_ready(mark: Path, number: int) -> None:
    def wait_and_send() -> None:
        while not mark.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_send, daemon=True).start()


@pytest.mark.parametrize("number", multirun.FORWARDED)
def test_a_member_killed_at_its_start_counts_as_stopped(tmp_path: Path, number: int) -> None:
    mark = tmp_path / "ready"
    child = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "time.sleep(200)"
    )
    send_when_ready(mark, number)
    with Forwarding() as forwarding:
        assert forwarding.run([sys.executable, "-c", child]) == ExitCode.STOPPED
    cell = Cell("a", tmp_path / "never made", ExitCode.STOPPED)
    assert cell.state == "stopped"


def test_a_member_that_a_signal_of_its_own_ends_has_failed() -> None:
    with Forwarding() as forwarding:
        assert forwarding.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"]) == 143


def test_nohup_keeps_a_sweep_alive_without_its_terminal() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Forwarding() as forwarding:
            os.kill(os.getpid(), signal.SIGHUP)
            child = "import signal, sys; sys.exit(signal.getsignal(signal.SIGHUP) != signal.SIG_IGN)"
            assert forwarding.run([sys.executable, "-c", child]) == 0
            assert not forwarding.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_signal_reaches_the_child_once_and_stops_the_grid(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "time.sleep(200)"
    )

    send_when_ready(mark, signal.SIGTERM)
    with Forwarding() as forwarding:
        assert forwarding.run([sys.executable, "-c", child]) == ExitCode.STOPPED
        assert forwarding.asked
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert multirun.FORWARDED[0] is signal.SIGINT
