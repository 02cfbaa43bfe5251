"""Training on two hosts from a hostfile; both are this machine."""

import json
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import pytest

from launch.ssh.connections import Ranks
from launch.ssh.hostfile import Host
from launch.ssh.hosts import environments, watch
from pretrain.outcome.failure import FailureKind
from pretrain.run.attempts import read_attempts
from tests.support.hosts import NAMES, assert_gone, hostfile, real_ssh, sshd_program, stand_in
from tests.support.runs import SECONDS, LiveRun, Workplace, environment, train_records


def start(place: Workplace, ssh: str, name: str, *overrides: str) -> LiveRun:
    log = place.folder / f"{name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "launch.ssh.hosts", "--hostfile", str(hostfile(place.folder)), "--ssh", ssh, "--"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *place.train_overrides(name, *overrides)],
            cwd=place.folder,
            env=environment(),
            stdout=stream,
            stderr=stream,
        )
    return LiveRun(process, place.run_dir(name), log)


def test_a_run_is_stopped_continued_and_shown(place: Workplace, tmp_path: Path) -> None:
    run = start(place, stand_in(tmp_path), "stopped", "train.max_steps=100000", "checkpoint.every_steps=0")
    try:
        run.wait_for_step(3)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.log
    finally:
        run.kill()
    (attempt,) = read_attempts(run.run_dir)
    assert attempt.began is not None and attempt.began.nodes == NAMES and attempt.began.ranks == 2
    assert attempt.ended is not None and attempt.ended.outcome == "stopped" and attempt.ended.exit_code == 75
    assert "[0] " in run.log and "preflight: 2 node(s) good" in run.log and "links of 2 nodes, 2 ranks" in run.log
    assert json.loads((run.run_dir / "link.json").read_text())["nodes"] == list(NAMES)

    stopped_at = attempt.ended.step
    steps = f"train.max_steps={stopped_at + 4}"
    if sshd_program() is None:
        done = start(place, stand_in(tmp_path), "stopped", steps, "checkpoint.every_steps=0")
        assert done.end() == 0, done.log
    else:
        with real_ssh(tmp_path) as ssh:
            done = start(place, ssh, "stopped", steps, "checkpoint.every_steps=0")
            assert done.end() == 0, done.log
    second = read_attempts(run.run_dir)[1]
    assert second.began is not None and second.began.step == stopped_at
    assert second.ended is not None and second.ended.outcome == "finished"
    assert list(train_records(run.run_dir)) == list(range(1, stopped_at + 5))
    logs = {str(path.relative_to(run.run_dir / "logs")) for path in (run.run_dir / "logs").glob("attempt-*/*.log")}
    assert logs == {f"attempt-000{n}/{name}-rank-0000{rank}.log" for n in (1, 2) for rank, name in enumerate(NAMES)}

    shown = place.command("status", "runs/stopped").stdout
    assert f"finished, restarts 1, step {stopped_at + 4}/{stopped_at + 4}, loss" in shown
    assert "attempt 2 finished" in shown


@pytest.mark.full
def test_a_killed_rank_ends_all_and_is_named(place: Workplace, tmp_path: Path) -> None:
    run = start(place, stand_in(tmp_path), "killed", "train.max_steps=100000", "evaluation.every_steps=0")
    try:
        run.wait_for_step(3)
        shown = place.command("status", "--json").stdout
        ranks = run.ranks()
        ranks[1].kill()
        began = time.monotonic()
        assert run.end(60) == 137, run.log
        assert time.monotonic() - began < 60
    finally:
        run.kill()
    assert not ranks[0].is_running()
    (attempt,) = read_attempts(run.run_dir)
    assert attempt.ended is not None and attempt.ended.outcome == "failed" and attempt.ended.exit_code == 137
    assert "rank 1" in attempt.ended.cause and attempt.ended.kind is FailureKind.UNRESPONSIVE
    (status,) = (each for each in json.loads(shown)["runs"] if each["run"] == "runs/killed")
    assert status["state"] == "running" and status["steps"] == 100000 and status["seconds_to_go"] > 0


@pytest.mark.skipif(sshd_program() is None, reason="no sshd here (Debian: openssh-server)")
def test_a_signal_reaches_ranks_behind_a_real_ssh(tmp_path: Path) -> None:
    hosts = [Host(NAMES[0], 2), Host(NAMES[1], 1)]
    with real_ssh(tmp_path) as ssh:
        ranks = Ranks(hosts, ssh.split())
        asked: deque[int] = deque()
        pids: list[int] = []

        def printed(_: int, text: bytes) -> None:
            pids.append(int(text))
            if len(pids) == len(ranks.host_of):
                asked.append(signal.SIGUSR1)

        script = "trap 'kill $!; exit 75' USR1; sleep 300 & echo $$; wait"
        ranks.start(["sh", "-c", script], environments(hosts, ranks.port, {}))
        assert watch(ranks, asked, printed) == {0: 75, 1: 75, 2: 75}
        ranks.close()

        pids.clear()
        ranks = Ranks(hosts, ssh.split())
        ranks.start(
            ["sh", "-c", 'trap "" TERM HUP USR1; sleep 300 & echo $$; wait'], environments(hosts, ranks.port, {})
        )
        limit = time.monotonic() + SECONDS
        while len(pids) < 3 and time.monotonic() < limit:
            ranks.hear(0.2, lambda _, text: pids.append(int(text)))
        ranks.close()
        assert_gone(pids)
