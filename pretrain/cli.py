"""The `pretrain` command: global options, one command with its arguments, an exit code of `pretrain.exit_codes`."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

from data_pipeline.errors import UserError
from pretrain.commands.arguments import UsageError
from pretrain.commands.table import global_parser, load_command, parse, unknown_option
from pretrain.exit_codes import ExitCode
from pretrain.std_streams import drop_output, is_closed_by_reader, is_refusal, open_closed_streams
from pretrain.tracking.close_sinks import is_closing

SECONDS_FOR_RANK_0 = 15

log = logging.getLogger("pretrain")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: never returns."""
    open_closed_streams()
    try:
        name, given = parse_command_line(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        sys.stderr.write(error.usage if isinstance(error, UsageError) and _rank() == 0 else "")
        _report(error)
        sys.exit(ExitCode.MISTAKE)
    _set_up_logging()
    code = run_command(name, given)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (ExitCode.FAILED, ExitCode.DIVERGED, ExitCode.REFUSED) or is_closing():
        # Skip the interpreter's clean-up: threads of a broken process group may wait there for ranks that have ended,
        # and those of a sink for a network that does not answer.
        os._exit(code)
    sys.exit(code)


def parse_command_line(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The name of the command, and its options. Options before the name are those of `pretrain` itself."""
    parser = global_parser()
    number = next((index for index, each in enumerate(arguments) if not each.startswith("-")), len(arguments))
    given, unknown = parser.parse_known_args(arguments[:number])
    if given.version:
        from pretrain.commands.version import version_text

        sys.stdout.write(version_text())
        sys.exit(ExitCode.DONE)
    if unknown:
        raise unknown_option(unknown, parser, takes_overrides=False)
    if number == len(arguments):
        sys.stderr.write(parser.format_help())
        sys.exit(ExitCode.MISTAKE)
    name = arguments[number]
    return name, parse(name, arguments[number + 1 :])


def run_command(name: str, given: argparse.Namespace) -> int:
    """The exit code of the command; errors are printed or logged."""
    try:
        code = load_command(name).run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        log.error("interrupted")
        return ExitCode.FAILED
    except Exception as error:
        return _code_of_error(error)


def _code_of_error(error: Exception) -> ExitCode:
    # Imported here, so that `pretrain --help` and `--version` do not wait for it.
    from pretrain.config.errors import TrainingDiverged
    from pretrain.distributed.torchrun import leave_reason
    from pretrain.distributed.watchdog.errors import describe_error, kind_of
    from pretrain.distributed.watchdog.reported import RankFailed, report_of
    from pretrain.outcome import record

    if isinstance(error, BrokenPipeError) and is_closed_by_reader():
        drop_output()
        return ExitCode.NOT_READ
    record.write_for_launcher(record.failure(report_of(error)))  # kept only if no watchdog wrote one
    if isinstance(error, UserError):
        _report(error)
        return kind_of(error).exit_code
    if isinstance(error, TrainingDiverged):
        log.error("training diverged: %s", error)
        leave_reason(f"training diverged: {error.one_line}")
        return ExitCode.DIVERGED
    if isinstance(error, RankFailed):
        log.error("%s", error)
        leave_reason(str(error).splitlines()[-1])
        return ExitCode.FAILED
    if is_refusal(error):
        log.error("rank %d failed: %s", _rank(), error)
        drop_output()  # it may be what could not be written
    else:
        log.error("rank %d failed", _rank(), exc_info=error)
    leave_reason(f"rank {_rank()} failed: {describe_error(error)}")
    if _from_launcher("WORLD_SIZE") > 1:
        from pretrain.distributed.watchdog.watched import announce

        announce(error)
    return kind_of(error).exit_code


def _report(error: UserError) -> None:
    """Print a user's mistake. All ranks find the same one, and rank 0 prints it.

    The launcher ends all ranks when the first one ends, so the others wait until rank 0 has printed. A rank that is
    still alive after that is the only one with this mistake, and prints it.
    """
    from pretrain.distributed.torchrun import leave_reason

    rank = _rank()
    if rank:
        time.sleep(SECONDS_FOR_RANK_0)
    text = f"pretrain: error: {f'rank {rank}: ' if rank else ''}{error}"
    if not leave_reason(text):
        sys.stderr.write(f"{text}\n")


def _rank() -> int:
    return _from_launcher("RANK")


def _from_launcher(name: str) -> int:
    """The number in this variable; 0 if it is unset or not a number, which the code that works with it reports."""
    text = os.environ.get(name, "0")
    return int(text) if text.isdecimal() else 0


def _set_up_logging() -> None:
    """Rank 0 prints information and errors, the other ranks only errors."""
    handler = logging.StreamHandler()
    prefix = "" if _rank() == 0 else f"[rank {_rank()}] "
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    handler.setLevel(logging.INFO if _rank() == 0 else logging.ERROR)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
