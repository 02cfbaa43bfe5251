"""One rank under srun: `python -m launch.slurm.rank_main FOLDER -- ARGUMENTS` runs `python -m pretrain ARGUMENTS`.

FOLDER is that of the attempt. This program sets the rank's environment variables and waits for the rank.
A rank that stopped and saved ends with 0 here, so that srun does not kill the others, which may still be closing. The
exit code of rank 0 is kept in a file.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.child_process import die_with_parent
from data_pipeline.storage.atomic_write import write_durably
from launch.nodes.rendezvous import interface_towards
from launch.slurm.job import counts
from launch.termination import SIGNALS, ignore_until_gone
from pretrain.exit_codes import ExitCode, exit_code_of
from pretrain.outcome.record import OUTCOME_FILE, VARIABLE

NOTE_FILE = "rank-0.json"
PEER = "PRETRAIN_PEER"
"""Environment variable with the address of a node that is not the first."""
POLL_SECONDS = 1.0


def main(arguments: Sequence[str]) -> int:
    folder, dashes, *command = arguments
    assert dashes == "--"
    environment = {**os.environ, **rank_variables(os.environ), VARIABLE: str(Path(folder) / OUTCOME_FILE)}
    asked: list[float] = []
    # Slurm sends its signals to every process of the step; only the rank acts on them.
    for number in SIGNALS:
        signal.signal(number, lambda *_: asked.append(time.time()))
    parent = os.getppid()
    child = subprocess.Popen(
        [sys.executable, "-m", "pretrain", *command],
        env=environment,
        preexec_fn=die_with_parent,  # there is one thread here
    )
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(POLL_SECONDS)
            break
        if os.getppid() != parent:  # Slurm's own process on this node was killed, and no other would end the rank
            child.kill()
    ignore_until_gone()
    code = exit_code_of(code)
    if environment["RANK"] == "0":
        note = {"code": code, "asked": asked[0] if asked else None}
        with contextlib.suppress(OSError):  # a full disk: srun's exit code remains
            write_durably(Path(folder) / NOTE_FILE, json.dumps(note).encode())
    return ExitCode.DONE if code == ExitCode.STOPPED else code


def rank_variables(slurm: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch and DeepSpeed read, from those of srun."""
    node = int(slurm["SLURM_NODEID"])
    of_rank = {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(counts(slurm["SLURM_STEP_TASKS_PER_NODE"])[node]),
    }
    # Gloo would look up this node's own name, which many systems resolve to 127.0.1.1.
    towards = slurm.get(PEER) if node == 0 else slurm["MASTER_ADDR"]
    if towards and "GLOO_SOCKET_IFNAME" not in slurm:
        interface = interface_towards(towards)
        if interface is not None:
            of_rank["GLOO_SOCKET_IFNAME"] = interface
    return of_rank


def read_note(folder: Path) -> dict[str, Any]:
    """The note of rank 0: `code`, and `asked`, the time at which it was first asked to stop. Empty if it was killed."""
    try:
        return dict(json.loads((folder / NOTE_FILE).read_bytes()))
    except (OSError, ValueError):
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
