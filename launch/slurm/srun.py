"""The job step that trains: srun over all ranks, watched from the batch script until it ends or has to be given up."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.slurm.container import command_prefix, rank_python, srun_flags
from launch.slurm.job import SlurmJob
from launch.slurm.slurm_messages import TaskFailure, failure_in, is_noise
from pretrain import slurm_client
from pretrain.exit_codes import exit_code_of

POLL_SECONDS = 0.2
AFTER_FAILURE_SECONDS = 60.0
"""Time for the other ranks to end after the first that failed, in addition to Slurm's KillWait."""


@dataclass
class Watched:
    """The state of a job step, while it runs and after."""

    failures: list[TaskFailure] = field(default_factory=list)
    exit_code: int | None = None
    """srun's; None: it had not ended when the attempt was given up."""
    stuck: bool = False
    """srun was killed because it did not end after a rank had failed."""


def run_step(
    command: Sequence[str],
    environment: Mapping[str, str],
    nodes: Sequence[str],
    log: Callable[[], Path | None],
    look: Callable[[], str | None],
) -> Watched:
    """Run srun to its end; `log` finds the file whose growth is shown in this job's log.

    `look` is called all the time: "stop" makes the ranks save and stop, once; "leave" gives the step up. After a rank
    failed, the wait for srun is limited: if Slurm's process for the step died on a node, srun waits minutes for an
    answer from there (Slurm 22.05: several MessageTimeouts). What is left ends with the job.
    """
    watched, asked, patience = Watched(), False, None
    srun = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    reader = threading.Thread(target=_read_errors, args=(srun, nodes, watched), daemon=True)
    reader.start()
    with Follower(log) as follower:
        while srun.poll() is None:
            wish = look()
            if wish == "leave":
                return watched
            if wish == "stop" and not asked and follower.is_there:  # before ranks exist, the signal would end srun
                asked = True
                srun.send_signal(signal.SIGUSR1)  # srun passes it on; SIGTERM would end srun itself
            first = next((each.time for each in watched.failures if each.rank is not None), None)
            if first is not None:
                patience = patience or slurm_client.kill_wait() + AFTER_FAILURE_SECONDS
                if time.time() - first > patience:
                    print(f"== srun has not ended {patience:.0f} s after a rank failed: giving it up", flush=True)
                    watched.stuck = True
                    srun.kill()
                    srun.wait()
            time.sleep(POLL_SECONDS)
        reader.join(5)
    watched.exit_code = exit_code_of(srun.returncode)
    return watched


def srun_command(job: SlurmJob, arguments: Sequence[str], *flags: str, per_node: bool = False) -> list[str]:
    """The command that runs Python on all ranks, or once on each node; the first task that fails ends all."""
    tasks = [f"--ntasks={len(job.nodes)}", "--ntasks-per-node=1"] if per_node else [f"--ntasks={job.ranks}"]
    if not per_node and len(set(job.tasks_per_node)) == 1:
        tasks.append(f"--ntasks-per-node={job.tasks_per_node[0]}")
    # srun does not take over what the job asked for: --cpus-per-task since Slurm 22.05.
    cpus = [f"--cpus-per-task={job.cpus_per_task}"] if job.cpus_per_task and not per_node else []
    # Each rank sees all GPUs of its node and takes the one of its number: peers copy between them.
    gpus = ["--gpu-bind=none"] if job.gpus_per_node else []
    more = ["--overcommit"] if job.overcommit or per_node else []
    ends = ["--kill-on-bad-exit=1", "--wait=0"]
    around = [*flags, *srun_flags(), *command_prefix(), rank_python(), "-u"]
    return ["srun", *ends, *tasks, *cpus, *gpus, *more, *around, *arguments]


class Follower:
    """Copies a log that appears and grows to this process's output."""

    def __init__(self, find: Callable[[], Path | None]) -> None:
        self._find, self._at = find, 0
        self._path: Path | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def is_there(self) -> bool:
        return self._path is not None

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while True:
            last = self._done.wait(POLL_SECONDS)
            self._path = self._path or self._find()
            if self._path is not None:
                with self._path.open("rb") as file:
                    file.seek(self._at)
                    new = file.read()
                self._at += len(new)
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
            if last:
                return


def _read_errors(srun: "subprocess.Popen[str]", nodes: Sequence[str], watched: Watched) -> None:
    assert srun.stderr is not None
    for line in srun.stderr:
        failure = failure_in(line, nodes, time.time())
        if failure is not None:
            watched.failures.append(failure)
        if not is_noise(line):
            sys.stdout.write(line)
            sys.stdout.flush()
