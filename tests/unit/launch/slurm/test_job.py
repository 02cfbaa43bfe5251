"""What Slurm's environment and answers say; where ranks meet; what srun is told."""

import socket
import subprocess
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from launch.nodes.rendezvous import candidates, free_port, interface_towards, is_free, rendezvous
from launch.slurm import job
from launch.slurm.job import Job, counts, job_name, job_of, seconds_of
from launch.slurm.rank_main import place
from launch.slurm.srun import failure_in, srun_command

JOB = Job("7", 0, ("a", "b"), (2, 2), None, 0)


@pytest.mark.parametrize(("text", "meant"), [("1", (1,)), ("2(x3)", (2, 2, 2)), ("8(x2),4,1(x2)", (8, 8, 4, 1, 1))])
def test_counts_of_nodes_are_read(text: str, meant: tuple[int, ...]) -> None:
    assert counts(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0:30", 30), ("2:00:01", 7201), ("1-00:00:00", 86400), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_times_are_read(text: str, meant: float | None) -> None:
    assert seconds_of(text) == meant


def test_a_member_of_an_array_is_queued_again_alone() -> None:
    # Its last member has the whole array's id.
    assert job_name({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}) == "9_2"
    assert job_name({"SLURM_JOB_ID": "9"}) == "9"


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_run", lambda *words: subprocess.CompletedProcess(words, 0, "a\nb\n", ""))


@pytest.mark.usefixtures("hosts")
def test_gpus_without_tasks_get_a_rank_each_and_tasks_that_were_asked_for_stand() -> None:
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert job_of(given).ranks == 2
    gpus = given | {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "96(x2)"}
    job = job_of(gpus)
    assert (job.ranks, job.cpus_per_task, job.overcommit) == (16, 12, False)
    job = job_of(gpus | {"SLURM_JOB_CPUS_PER_NODE": "1(x2)"})
    assert (job.ranks, job.cpus_per_task, job.overcommit) == (16, 1, True)
    assert job_of(gpus | {"SLURM_NTASKS": "2"}).ranks == 2


def test_a_node_without_slurms_commands_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"SLURM_JOB_NODELIST='\[a-b\]': .*scontrol: not found"):
        job_of({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]"})


class Controller:
    """Answers Slurm's commands as given, and notes what it is told."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers, self.told = answers, list[str]()

    def __call__(self, *words: str) -> "subprocess.CompletedProcess[str]":
        if words[:2] == ("scontrol", "show"):
            return subprocess.CompletedProcess(words, 0, words[-1].replace(",", "\n"), "")
        if words[0] == "scontrol":
            self.told.append(" ".join(words[1:]))
            return subprocess.CompletedProcess(words, 0, "", "")
        answer = self.answers[words[-1] if words[0] == "squeue" else "sinfo"]
        return subprocess.CompletedProcess(words, 0 if answer is not None else 1, answer or "", "")


def requeue(seconds: float = 0, exclude: Sequence[str] = (), waiting: Callable[[str], None] = lambda _: None) -> str:
    """With so much time left."""
    until = job.time.monotonic() + seconds
    return job.requeue("7", wait_seconds=0, exclude=exclude, until=until, waiting=waiting)


@pytest.mark.parametrize(
    ("owners", "update"),
    [("", ["ExcNodeList=b"]), ("(null)", ["ExcNodeList=b"]), ("c,d", ["ExcNodeList=b,c,d"]), (None, [])],
)
def test_bad_nodes_are_added_to_the_owners_and_a_list_that_is_not_known_stays(
    monkeypatch: pytest.MonkeyPatch, owners: str | None, update: list[str]
) -> None:
    controller = Controller({"%x": owners})
    monkeypatch.setattr(job, "_run", controller)
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    assert requeue(exclude=["b"]) == ""
    assert controller.told == ["requeue 7", *(f"update JobId=7 {change}" for change in update)]


@pytest.mark.parametrize(
    ("says", "left", "answer", "asked"),
    [
        (["Unable to contact slurm controller", "Socket timed out", "no answer for 20 s", None], 99, "", 4),
        (["Unable to contact slurm controller"], 0, "Unable to contact slurm controller", 1),
        (["Access/permission denied"], 99, "Access/permission denied", 1),
        (["Requested operation is presently disabled"], 99, "Requested operation is presently disabled", 1),
        (["Job/step already completing or completed"], 99, "Job/step already completing or completed", 1),
        (["Operation not permitted"], 99, "Operation not permitted", 1),
        (["scontrol: not found"], 99, "scontrol: not found", 1),
    ],
)
def test_a_controller_that_does_not_answer_is_asked_again_while_the_job_has_time(
    monkeypatch: pytest.MonkeyPatch, says: list[str | None], left: float, answer: str, asked: int
) -> None:
    answers, commands = iter(says), []

    def controller(*words: str) -> "subprocess.CompletedProcess[str]":
        commands.append(words)
        said = next(answers)
        return subprocess.CompletedProcess(words, 1 if said is not None else 0, "", said or "")

    monkeypatch.setattr(job, "_run", controller)
    monkeypatch.setattr(job, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    told: list[str] = []
    assert requeue(left, waiting=told.append) == answer
    assert commands == [("scontrol", "requeue", "7")] * asked
    assert told == [says[0]] * (asked > 1), "it is said once"


def test_a_job_without_a_time_limit_does_not_hold_its_nodes_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    down = subprocess.CompletedProcess(("scontrol",), 1, "", "Unable to contact slurm controller")

    def sleep(seconds: float) -> None:
        now[0] += seconds
        assert now[0] < 2 * job.LONGEST_ASKING_SECONDS

    monkeypatch.setattr(job, "_run", lambda *words: down)
    monkeypatch.setattr(job.signal, "signal", lambda *_: None)
    monkeypatch.setattr(job, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    assert requeue(float("inf")) == "Unable to contact slurm controller"
    assert now[0] > job.LONGEST_ASKING_SECONDS / 2
    now[0], hours_left = 0.0, 5 * 3600.0
    assert requeue(hours_left) == "Unable to contact slurm controller"
    assert hours_left - 60 < now[0] <= hours_left


def test_a_drained_node_is_unfit_and_one_that_missed_a_ping_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = "a mixed\nb idle*\nc draining\nd down\ne allocated\nf mixed@\n"
    monkeypatch.setattr(job, "_run", Controller({"sinfo": states}))
    assert job.unfit("abcdef") == ["c", "d"]
    assert job.draining("abcdef") == ["c"]


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
def test_a_node_is_left_out_only_where_enough_others_may_take_its_place(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, str | None], possible: bool
) -> None:
    monkeypatch.setattr(job, "_run", Controller({"%P": "main", **known}))
    assert job.can_do_without(JOB, ["b"]) == possible


def test_srun_ends_all_with_the_first_and_takes_cpus_and_gpus_of_the_job() -> None:
    command = srun_command(Job("7", 0, ("a", "b"), (8, 8), 12, 8), ["-m", "x"])
    assert {"--kill-on-bad-exit=1", "--ntasks=16", "--cpus-per-task=12", "--gpu-bind=none"} <= set(command)
    assert command[-2:] == ["-m", "x"]
    once = srun_command(JOB, ["-m", "x"], per_node=True)
    assert {"--ntasks=2", "--ntasks-per-node=1"} <= set(once)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("srun: error: b: task 3: Killed\n", ("b", 3, "Killed")),
        ("srun: error: b: tasks 2-3: Exited with exit code 2\n", ("b", 2, "Exited with exit code 2")),
        ("srun: error: Node failure on b\n", ("b", None, "Node failure")),
        (
            "srun: error: Task launch for StepId=5.0 failed on node b: Communication connection failure\n",
            ("b", None, "Communication connection failure"),
        ),
        (
            "srun: error: Cannot communicate with node 1.  Aborting job.\n",
            ("b", None, "Slurm's process for this step there is gone"),
        ),
        (
            "srun: error: Aborting, io error and missing step on node 1\n",
            ("b", None, "Slurm's process for this step there is gone"),
        ),
        ("srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n", None),
    ],
)
def test_words_of_srun_name_rank_and_node(line: str, meant: tuple[str, int | None, str] | None) -> None:
    failure = failure_in(line, ("a", "b"), 0.0)
    assert (failure and (failure.node, failure.rank, failure.words)) == meant


def test_a_rank_knows_how_many_share_its_node() -> None:
    srun = {"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    given = srun | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "mine"}
    assert place(given) == {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    del given["GLOO_SOCKET_IFNAME"]
    assert place(given)["GLOO_SOCKET_IFNAME"] == "lo"


def test_what_the_environment_sets_wins_over_the_first_node() -> None:
    preset = {"MASTER_ADDR": "[fd00::1]", "MASTER_PORT": "1234"}
    assert rendezvous("7", 1, preset, lambda: "a") == ("fd00::1", 1234)
    address, port = rendezvous("7", 1, {}, lambda: "a")
    assert address == "a" and 10000 <= port < 30000


def test_jobs_and_attempts_side_by_side_try_different_ports_first() -> None:
    members = [f"500_{member}" for member in range(20)]
    first = [next(candidates(job, attempt)) for job in ("100", "101", "102", *members) for attempt in (1, 2, 3)]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_somebody_holds_is_passed_over(family: socket.AddressFamily, address: str) -> None:
    wanted = free_port("7", 1)
    with socket.socket(family) as holder:
        try:
            holder.bind((address, wanted))
        except OSError:
            pytest.skip(f"{address} is not to be had here")
        holder.listen()
        assert not is_free(wanted)
        assert free_port("7", 1) != wanted


def test_the_interface_is_the_one_that_leads_to_an_address() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no such host.invalid") is None
