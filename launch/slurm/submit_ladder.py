"""A ladder as one job array: its missing cells checked, written as a batch script, and given to Slurm."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.storage.atomic_write import write_durably
from launch.slurm.batch_script import BatchJob, batch_script, slurm_path
from launch.slurm.submission_checks import check_submission
from pretrain import slurm_client
from pretrain.run.sweep import SWEEP_FILE, Member, Sweep, check_members, read_sweep, write_sweep

if TYPE_CHECKING:
    from pretrain.config.cluster import ClusterConfig
    from pretrain.config.run import RunConfig

HELD = ("--hold", "--kill-on-invalid-dep=yes")
"""Tasks are held until each knows which one it waits for. One whose trunk failed leaves the queue."""


@dataclass(frozen=True)
class Task:
    """One cell of a ladder."""

    index: int
    """Its SLURM_ARRAY_TASK_ID, the same in every array of this ladder."""
    run_dir: str
    overrides: tuple[str, ...]
    after: int | None
    """The task that must end before this one can start: the trunk of a branch. None: it can start at once."""
    is_finished: bool


def submit_tasks(
    folder: Path, tasks: Sequence[Task], begin: "Callable[[Sequence[RunConfig]], None]", *, is_dry: bool
) -> None:
    """Submit the tasks that are neither finished nor in the queue. Raises UserError listing those that cannot work.

    `begin` is called with the configurations of those that will be submitted, before anything is written.
    """
    known = (folder / SWEEP_FILE).exists()
    jobs = read_sweep(folder).jobs if known else ()
    live = slurm_client.live_tasks([each.job for each in jobs])
    for task in tasks:
        state = "finished" if task.is_finished else "waits or runs" if task.index in live else "is submitted"
        _say([f"{task.run_dir}: {state}"])
    rest = [task for task in tasks if not task.is_finished and task.index not in live]
    if not rest:
        _say(["nothing to submit"])
        return
    _refuse_lost_trunks(rest, {task.index: task for task in tasks}, live)
    words = {task.index: task.overrides for task in rest}
    configs = check_members(words, lambda config: check_submission(config, Path.cwd()), "nothing was submitted")
    clusters = [config.cluster for config in configs.values()]
    if any(cluster != clusters[0] for cluster in clusters):
        raise UserError("the cells of a ladder share one job array: `cluster` must be the same for all of them")
    sweep = Sweep(folder.name, (), tuple(Member(task.index, task.run_dir, task.overrides) for task in tasks), jobs)
    script = _script(folder, clusters[0], rest)
    if is_dry:
        sys.stdout.write(script)
        _say(["nothing written, nothing submitted"])
        return
    begin(list(configs.values()))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    write_sweep(folder, sweep)  # before a task can start and read it
    write_durably(folder / "job.sh", script.encode())
    job = _submit(folder / "job.sh", rest, live)
    members = [member for member in sweep.members if member.index in words]
    write_sweep(folder, sweep.after_job(job, members))
    _say([f"job {job}, tasks {','.join(map(str, words))}", f"  tail -F {folder}/logs/slurm-{job}_*.log"])


def _script(folder: Path, cluster: "ClusterConfig", rest: Sequence[Task]) -> str:
    place = folder.absolute()
    log = slurm_path(f"{place}/logs/slurm-") + "%A_%a.log"
    command = (sys.executable, "-u", "-m", "launch.slurm.array_task", str(place))
    indexes = tuple(task.index for task in rest)
    return batch_script(cluster, BatchJob(f"pretrain-{folder.name}", log, str(Path.cwd()), command, indexes))


def _submit(script: Path, rest: Sequence[Task], live: "dict[int, str]") -> str:
    """Submit the array; tasks that wait for another one learn of it before any can start."""
    waiting = [task for task in rest if task.after is not None]
    job = slurm_client.submit(script, *(HELD if waiting else ()))
    try:
        for task in waiting:
            assert task.after is not None
            slurm_client.start_after(f"{job}_{task.index}", f"{live.get(task.after, job)}_{task.after}")
        if waiting:
            slurm_client.release(job)
    except UserError:
        slurm_client.cancel(job)  # else it would be held for ever
        raise
    return job


def _refuse_lost_trunks(rest: Sequence[Task], tasks: "dict[int, Task]", live: "dict[int, str]") -> None:
    """Raise UserError if a branch waits for a checkpoint that no run will save again."""
    for task in rest:
        trunk = None if task.after is None else tasks[task.after]
        if trunk is not None and trunk.is_finished and trunk.index not in live:
            raise UserError(
                f"{task.run_dir}: its trunk {trunk.run_dir} is finished, and its checkpoint for this branch is missing",
                "bring the checkpoint back, or move the trunk's folder away to train it again",
            )


def _say(lines: Sequence[str]) -> None:
    sys.stderr.write("".join(f"{line}\n" for line in lines))
