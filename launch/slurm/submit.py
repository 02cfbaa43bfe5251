"""`pretrain submit`: a run, or a grid of them, checked, written as a batch script, and given to Slurm."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from pretrain.config.cluster import ClusterConfig
    from pretrain.run.sweep import Member, Sweep


def run(given: argparse.Namespace) -> int:
    if given.name is not None and not given.multirun:
        raise UserError(f"--name {given.name} names a sweep: give -m, or run.name=... for one run")
    if given.rerun is not None:
        if given.multirun:
            raise UserError("-m starts a sweep and --rerun continues one: give one of them")
        _rerun(given)
    elif given.multirun:
        _sweep(given)
    else:
        _one(given)
    return 0


def _one(given: argparse.Namespace) -> None:
    from launch.slurm.batch_script import BatchJob, batch_script, slurm_path
    from launch.slurm.submission_checks import check_submission
    from pretrain.config.load import load_run_config

    config, folder = load_run_config(given.overrides), Path.cwd()
    said = check_submission(config, folder)
    run_dir = folder / config.run.dir
    logs = run_dir / "logs"
    command = (sys.executable, "-u", "-m", "launch.slurm.supervise", *given.overrides)
    job = BatchJob(f"pretrain-{config.run.name}", slurm_path(f"{logs}/slurm-") + "%j.log", str(folder), command)
    number = _submit(given, batch_script(config.cluster, job), run_dir / "job.sh", [said, _place(config.cluster)])
    if number is not None:
        _say([f"job {number}: {config.run.dir}", f"  pretrain status {config.run.dir}"])
        _say([f"  tail -F {logs}/slurm-{number}.log"])


def _sweep(given: argparse.Namespace) -> None:
    from pretrain.run.sweep import SWEEPS, Sweep, free_name, words_of_members

    name = given.name or free_name()
    folder = SWEEPS / name
    words = words_of_members(name, given.overrides)
    if folder.exists():
        raise UserError(
            f"--name {name}: {folder} already exists: choose another name, or continue with --rerun {folder}"
        )
    members, cluster = _check_members(words)
    _submit_members(given, Sweep(name, tuple(given.overrides), tuple(members)), members, cluster)


def _rerun(given: argparse.Namespace) -> None:
    from pretrain.run.sweep import last_outcome, read_sweep
    from pretrain.slurm_client import live_tasks

    sweep = read_sweep(given.rerun)
    live = live_tasks([submitted.job for submitted in sweep.jobs])
    rest: dict[int, tuple[str, ...]] = {}
    for member in sweep.members:
        outcome = last_outcome(Path(member.run_dir))
        if member.index in live or outcome == "finished":
            state = "waits or runs" if member.index in live else "finished"
        else:
            rest[member.index] = (*member.overrides, *given.overrides)
            state = f"{outcome or 'did not begin'}: again"
        _say([f"member {member.index}, {member.run_dir}: {state}"])
    if rest:
        _submit_members(given, sweep, *_check_members(rest))
    else:
        _say(["nothing to submit"])


def _check_members(rest: dict[int, tuple[str, ...]]) -> "tuple[list[Member], ClusterConfig]":
    """Check the members of a sweep; returns them and their common cluster. Raises UserError listing invalid members."""
    from launch.slurm.submission_checks import check_submission
    from pretrain.run.sweep import Member, check_members

    configs = check_members(rest, lambda config: check_submission(config, Path.cwd()), "nothing was submitted")
    clusters = [config.cluster for config in configs.values()]
    if any(cluster != clusters[0] for cluster in clusters):
        raise UserError("members of one sweep share one job array: `cluster` must be the same for all of them")
    return [Member(index, config.run.dir, rest[index]) for index, config in configs.items()], clusters[0]


def _submit_members(
    given: argparse.Namespace, sweep: "Sweep", members: "Sequence[Member]", cluster: "ClusterConfig"
) -> None:
    """Submit the members as one job array."""
    from launch.slurm.batch_script import BatchJob, batch_script, slurm_path
    from pretrain.run.sweep import SWEEPS, write_sweep

    place = Path.cwd()
    folder = place / SWEEPS / sweep.name if given.rerun is None else given.rerun.absolute()
    log = slurm_path(f"{folder}/logs/slurm-") + "%A_%a.log"
    command = (sys.executable, "-u", "-m", "launch.slurm.array_task", str(folder))
    indexes = tuple(member.index for member in members)
    script = batch_script(cluster, BatchJob(f"pretrain-{sweep.name}", log, str(place), command, indexes))
    if not given.dry_run:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        # Before a task can begin and read it.
        write_sweep(folder, sweep.with_members(members))
    number = _submit(given, script, folder / "job.sh", [f"{len(members)} legal runs", f"each on {_place(cluster)}"])
    if number is None:
        return
    write_sweep(folder, sweep.after_job(number, members))
    _say([f"job {number}, tasks {','.join(map(str, indexes))}: {folder / 'sweep.json'}"])
    _say([f"  pretrain status {member.run_dir}" for member in members])
    _say([f"  tail -F {folder}/logs/slurm-{number}_*.log"])
    _say([f"  pretrain submit --rerun {given.rerun or SWEEPS / sweep.name}   # later: those that failed"])


def _submit(given: argparse.Namespace, script: str, path: Path, said: Sequence[str]) -> str | None:
    """The job's id, None where nothing is submitted. The script stays beside the runs that it started."""
    from data_pipeline.storage.atomic_write import write_durably
    from pretrain import slurm_client

    _say([line.rstrip("\n") for line in said])
    if given.dry_run:
        sys.stdout.write(script)
        _say([f"nothing written, nothing submitted; without --dry-run: sbatch {path}"])
        return None
    (path.parent / "logs").mkdir(parents=True, exist_ok=True)
    write_durably(path, script.encode())
    if given.no_submit:
        _say([f"not submitted: sbatch {path}"])
        return None
    return slurm_client.submit(path)


def _place(cluster: "ClusterConfig") -> str:
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''} x {cluster.ranks_per_node}"
    where = f"partition {cluster.partition}" if cluster.partition else "the default partition"
    return f"{nodes} rank{'s' if cluster.ranks_per_node > 1 else ''}, {where}, {cluster.time or 'its time limit'}"


def _say(lines: Sequence[str]) -> None:
    """Print for people. The standard output is left to scripts."""
    sys.stderr.write("".join(f"{line}\n" for line in lines))
