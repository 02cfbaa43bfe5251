"""Training under a watchdog, and the report on an error that came before the watchdog was started."""

import contextlib
from collections.abc import Iterator

from data_pipeline.errors import UserError
from pretrain.config.errors import TrainingDiverged
from pretrain.distributed.watchdog.errors import ErrorOrigin, describe_error, is_out_of_memory, origin_of
from pretrain.distributed.watchdog.failure_store import FailureStore
from pretrain.distributed.watchdog.inquiry import STATUS_SECONDS
from pretrain.distributed.watchdog.reported import RankFailed, attach_report, has_report, report_of
from pretrain.distributed.watchdog.watchdog import Watchdog


@contextlib.contextmanager
def watched(watchdog: Watchdog) -> Iterator[Watchdog]:
    """Train under a watchdog. An exception of this rank gets a note that names the rank that failed first. An exception
    that another rank caused becomes RankFailed.
    """
    watchdog.start()
    try:
        yield watchdog
    except (UserError, TrainingDiverged) as error:
        watchdog.close(error)
        raise
    except Exception as error:
        report = watchdog.failed(error)
        attach_report(error, report)
        if watchdog.alone:
            if is_out_of_memory(error):
                error.add_note(describe_error(error))
            raise
        if origin_of(error) is ErrorOrigin.THIS_RANK:
            error.add_note(watchdog.text(report))
            raise
        raise RankFailed(watchdog.text(report), report) from error
    except BaseException:
        watchdog.close()
        raise
    watchdog.close()


def announce(error: Exception) -> None:
    """Report an error to the other ranks before this one has met them. Does nothing if they cannot be reached, or if a
    watchdog has reported the error."""
    if has_report(error):
        return
    with contextlib.suppress(Exception):
        FailureStore.connect(STATUS_SECONDS).settle(report_of(error))
