"""The training step: srun over all ranks, watched from the batch script until it ends or has to be given up."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.slurm import job as slurm_job
from launch.slurm.container import command_prefix, rank_python, srun_flags
from launch.slurm.job import Job
from pretrain.exit_codes import exit_code_of

POLL_SECONDS = 0.2
AFTER_FAILURE_SECONDS = 60.0
"""Beyond Slurm's KillWait, in which the other ranks are to end after the first that failed."""


@dataclass(frozen=True)
class Failure:
    """What srun told of a rank, or of a node that could not be used; in the order in which it was told."""

    node: str
    words: str
    time: float
    rank: int | None = None
    """None: the node's."""


@dataclass
class Watched:
    """What is known of a step, while it runs and after."""

    failures: list[Failure] = field(default_factory=list)
    exit_code: int | None = None
    """srun's; None: it had not ended when the attempt was given up."""
    stuck: bool = False
    """srun was killed, as it did not end after a rank had failed."""


def run_step(
    command: Sequence[str],
    environment: Mapping[str, str],
    nodes: Sequence[str],
    log: Callable[[], Path | None],
    look: Callable[[], str | None],
) -> Watched:
    """Run srun to its end; `log` finds the file that is shown in this job's log meanwhile.

    `look` is asked all the time: "stop" has the ranks save and stop, once; "leave" gives the step up. After a rank
    failed, srun is not waited for without end: where Slurm's process for the step is gone on a node, it waits minutes
    for an answer from there (Slurm 22.05: several MessageTimeouts). What is left ends with the job.
    """
    watched, told, patience = Watched(), False, None
    srun = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace")
    reader = threading.Thread(target=_read_errors, args=(srun, nodes, watched), daemon=True)
    reader.start()
    with Follower(log) as follower:
        while srun.poll() is None:
            wish = look()
            if wish == "leave":
                return watched
            if wish == "stop" and not told and follower.is_there:  # before there are ranks, srun takes it for its own
                told = True
                srun.send_signal(signal.SIGUSR1)  # which it passes on; SIGTERM it would take for its own
            first = next((each.time for each in watched.failures if each.rank is not None), None)
            if first is not None:
                patience = patience or slurm_job.kill_wait() + AFTER_FAILURE_SECONDS
                if time.time() - first > patience:
                    print(f"== srun has not ended {patience:.0f} s after a rank failed: giving it up", flush=True)
                    watched.stuck = True
                    srun.kill()
                    srun.wait()
            time.sleep(POLL_SECONDS)
        reader.join(5)
    watched.exit_code = exit_code_of(srun.returncode)
    return watched


def srun_command(job: Job, words: Sequence[str], *flags: str, per_node: bool = False) -> list[str]:
    """srun of a Python on all ranks, or once a node; the first that fails ends all."""
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
    return ["srun", *ends, *tasks, *cpus, *gpus, *more, *around, *words]


def failure_in(line: str, nodes: Sequence[str], now: float) -> Failure | None:
    """What a line of srun says of a rank, or of one of the nodes."""
    if match := _TASK.search(line):
        return Failure(match["node"], match["words"].strip(), now, int(match["rank"]))
    for pattern in _NODE:
        if match := pattern.search(line):
            return Failure(match["node"], match["words"].strip(), now)
    if match := _NUMBER.search(line):
        return Failure(nodes[int(match["number"])], "Slurm's process for this step there is gone", now)
    return None


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
        if not _NOISE.search(line):
            sys.stdout.write(line)
            sys.stdout.flush()


_TASK = re.compile(r"srun: error: (?P<node>[^\s:]+): tasks? (?P<rank>\d+)[-,\d]*: (?P<words>.*)")
_NODE = (
    re.compile(r"srun: error: .*failed on node (?P<node>[^\s:]+): (?P<words>.*)"),
    re.compile(r"srun: error: (?P<words>[Nn]ode failure) on (?P<node>\S+)"),
)
_NUMBER = re.compile(r"srun: error: (?:Cannot communicate with|Aborting, .* on) node (?P<number>\d+)")
_NOISE = re.compile(r"can not load PMIx|got SIGCONT")
