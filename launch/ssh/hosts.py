"""`pretrain train` on the hosts of a file, over ssh: `python -m launch.ssh.hosts --hostfile FILE -- key=value ...`

Every host must see this folder and the run folder under the same path, and have this Python. First each one is checked
(`launch.nodes.preflight`), then all ranks start. Their output is shown with the rank in front and kept in the run's
logs/attempt-NNNN/. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP (a closed terminal) reach all ranks, which save and stop; when
one rank fails, all end. The exit code is that of `pretrain train` (`pretrain.exit_codes`); 1 also if a host is bad.
"""

import argparse
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from data_pipeline.errors import UserError
from launch.outcomes import outcome_of
from launch.ssh.connections import HostUnreachable, Ranks
from launch.ssh.hostfile import Host, read_hostfile
from launch.termination import SIGNALS
from pretrain.commands.arguments import absolute_config_dirs, add_overrides
from pretrain.exit_codes import ExitCode, exit_code_of
from pretrain.run import attempts
from pretrain.std_streams import drop_hung_up_output

SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
GRACE_SECONDS = 40.0
"""After a rank failed: the others find out who and why, and end by themselves; then they are killed."""
KILL_SECONDS = 5.0
TAIL_LINES = 40
ASKED_CODES = {exit_code_of(-number) for number in SIGNALS}
"""Exit codes of ranks that got a signal before they listened to it."""
FORWARDED = ("NCCL_", "GLOO_", "TORCH_", "UCX_", "FI_", "CUDA_", "OMP_", "WANDB_", "PRETRAIN_", "PYTHONPATH")
"""Beginnings of the variables that ranks get from here; all others are the hosts' own."""

_CAUSE = re.compile(r"failed first|kept the others waiting|no rank came on|training diverged|pretrain: error:|Error: ")
_PREFIX = re.compile(r"^(\d\d:\d\d:\d\d )?(\[rank \d+\] )?(pretrain: error: )?")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    asked: deque[int] = deque()
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: _ask(number, asked))
    try:
        absolute_config_dirs(given)
        return _run(given, asked)
    except UserError as error:
        return _say(f"error: {error}", ExitCode.MISTAKE)
    except HostUnreachable as error:
        remedy = "try `ssh HOST true` by hand, and see that this folder and this Python are there too"
        return _say(f"{error}: not reached over ssh; {remedy}", ExitCode.FAILED)


def _ask(number: int, asked: "deque[int]") -> None:
    """Note a signal for the ranks; after that of a closed terminal nothing is printed there any more."""
    if number == signal.SIGHUP:
        drop_hung_up_output()
    asked.append(number)


def _run(given: argparse.Namespace, asked: "deque[int]") -> int:
    from pretrain.config.checks import check_run
    from pretrain.config.load import load_run_config
    from pretrain.tracking.metrics_file import last_step

    hosts, ssh = read_hostfile(given.hostfile), shlex.split(given.ssh)
    num_ranks = sum(host.slots for host in hosts)
    config = load_run_config(given.overrides)
    check_run(config, num_ranks)
    run_dir = Path(config.run.dir)
    gpus = given.gpus if given.gpus is not None else min(h.slots for h in hosts) * (config.engine.device == "cuda")
    code = _preflight(hosts, ssh, run_dir, gpus, asked)
    if code or asked:
        return code or ExitCode.STOPPED
    number = attempts.next_attempt(run_dir)
    names = [host.address for host in hosts]
    attempts.began(run_dir, number, job=None, restart=0, nodes=names, ranks=num_ranks, step=last_step(run_dir))
    code, cause = _train(hosts, ssh, given.overrides, attempts.log_folder(run_dir, number), asked)
    outcome, step = outcome_of(code), last_step(run_dir)
    attempts.ended(run_dir, number, outcome=outcome, exit_code=code, cause=cause, step=step)
    return _say(f"attempt {number} {outcome} after step {step}, exit code {code}: {cause}", code)


def _preflight(hosts: Sequence[Host], ssh: Sequence[str], run_dir: Path, gpus: int, asked: "deque[int]") -> int:
    """Look at every host; the exit code with which this start ends, 0: all are good."""
    command = [
        sys.executable,
        "-m",
        "launch.nodes.preflight",
        "--run-dir",
        str(run_dir.absolute()),
        "--gpus",
        str(gpus),
    ]
    command += ["--token", secrets.token_hex(4)]
    each_once = [Host(host.name, 1) for host in hosts]
    ranks = Ranks(each_once, ssh)
    try:
        ranks.start(command, environments(each_once, ranks.port, os.environ))
        codes = watch(ranks, asked, _print_words, grace=KILL_SECONDS)
    finally:
        ranks.close()
    if asked:
        return 0
    worst = max(codes.values(), default=ExitCode.FAILED)
    return worst if worst in (ExitCode.DONE, ExitCode.MISTAKE, ExitCode.REFUSED) else ExitCode.FAILED


