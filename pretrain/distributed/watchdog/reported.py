"""Exceptions and their reports: the one that stands for another rank's failure, and the report on any other."""

import os
import socket

from data_pipeline.errors import UserError
from pretrain.config.errors import TrainingDiverged
from pretrain.distributed.watchdog.diagnose import report_error, report_left
from pretrain.distributed.watchdog.local_ranks import machine_name
from pretrain.distributed.watchdog.rank_status import RankProcess
from pretrain.outcome.failure import FailureReport, Stage

_ATTRIBUTE = "pretrain_failure_report"


class RankFailed(Exception):
    """The run ended because another rank failed. The last line of the text is the report's message."""

    def __init__(self, text: str, report: FailureReport) -> None:
        super().__init__(text)
        attach_report(self, report)


def attach_report(error: BaseException, report: FailureReport) -> None:
    """Keep the watchdog's report with the exception."""
    setattr(error, _ATTRIBUTE, report)


def has_report(error: BaseException) -> bool:
    """Whether a watchdog reported the error."""
    return hasattr(error, _ATTRIBUTE)


def report_of(error: BaseException) -> FailureReport:
    """The watchdog's report on an error, else one that is made here."""
    if has_report(error):
        report: FailureReport = getattr(error, _ATTRIBUTE)
        return report
    rank, world_size = (_number(os.environ.get(name), default) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    process = RankProcess(rank, f"of {world_size}", socket.gethostname(), machine_name(), os.getpid())
    build = report_left if isinstance(error, UserError | TrainingDiverged) else report_error
    return build(process, Stage.START_UP, None, error)


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default
