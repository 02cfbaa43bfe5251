"""Check every node before a model is built: `srun --ntasks-per-node=1 python -m launch.nodes.preflight`.

It ends with 0 if all nodes are good, with MISTAKE if other nodes would not help (versions differ, the run folder is not
shared), with REFUSED if the run folder's disk is full, and with BAD_NODE if some nodes are bad. For the launcher it
prints a line of JSON on stdout: {"bad_nodes": ["name", ...], "faults": ["one line for people", ...]}.

The nodes meet in a folder inside the run folder, which proves that it is shared and writable: node 0 makes the folder,
the others put their reports there, and node 0 reads them, prints the result, and removes the folder.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from data_pipeline.errors import SYSTEM_FAULTS
from data_pipeline.storage.atomic_write import write_durably
from launch.nodes.checks import PreflightResult, ReceivedReport, Requirements, check_nodes
from launch.nodes.facts import GIB, NodeReport, describe_node, place_of
from launch.nodes.gpus import look_at_gpus
from pretrain import slurm_client
from pretrain.exit_codes import ExitCode

POLL_SECONDS = 0.1
SHARED_KINDS = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|glusterfs|orangefs|wekafs|panfs|afs|cifs|smb|9p|virtiofs|fuse")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    index, count, name = place_of()
    run_dir = Path(given.run_dir).absolute()
    meeting = run_dir / f"preflight-{_token(given.token, count)}"
    began = time.monotonic()
    if meeting.name == "preflight-":
        return _mistake(f"{count} nodes and no name that they share: give --token")
    # srun asks this node to end if another one ended with an error: that one reports it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    gpu_faults = look_at_gpus(given.gpus) if given.gpus else []
    if index > 0:
        return _report(meeting, index, name, gpu_faults, given.seconds)
    try:
        meeting.mkdir(parents=True)
    except FileExistsError:
        return _mistake(
            f"{meeting}: left by another preflight (hint: give each one its own --token, or remove the folder)"
        )
    except OSError as error:
        code = ExitCode.REFUSED if error.errno in SYSTEM_FAULTS else ExitCode.MISTAKE
        fault = f"run folder {run_dir}: {name} cannot write there: {error.strerror} (hint: choose another run.dir)"
        return _mistake(fault, code)
    try:
        reports, missing = _gather(meeting, name, gpu_faults, count, given.seconds)
    finally:
        shutil.rmtree(meeting, ignore_errors=True)
    shared = SHARED_KINDS.search(file_system_of(run_dir)) is not None
    requirements = Requirements(given.min_memory_gb, given.min_disk_gb)
    names = _names(count) if missing else []
    silent = [names[place] for place in missing]
    result = check_nodes(reports, requirements, missing=silent, seconds=given.seconds, shared=shared)
    return _print_and_code(result, reports, time.monotonic() - began)


def _report(meeting: Path, index: int, name: str, gpu_faults: list[str], seconds: float) -> int:
    """Put this node's report where node 0 reads it. Nodes other than node 0 call this."""
    limit = time.monotonic() + seconds
    while not meeting.is_dir():
        if time.monotonic() > limit:
            return _mistake(
                f"{name}: {meeting.parent} is not the folder that node 0 sees: its folder did not appear within "
                f"{seconds:g} s (hint: choose a run.dir that all nodes share, and check that it is mounted here)"
            )
        time.sleep(POLL_SECONDS)
    node = describe_node(index, name, meeting.parent, gpu_faults, time.time())
    try:
        write_durably(meeting / f"{index}.json", json.dumps(asdict(node)).encode())
    except OSError as error:
        if meeting.is_dir():  # else node 0 did not wait for this report, and reports that
            sys.stderr.write(f"preflight: {name}: cannot write to {meeting.parent}: {error.strerror}\n")
    return 0