def _train(
    hosts: Sequence[Host], ssh: Sequence[str], overrides: Sequence[str], logs: Path, asked: "deque[int]"
) -> tuple[int, str]:
    """Run all ranks to their end; the exit code of the run, and in one sentence why it ended."""
    tails: dict[int, deque[str]] = {}
    with ExitStack() as closing:
        ranks = Ranks(hosts, ssh)
        closing.callback(ranks.close)
        ranks.start(
            [sys.executable, "-u", "-m", "pretrain", "train", *overrides],
            environments(hosts, ranks.port, os.environ),
        )
        logs.mkdir(parents=True, exist_ok=True)
        files = {
            rank: closing.enter_context((logs / attempts.log_name(host.address, rank)).open("ab", buffering=0))
            for rank, host in ranks.host_of.items()
        }

        def printed(rank: int, text: bytes) -> None:
            files[rank].write(text + b"\n")
            tails.setdefault(rank, deque(maxlen=TAIL_LINES)).append(text.decode(errors="replace"))
            _print(b"[%d] %s" % (rank, text))

        codes = watch(ranks, asked, printed)
        if asked and codes and set(codes.values()) <= ASKED_CODES:
            return ExitCode.STOPPED, "asked by a signal before the first step, nothing was trained"
        code = code_of(codes)
        return code, cause_of(codes, tails, {rank: host.address for rank, host in ranks.host_of.items()})


def environments(hosts: Sequence[Host], port: int, here: Mapping[str, str]) -> list[dict[int, dict[str, str]]]:
    """For each host: rank -> its variables, as torchrun would set them."""
    forwarded = {name: value for name, value in here.items() if name.startswith(FORWARDED)}
    size = sum(host.slots for host in hosts)
    found, first = [], 0
    for index, host in enumerate(hosts):
        of_host = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(host.slots),
            "GROUP_RANK": str(index),
            "MASTER_ADDR": hosts[0].address,
            "MASTER_PORT": str(port),
            "NODE_NAME": host.address,
            "NODE_NAMES": " ".join(host.address for host in hosts),
        }
        of_ranks = {
            first + local: {"RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(host.slots)
        }
        found.append({rank: {**forwarded, **of_host, **its} for rank, its in of_ranks.items()})
        first += host.slots
    return found


def code_of(codes: Mapping[int, int]) -> int:
    """The exit code of a run from those of its ranks, in the order in which they ended: the first failure's."""
    failed = [code for code in codes.values() if code not in (0, ExitCode.STOPPED)]
    return failed[0] if failed else max(codes.values(), default=ExitCode.FAILED)


def cause_of(codes: Mapping[int, int], tails: Mapping[int, Sequence[str]], hosts: Mapping[int, str]) -> str:
    """Why a run ended: what its ranks said of it, else which one ended how."""
    code = code_of(codes)
    if code in (0, ExitCode.STOPPED):
        return "all steps are done" if code == 0 else "stopped by a signal and saved"
    # The rank that failed knows best; the others may know who it was.
    failed = [rank for rank, its in codes.items() if its not in (0, ExitCode.STOPPED)]
    for rank in failed:
        for line in reversed(tails.get(rank, ())):
            if _CAUSE.search(line):
                return _PREFIX.sub("", line.strip())
    how = f"was killed by signal {code - 128}" if 128 < code < 255 else f"ended with exit code {code}"
    how = "is not reached any more" if code == 255 else how
    return f"rank {failed[0]} on {hosts[failed[0]]} {how}"


def watch(
    ranks: Ranks, asked: "deque[int]", printed: Callable[[int, bytes], None], grace: float = GRACE_SECONDS
) -> dict[int, int]:
    """Until all ranks ended, or were made to after one failed: exit codes in the order of ending."""
    codes: dict[int, int] = {}
    kill_at = float("inf")
    killed = False
    sent = 0
    while ranks.running:
        while sent < len(asked):
            ranks.signal(asked[sent])
            sent += 1
        codes |= ranks.hear(0.2, printed)
        if kill_at == float("inf") and any(code not in (0, ExitCode.STOPPED) for code in codes.values()):
            kill_at = time.monotonic() + grace
        if time.monotonic() > kill_at:
            if killed:
                break
            ranks.signal(signal.SIGKILL)
            killed, kill_at = True, time.monotonic() + KILL_SECONDS
    return codes


def _print_words(_: int, text: bytes) -> None:
    """Of the preflight: what is meant for people."""
    if not text.startswith(b"{"):
        _print(text)


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text + b"\n")
    sys.stdout.buffer.flush()


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"launch.ssh.hosts: {text}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.ssh.hosts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="lines `name slots=8`")
    parser.add_argument("--ssh", default=SSH, metavar="CMD", help=f"what reaches a host; default: {SSH}")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to look for on each host; default: slots, for cuda")
    add_overrides(parser, "overrides, as for `pretrain train`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
