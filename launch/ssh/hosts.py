"""`pretrain train` on the hosts of a file, over ssh: `python -m launch.ssh.hosts --hostfile FILE -- key=value ...`

Every host must see this folder and the run folder under the same path, and have this Python. First each one is checked
(`launch.nodes.preflight`), then all ranks start. Their output is shown with the rank in front and kept in the run's
logs/attempt-NNNN/. Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP (a closed terminal) reach all ranks, which save and stop; when
one rank fails, all end. The exit code is that of `pretrain train` (`pretrain.exit_codes`); 1 also if a host is bad.
"""

import argparse
import os
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
from launch.ssh.connections import LOST, HostUnreachable, Ranks
from launch.ssh.hostfile import Host, read_hostfile
from launch.termination import SIGNALS
from pretrain.commands.arguments import absolute_config_dirs, add_overrides
from pretrain.exit_codes import LEAST_SIGNAL_CODE, ExitCode, exit_code_of, outcome_of
from pretrain.outcome.record import OUTCOME_FILE, VARIABLE, OutcomeRecord, read_record
from pretrain.run import attempts
from pretrain.std_streams import drop_hung_up_output

SSH = "ssh -o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
GRACE_SECONDS = 40.0
"""Time for the other ranks to report a failure and exit. Then they are killed."""
KILL_SECONDS = 5.0
ASKED_CODES = {exit_code_of(-number) for number in SIGNALS}
"""Exit codes of ranks that got a signal before they listened to it."""
FORWARDED = ("NCCL_", "GLOO_", "TORCH_", "UCX_", "FI_", "CUDA_", "OMP_", "WANDB_", "PRETRAIN_", "PYTHONPATH")
"""Prefixes of the variables that ranks get from here; all others are those of the hosts."""


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
    code, cause, record = _train(hosts, ssh, given.overrides, attempts.log_folder(run_dir, number), asked)
    outcome, step = outcome_of(code), last_step(run_dir)
    failure = record.failure if record is not None and code != ExitCode.STOPPED else None
    attempts.ended(
        run_dir,
        number,
        outcome=outcome,
        exit_code=code,
        cause=cause,
        step=step,
        kind=failure.kind if failure is not None else None,
        diverged_at=failure.step if failure is not None and code == ExitCode.DIVERGED else None,
    )
    return _say(f"attempt {number} {outcome} after step {step}, exit code {code}: {cause}", code)


def _preflight(hosts: Sequence[Host], ssh: Sequence[str], run_dir: Path, gpus: int, asked: "deque[int]") -> int:
    """Check every host; returns the exit code with which this start ends, 0 if all are good."""
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
) -> tuple[int, str, OutcomeRecord | None]:
    """Run all ranks to their end: the exit code of the run, in one sentence why it ended, and the ranks' record."""
    last: dict[int, str] = {}
    logs.mkdir(parents=True, exist_ok=True)
    record_file = logs.absolute() / OUTCOME_FILE
    here = {**os.environ, VARIABLE: str(record_file)}
    with ExitStack() as closing:
        ranks = Ranks(hosts, ssh)
        closing.callback(ranks.close)
        ranks.start(
            [sys.executable, "-u", "-m", "pretrain", "train", *overrides],
            environments(hosts, ranks.port, here),
        )
        files = {
            rank: closing.enter_context((logs / attempts.log_name(host.address, rank)).open("ab", buffering=0))
            for rank, host in ranks.host_of.items()
        }

        def printed(rank: int, text: bytes) -> None:
            files[rank].write(text + b"\n")
            last[rank] = text.decode(errors="replace")
            _print(b"[%d] %s" % (rank, text))

        codes = watch(ranks, asked, printed)
        if asked and codes and set(codes.values()) <= ASKED_CODES:
            return ExitCode.STOPPED, "asked by a signal before the first step, nothing was trained", None
        record = read_record(record_file)
        addresses = {rank: host.address for rank, host in ranks.host_of.items()}
        return code_of(codes, record), cause_of(codes, record, last, addresses), record


def environments(hosts: Sequence[Host], port: int, here: Mapping[str, str]) -> list[dict[int, dict[str, str]]]:
    """One mapping for each host: rank -> its variables, as torchrun would set them."""
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


def code_of(codes: Mapping[int, int], record: OutcomeRecord | None = None) -> int:
    """The exit code of a run: that of the failure in its ranks' record if the failure has a code of its own, else that
    of the rank that failed first. `codes` are in the order in which the ranks ended."""
    failed = [code for code in codes.values() if code not in (ExitCode.DONE, ExitCode.STOPPED)]
    if failed and record is not None and record.failure is not None and record.exit_code != ExitCode.FAILED:
        return record.exit_code
    return failed[0] if failed else max(codes.values(), default=ExitCode.FAILED)


def cause_of(
    codes: Mapping[int, int], record: OutcomeRecord | None, last: Mapping[int, str], hosts: Mapping[int, str]
) -> str:
    """Why a run ended: the failure in its ranks' record, else how the first of them ended and the last line that it
    printed."""
    failed = [rank for rank, code in codes.items() if code not in (ExitCode.DONE, ExitCode.STOPPED)]
    if not failed:
        return "all steps are done" if code_of(codes) == ExitCode.DONE else "stopped by a signal and saved"
    if record is not None and record.failure is not None:
        return record.failure.message
    rank, code = failed[0], codes[failed[0]]
    if code == LOST:
        return f"rank {rank} on {hosts[rank]} is no longer reached"
    is_signal = code >= LEAST_SIGNAL_CODE
    how = f"was killed by signal {code - LEAST_SIGNAL_CODE + 1}" if is_signal else f"ended with exit code {code}"
    return f"rank {rank} on {hosts[rank]} {how}" + (f": {last[rank].strip()}" if last.get(rank, "").strip() else "")


def watch(
    ranks: Ranks, asked: "deque[int]", printed: Callable[[int, bytes], None], grace: float = GRACE_SECONDS
) -> dict[int, int]:
    """Wait until all ranks ended, or were killed after one failed; exit codes in the order of ending."""
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
    """Print the preflight's lines for people; its results are JSON."""
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
