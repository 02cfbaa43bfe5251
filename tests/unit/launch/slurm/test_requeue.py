"""How a job queues itself again, by the answers of Slurm's commands."""

import subprocess
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from launch.slurm import requeue as requeueing
from launch.slurm.job import SlurmJob
from pretrain import slurm_client

JOB = SlurmJob("7", 0, ("a", "b"), (2, 2), None, 0)


class Controller:
    """Answers Slurm's commands as given, and keeps the commands that change something."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers, self.commands = answers, list[str]()

    def __call__(self, *words: str) -> "subprocess.CompletedProcess[str]":
        if words[:2] == ("scontrol", "show"):
            return subprocess.CompletedProcess(words, 0, words[-1].replace(",", "\n"), "")
        if words[0] == "scontrol":
            self.commands.append(" ".join(words[1:]))
            return subprocess.CompletedProcess(words, 0, "", "")
        answer = self.answers[words[-1] if words[0] == "squeue" else "sinfo"]
        return subprocess.CompletedProcess(words, 0 if answer is not None else 1, answer or "", "")


def requeue(seconds: float = 0, exclude: Sequence[str] = (), waiting: Callable[[str], None] = lambda _: None) -> str:
    """With so much time left."""
    until = requeueing.time.monotonic() + seconds
    return requeueing.requeue("7", wait_seconds=0, exclude=exclude, until=until, waiting=waiting)


@pytest.mark.parametrize(
    ("owners", "update"),
    [("", ["ExcNodeList=b"]), ("(null)", ["ExcNodeList=b"]), ("c,d", ["ExcNodeList=b,c,d"]), (None, [])],
)
def test_bad_nodes_are_added_to_the_owners_list(
    monkeypatch: pytest.MonkeyPatch, owners: str | None, update: list[str]
) -> None:
    controller = Controller({"%x": owners})
    monkeypatch.setattr(slurm_client, "run", controller)
    monkeypatch.setattr(requeueing.signal, "signal", lambda *_: None)
    assert requeue(exclude=["b"]) == ""
    assert controller.commands == ["requeue 7", *(f"update JobId=7 {change}" for change in update)]


@pytest.mark.parametrize(
    ("says", "left", "answer", "asked"),
    [
        (["Unable to contact slurm controller", "Socket timed out", "no answer for 20 s", None], 99, "", 4),
        (["Unable to contact slurm controller"], 0, "Unable to contact slurm controller", 1),
        (["Access/permission denied"], 99, "Access/permission denied", 1),
        (["Requested operation is presently disabled"], 99, "Requested operation is presently disabled", 1),
        (["SlurmJob/step already completing or completed"], 99, "SlurmJob/step already completing or completed", 1),
        (["Operation not permitted"], 99, "Operation not permitted", 1),
        (["scontrol: not found"], 99, "scontrol: not found", 1),
    ],
)
def test_a_controller_that_is_down_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, says: list[str | None], left: float, answer: str, asked: int
) -> None:
    answers, commands = iter(says), []

    def controller(*words: str) -> "subprocess.CompletedProcess[str]":
        commands.append(words)
        said = next(answers)
        return subprocess.CompletedProcess(words, 1 if said is not None else 0, "", said or "")

    monkeypatch.setattr(slurm_client, "run", controller)
    monkeypatch.setattr(requeueing, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(requeueing.signal, "signal", lambda *_: None)
    reported: list[str] = []
    assert requeue(left, waiting=reported.append) == answer
    assert commands == [("scontrol", "requeue", "7")] * asked
    assert reported == [says[0]] * (asked > 1), "it is said once"


def test_a_job_without_a_limit_gives_up_after_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    down = subprocess.CompletedProcess(("scontrol",), 1, "", "Unable to contact slurm controller")

    def sleep(seconds: float) -> None:
        now[0] += seconds
        assert now[0] < 2 * requeueing.LONGEST_ASKING_SECONDS

    monkeypatch.setattr(slurm_client, "run", lambda *words: down)
    monkeypatch.setattr(requeueing.signal, "signal", lambda *_: None)
    monkeypatch.setattr(requeueing, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert requeue(float("inf")) == "Unable to contact slurm controller"
    assert now[0] > requeueing.LONGEST_ASKING_SECONDS / 2
    now[0], hours_left = 0.0, 5 * 3600.0
    assert requeue(hours_left) == "Unable to contact slurm controller"
    assert hours_left - 60 < now[0] <= hours_left


def test_a_drained_node_is_unfit_but_not_a_missed_ping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = "a mixed\nb idle*\nc draining\nd down\ne allocated\nf mixed@\n"
    monkeypatch.setattr(slurm_client, "run", Controller({"sinfo": states}))
    assert slurm_client.unfit("abcdef") == ["c", "d"]
    assert slurm_client.draining("abcdef") == ["c"]


@pytest.mark.parametrize(
    ("known", "possible"),
    [
        ({"sinfo": "a\nb\nc\n", "%x": "", "%n": ""}, True),
        ({"sinfo": "a\nb\n", "%x": "", "%n": ""}, False),  # too few are left
        ({"sinfo": "a\nb\nc\n", "%x": "c", "%n": ""}, False),  # as the owner wants none of the others
        ({"sinfo": "a\nb\nc\n", "%x": "", "%n": "a,b"}, False),  # asked for by name
        ({"sinfo": "a\nb\nc\n", "%x": None, "%n": ""}, False),  # no answer
    ],
)
def test_a_node_is_excluded_only_if_enough_others_are_left(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, str | None], possible: bool
) -> None:
    monkeypatch.setattr(slurm_client, "run", Controller({"%P": "main", **known}))
    assert requeueing.can_do_without(JOB, ["b"]) == possible