def _gather(
    meeting: Path, name: str, gpu_faults: list[str], count: int, seconds: float
) -> tuple[list[ReceivedReport], list[int]]:
    """On node 0: all reports that arrive in time, its own first, and the indexes of the nodes that sent none."""
    made, limit = time.time(), time.monotonic() + seconds
    seen = {0: ReceivedReport(describe_node(0, name, meeting.parent, gpu_faults, made), made, made)}
    while len(seen) < count and time.monotonic() < limit:
        with contextlib.suppress(OSError):
            os.utime(meeting)  # over NFS a listing may be half a minute old, unless this node touched the folder
        for path in meeting.glob("[0-9]*.json"):
            place = int(path.stem)
            if place not in seen:
                node = NodeReport.from_json(json.loads(path.read_bytes()))
                seen[place] = ReceivedReport(node, made, time.time())
        time.sleep(POLL_SECONDS if len(seen) < count else 0)
    return [seen[place] for place in sorted(seen)], [place for place in range(count) if place not in seen]


def _names(count: int, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The names of the nodes in the launcher's order, needed for nodes that do not report."""
    names = environment.get("NODE_NAMES", "").split()
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes and not names:
        names, _ = slurm_client.host_names(nodes)
    return names if len(names) == count else [f"number {place}" for place in range(count)]


def _print_and_code(result: PreflightResult, seen: Sequence[ReceivedReport], seconds: float) -> int:
    bad = [f"bad node {name}: {fault}" for name, faults in result.bad_nodes.items() for fault in faults]
    errors = [f"error: {fault}" for fault in (*result.mistakes, *result.refusals)]
    sys.stderr.write("".join(f"preflight: {line}\n" for line in (*errors, *bad)))
    code = _code_of(result)
    if code == ExitCode.DONE:
        least = min(seen, key=lambda each: each.node.free_memory).node
        versions = ", ".join(f"{what} {version}" for what, version in seen[0].node.versions.items())
        sys.stderr.write(
            f"preflight: {len(seen)} node(s) good in {seconds:.1f} s: {versions}; least free memory "
            f"{least.free_memory / GIB:.1f} GiB on {least.name}, {least.free_disk / GIB:.1f} GiB free for the run\n"
        )
    _print_result(list(result.bad_nodes), [*errors, *bad])
    return code


def _code_of(result: PreflightResult) -> ExitCode:
    if result.mistakes:
        return ExitCode.MISTAKE
    if result.refusals:
        return ExitCode.REFUSED
    return ExitCode.BAD_NODE if result.bad_nodes else ExitCode.DONE


def _mistake(text: str, code: ExitCode = ExitCode.MISTAKE) -> int:
    sys.stderr.write(f"preflight: error: {text}\n")
    _print_result([], [f"error: {text}"])
    return code


def _print_result(bad_nodes: list[str], faults: list[str]) -> None:
    sys.stdout.write(json.dumps({"bad_nodes": bad_nodes, "faults": faults}) + "\n")
    sys.stdout.flush()


def file_system_of(path: Path) -> str:
    """The type of the file system of a path, such as ext4 or nfs4."""
    within = [disk for disk in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(Path(disk.mountpoint))]
    return max(within, key=lambda disk: len(disk.mountpoint)).fstype if within else ""


def _token(given: str | None, count: int) -> str:
    """A name that all nodes of one start share and no other start has; empty if the launcher gives none."""
    if given is not None:
        return given
    parts = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    elastic = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "-".join(filter(None, [*parts, elastic])) or ("" if count > 1 else f"{os.getpid()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.nodes.preflight", description=__doc__.partition("\n")[0])
    parser.add_argument("--run-dir", required=True, metavar="DIR", help="run.dir of the run")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs that each node must have; default: none")
    parser.add_argument("--min-memory-gb", type=float, default=1.0, metavar="GIB", help="free on each node; default: 1")
    parser.add_argument("--min-disk-gb", type=float, default=1.0, metavar="GIB", help="free for the run; default: 1")
    parser.add_argument("--seconds", type=float, default=60.0, help="for the nodes to report; default: 60")
    parser.add_argument("--token", metavar="NAME", help="a name of this start; default: from Slurm or torchrun")
    return parser


if __name__ == "__main__":
    sys.exit(main())
