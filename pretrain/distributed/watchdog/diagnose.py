"""Find the rank that failed first in the reports of all ranks, and describe the failure."""

from collections.abc import Collection, Mapping, Sequence

from data_pipeline.errors import error_line
from pretrain.config.errors import TrainingDiverged
from pretrain.distributed.watchdog.errors import MEMORY_REMEDY, describe_error, kind_of
from pretrain.distributed.watchdog.rank_status import RankProcess, RankStatus
from pretrain.outcome.failure import FailureKind, FailureReport, Stage


def diagnose(
    processes: Mapping[int, RankProcess],
    statuses: Mapping[int, RankStatus],
    *,
    ended: Collection[int] = (),
    silent_seconds: Mapping[int, float] | None = None,
    kernel_kills: int = 0,
) -> FailureReport | None:
    """Report the ranks that failed first, or None if no cause shows: all ranks answer, and all or none of several wait.

    If all ranks wait, see `report_deadlock`.

    These are the ranks whose process ended. If all processes run, they are those that do not answer. If all answer,
    they are those that keep the others waiting.
    """
    if ended:
        return _report_ended(processes, ended, kernel_kills)
    silent = [rank for rank in processes if rank not in statuses]
    if silent:
        return _report_silent(processes, silent, silent_seconds or {})
    stuck = sorted(rank for rank, status in statuses.items() if not status.waits)
    if not stuck or (len(stuck) == len(statuses) and len(statuses) > 1):
        return None
    first = statuses[stuck[0]]
    message = (
        f"{_names(processes, stuck)}: keeps the others waiting{_in_step(first.step)}, outside of any collective: no "
        f"movement for {first.still_seconds:.0f} s at {first.where}"
    )
    details = "\n".join(_stack_of(processes[rank], statuses[rank]) for rank in stuck[:MAX_STACKS])
    return _report(FailureKind.STUCK, message, processes, stuck, first.stage, first.step, details)


def report_error(process: RankProcess, stage: Stage, step: int | None, error: BaseException) -> FailureReport:
    """The report of a rank on its own exception."""
    message = f"{process}: first failure{_in_step(step)}: {describe_error(error)}"
    return _report(kind_of(error), message, {process.rank: process}, [process.rank], stage, step)


def report_left(process: RankProcess, stage: Stage, step: int | None, error: BaseException) -> FailureReport:
    """The report of a rank that ends with an error that is not a failure of the program."""
    message = error_line(error)
    if isinstance(error, TrainingDiverged):
        message, step = f"training diverged: {message}", error.step
    return _report(kind_of(error), message, {process.rank: process}, [process.rank], stage, step)


def report_deadlock(processes: Mapping[int, RankProcess], statuses: Mapping[int, RankStatus]) -> FailureReport:
    """The report if every rank waits, most often in a collective that other ranks did not join."""
    by_where: dict[str, list[int]] = {}
    for rank in sorted(statuses):
        by_where.setdefault(statuses[rank].where, []).append(rank)
    shown = [ranks[0] for ranks in by_where.values()][:MAX_STACKS]
    details = "\n".join(_stack_of(processes[rank], statuses[rank]) for rank in shown)
    listed = "; ".join(f"{_numbers(ranks)} at {where}" for where, ranks in by_where.items())
    kind = "in different collectives" if len(by_where) > 1 else "in the same place (a slow or broken network, or GPU)"
    message = f"deadlock: every rank is waiting for another, {kind}: {listed}"
    stage = next((status.stage for status in statuses.values()), None)
    return FailureReport(FailureKind.DEADLOCK, message, tuple(sorted(statuses)), stage=stage, details=details)


def report_no_progress(process: RankProcess, status: RankStatus) -> FailureReport:
    """The report on the only rank of a run."""
    message = f"no progress for {status.still_seconds:.0f} s (engine.timeout_minutes) at {status.where}"
    ranks = {process.rank: process}
    return _report(FailureKind.NO_PROGRESS, message, ranks, [0], status.stage, status.step, status.stack)


def report_lost_launcher(where: str, stage: Stage, step: int | None) -> FailureReport:
    """The report if the store of the launcher no longer answers."""
    message = f"the launcher at {where}, through which the ranks met, is gone"
    return FailureReport(FailureKind.LAUNCHER_GONE, message, stage=stage, step=step)


def report_lost_rank_0(coordinates: str, where: str, stage: Stage, step: int | None, *, joined: bool) -> FailureReport:
    """The report if the store that rank 0 holds no longer answers, or never did."""
    message = f"rank 0 ({coordinates}, at {where}): first failure: {DIED if joined else NEVER_JOINED}"
    kind = FailureKind.PROCESS_DIED if joined else FailureKind.NEVER_JOINED
    return FailureReport(kind, message, (0,), coordinates, stage=stage, step=step)


def _report_ended(processes: Mapping[int, RankProcess], ended: Collection[int], kernel_kills: int) -> FailureReport:
    why = f"the kernel killed the process because memory ran out; {MEMORY_REMEDY}" if kernel_kills else DIED
    kind = FailureKind.KERNEL_KILL if kernel_kills else FailureKind.PROCESS_DIED
    return _report(kind, f"{_names(processes, ended)}: first failure: {why}", processes, ended)


def _report_silent(
    processes: Mapping[int, RankProcess], silent: Sequence[int], silent_seconds: Mapping[int, float]
) -> FailureReport:
    never = [rank for rank in silent if not processes[rank].pid]
    if never:  # ranks that joined and then became unresponsive may only be waiting for these
        message = f"{_names(processes, never)}: first failure: {NEVER_JOINED}"
        return _report(FailureKind.NEVER_JOINED, message, processes, never)
    seconds = max(silent_seconds.get(rank, 0.0) for rank in silent)
    message = f"{_names(processes, silent)}: first failure: no sign of life for {seconds:.0f} s ({SILENT})"
    return _report(FailureKind.UNRESPONSIVE, message, processes, silent)


def _report(
    kind: FailureKind,
    message: str,
    processes: Mapping[int, RankProcess],
    ranks: Collection[int],
    stage: Stage | None = None,
    step: int | None = None,
    details: str = "",
) -> FailureReport:
    """A report with the place of the first of `ranks`."""
    first = processes[min(ranks)]
    return FailureReport(kind, message, tuple(sorted(ranks)), first.coordinates, first.host, stage, step, details)


def _stack_of(process: RankProcess, status: RankStatus) -> str:
    return f"{process} was at:\n{status.stack.rstrip()}"


def _names(processes: Mapping[int, RankProcess], ranks: Collection[int]) -> str:
    chosen = sorted(ranks)
    named = ", ".join(str(processes[rank]) for rank in chosen[:MAX_NAMES])
    return named if len(chosen) <= MAX_NAMES else f"{named} and {len(chosen) - MAX_NAMES} more"


def _numbers(ranks: Sequence[int]) -> str:
    listed = ", ".join(str(rank) for rank in ranks[:MAX_NAMES])
    more = f" and {len(ranks) - MAX_NAMES} more" if len(ranks) > MAX_NAMES else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}{more}"


def _in_step(step: int | None) -> str:
    return "" if step is None else f" in step {step}"


DIED = "the process exited without an error (killed, or out of memory)"
SILENT = "killed, stopped, stuck in native code, or its machine is gone"
NEVER_JOINED = "did not join the others (not started, killed before, or slower than engine.init_timeout_minutes)"
MAX_NAMES, MAX_STACKS = 8, 4
