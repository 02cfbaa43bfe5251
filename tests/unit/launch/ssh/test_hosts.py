"""Ranks on several hosts: how they are started, heard, signalled and ended; what runs here imports nothing heavy."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from launch.slurm.job_signals import SIGNALS
from launch.ssh.connections import HostUnreachable, Ranks
from launch.ssh.hostfile import Host, read_hostfile
from launch.ssh.hosts import cause_of, code_of, environments, main, watch
from pretrain.outcome.failure import FailureKind
from pretrain.outcome.record import failure
from tests.support.hosts import NAMES, assert_gone, hostfile, stand_in
from tests.support.outcomes import report
from tests.support.runs import environment

HOSTS = [Host(NAMES[0], 2), Host(NAMES[1], 1)]


@contextlib.contextmanager
def started(folder: Path, script: str, *words: str) -> Iterator[Ranks]:
    """A short shell script on three ranks of two hosts."""
    ranks = Ranks(HOSTS, [stand_in(folder)])
    try:
        ranks.start(["sh", "-c", script, "sh", *words], environments(HOSTS, ranks.port, {}))
        yield ranks
    finally:
        ranks.close()


def seen(ranks: Ranks, asked: "deque[int] | None" = None, grace: float = 30.0) -> tuple[dict[int, int], list[str]]:
    lines: list[str] = []
    codes = watch(ranks, asked or deque(), lambda rank, text: lines.append(f"{rank}: {text.decode()}"), grace)
    return codes, lines


def test_every_rank_has_the_variables_that_torchrun_would_set(tmp_path: Path) -> None:
    variables = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $GROUP_RANK $MASTER_ADDR $NODE_NAME"
    with started(tmp_path, f'test "$MASTER_PORT" -gt 1024 && echo "{variables}"') as ranks:
        codes, lines = seen(ranks)
    assert codes == {0: 0, 1: 0, 2: 0}
    first, second = NAMES
    assert sorted(lines) == [
        f"0: 0 0 3 2 0 {first} {first}",
        f"1: 1 1 3 2 0 {first} {first}",
        f"2: 2 0 3 1 1 {first} {second}",
    ]


def test_arguments_reach_a_rank_unchanged_by_the_shell(tmp_path: Path) -> None:
    words = ["a b", "$(touch hacked)", "';\"", "*", "data.mixture={a: 1}"]
    folder = tmp_path / "it's a $HOME"
    folder.mkdir()
    with contextlib.chdir(folder), started(tmp_path, 'echo "$PWD"; for word; do echo "$word"; done', *words) as ranks:
        _, lines = seen(ranks)
    assert [line[3:] for line in lines if line.startswith("2: ")] == [str(folder), *words]
    assert list(folder.iterdir()) == []


def test_only_named_variables_go_to_the_hosts() -> None:
    here = {"NCCL_DEBUG": "INFO", "HOME": "/home/me", "SECRET": "x"}
    of_rank = environments(HOSTS, 1234, here)[1][2]
    assert of_rank["NCCL_DEBUG"] == "INFO" and "HOME" not in of_rank and "SECRET" not in of_rank


def test_a_signal_reaches_every_rank(tmp_path: Path) -> None:
    with started(tmp_path, 'trap "echo saved; exit 75" TERM; echo ready; while :; do sleep 0.05; done') as ranks:
        asked: deque[int] = deque()
        lines: list[str] = []

        def printed(rank: int, text: bytes) -> None:
            lines.append(f"{rank}: {text.decode()}")
            if sum("ready" in line for line in lines) == 3 and "saved" not in lines[-1]:
                asked.append(signal.SIGTERM)

        codes = watch(ranks, asked, printed)
    assert codes == {0: 75, 1: 75, 2: 75} and code_of(codes) == 75
    assert signal.SIGTERM in asked, "what follows knows of it too: a preflight that was asked starts no ranks"
    assert {line for line in lines if "saved" in line} == {f"{rank}: saved" for rank in range(3)}


def test_after_a_failure_the_others_are_killed_with_children(tmp_path: Path) -> None:
    script = 'echo $$; [ "$RANK" = 1 ] && kill -9 $$; trap "" TERM; sleep 300 & echo $!; wait'
    began = time.monotonic()
    with started(tmp_path, script) as ranks:
        codes, lines = seen(ranks, grace=0.5)
    assert time.monotonic() - began < 20
    assert codes == {1: 137, 0: 137, 2: 137} and next(iter(codes)) == 1
    assert_gone([int(line[3:]) for line in lines])


def test_nothing_stays_behind_where_the_launcher_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys
from tests.unit.launch.ssh.test_hosts import *
with started(Path({str(tmp_path)!r}), 'trap "" TERM HUP; sleep 300 & echo $$; echo $!; wait') as ranks:
    watch(ranks, deque(), lambda rank, text: print(text.decode(), flush=True))
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as launcher:
        assert launcher.stdout is not None
        pids = [int(launcher.stdout.readline()) for _ in range(6)]
        launcher.kill()
        assert_gone(pids)


def test_a_process_left_by_a_rank_does_not_block_the_run(tmp_path: Path) -> None:
    began = time.monotonic()
    with started(tmp_path, "sleep 60 & echo done") as ranks:
        codes, _ = seen(ranks)
    assert codes == {0: 0, 1: 0, 2: 0} and time.monotonic() - began < 20


def test_a_host_that_is_lost_counts_as_failed_and_is_named(tmp_path: Path) -> None:
    with started(tmp_path, '[ "$RANK" = 2 ] && kill -9 $PPID; sleep 300') as ranks:
        codes, _ = seen(ranks, grace=0.2)
    assert next(iter(codes.items())) == (2, 255)
    hosts = {rank: host.name for rank, host in ranks.host_of.items()}
    assert cause_of(codes, None, {}, hosts) == f"rank 2 on {NAMES[1]} is no longer reached"


def test_hosts_that_are_not_reached_are_named(tmp_path: Path) -> None:
    with pytest.raises(HostUnreachable, match=NAMES[0]):
        Ranks(HOSTS[:1], ["false"])


@pytest.mark.parametrize(
    ("codes", "kind", "code", "cause"),
    [
        ({0: 0, 1: 0}, None, 0, "all steps are done"),
        ({0: 75, 1: 75}, None, 75, "stopped by a signal and saved"),
        ({1: 137, 0: 1}, None, 137, "rank 1 on b was killed by signal 9: its last line"),
        ({1: 3, 0: 1}, None, 3, "rank 1 on b ended with exit code 3: its last line"),
        ({1: 137, 0: 1}, FailureKind.PROCESS_DIED, 137, "the record's message"),
        ({1: 137, 0: 4}, FailureKind.DIVERGED, 4, "the record's message"),
        ({0: 2, 1: 2}, FailureKind.USER_ERROR, 2, "the record's message"),
    ],
)
def test_the_first_failure_gives_exit_code_and_cause(
    codes: dict[int, int], kind: FailureKind | None, code: int, cause: str
) -> None:
    record = None if kind is None else failure(report(kind, "the record's message"))
    assert code_of(codes, record) == code
    assert cause_of(codes, record, {1: "its last line\n"}, {0: "a", 1: "b"}) == cause


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no host"),
        ("a slots=8\nb slots=0\n", "hosts:2: 'b slots=0' is not a host"),
        ("a b\n", "hosts:1"),
        ("-oProxyCommand=evil\n", "is not a host"),
        ("a\na slots=2\n", "a comes twice"),
        ("localhost slots=2\nb\n", "cannot reach localhost"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError, match="hosts") as caught:
        read_hostfile(path)
    assert words in str(caught.value)


def test_a_hostfile_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# all\nme@a slots=8  # big\n\n  b\n[fe80::1] slots=2\n")
    hosts = read_hostfile(tmp_path / "hosts")
    assert hosts == [Host("me@a", 8), Host("b", 1), Host("[fe80::1]", 2)] and hosts[0].address == "a"
    (tmp_path / "one").write_text("localhost slots=4\n")
    assert read_hostfile(tmp_path / "one") == [Host("localhost", 4)]


def test_a_mistake_in_the_configuration_starts_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with contextlib.chdir(tmp_path):
            assert main(["--hostfile", str(hostfile(tmp_path)), "--ssh", "false", "--", "parallel.tp=3"]) == 2
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert "launch.ssh.hosts: error: " in capfd.readouterr().err
    assert os.listdir(tmp_path) == ["hosts"]
