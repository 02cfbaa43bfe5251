"""Facts from Slurm's environment and answers, the address where ranks meet, and the arguments of srun."""

import socket
import subprocess

import pytest

from data_pipeline.errors import UserError
from launch.nodes.rendezvous import candidates, free_port, interface_towards, is_free, rendezvous
from launch.slurm.job import SlurmJob, counts, job_name, job_of
from launch.slurm.rank_main import rank_variables
from launch.slurm.slurm_messages import failure_in
from launch.slurm.srun import srun_command
from pretrain import slurm_client
from pretrain.slurm_client import seconds_of

JOB = SlurmJob("7", 0, ("a", "b"), (2, 2), None, 0)


@pytest.mark.parametrize(("text", "meant"), [("1", (1,)), ("2(x3)", (2, 2, 2)), ("8(x2),4,1(x2)", (8, 8, 4, 1, 1))])
def test_task_counts_per_node_are_parsed(text: str, meant: tuple[int, ...]) -> None:
    assert counts(text) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0:30", 30), ("2:00:01", 7201), ("1-00:00:00", 86400), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_slurm_times_are_parsed(text: str, meant: float | None) -> None:
    assert seconds_of(text) == meant


def test_a_task_of_an_array_is_queued_again_alone() -> None:
    # Its last member has the whole array's id.
    assert job_name({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}) == "9_2"
    assert job_name({"SLURM_JOB_ID": "9"}) == "9"


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_client, "run", lambda *words: subprocess.CompletedProcess(words, 0, "a\nb\n", ""))


@pytest.mark.usefixtures("hosts")
def test_gpus_without_tasks_get_a_rank_each() -> None:
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert job_of(given).ranks == 2
    gpus = given | {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_CPUS_PER_NODE": "96(x2)"}
    job = job_of(gpus)
    assert (job.ranks, job.cpus_per_task, job.overcommit) == (16, 12, False)
    job = job_of(gpus | {"SLURM_JOB_CPUS_PER_NODE": "1(x2)"})
    assert (job.ranks, job.cpus_per_task, job.overcommit) == (16, 1, True)
    assert job_of(gpus | {"SLURM_NTASKS": "2"}).ranks == 2


def test_a_missing_scontrol_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match=r"SLURM_JOB_NODELIST='\[a-b\]': .*scontrol: not found"):
        job_of({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "[a-b]"})


def test_srun_gets_the_cpus_and_gpus_of_the_job() -> None:
    command = srun_command(SlurmJob("7", 0, ("a", "b"), (8, 8), 12, 8), ["-m", "x"])
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
        ("srun: SlurmJob step aborted: Waiting up to 32 seconds for job step to finish.\n", None),
    ],
)
def test_a_message_of_srun_names_rank_and_node(line: str, meant: tuple[str, int | None, str] | None) -> None:
    failure = failure_in(line, ("a", "b"), 0.0)
    assert (failure and (failure.node, failure.rank, failure.message)) == meant


def test_a_rank_knows_how_many_share_its_node() -> None:
    srun = {"SLURM_PROCID": "2", "SLURM_NTASKS": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"}
    given = srun | {"SLURM_STEP_TASKS_PER_NODE": "2,1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "mine"}
    assert rank_variables(given) == {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    del given["GLOO_SOCKET_IFNAME"]
    assert rank_variables(given)["GLOO_SOCKET_IFNAME"] == "lo"


def test_the_environment_sets_the_rendezvous() -> None:
    preset = {"MASTER_ADDR": "[fd00::1]", "MASTER_PORT": "1234"}
    assert rendezvous("7", 1, preset, lambda: "a") == ("fd00::1", 1234)
    address, port = rendezvous("7", 1, {}, lambda: "a")
    assert address == "a" and 10000 <= port < 30000


def test_jobs_and_attempts_try_different_ports_first() -> None:
    members = [f"500_{member}" for member in range(20)]
    first = [next(candidates(job, attempt)) for job in ("100", "101", "102", *members) for attempt in (1, 2, 3)]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_in_use_is_skipped(family: socket.AddressFamily, address: str) -> None:
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
