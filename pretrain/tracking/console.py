"""The progress of a run for people: one live line on a terminal, plain log lines elsewhere."""

import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from pretrain.tracking.metrics_file import Kind, Values
from pretrain.tracking.pace import Progress, ValidationProgress, ValidationSizes
from pretrain.tracking.task_values import tasks_line

_logger = logging.getLogger(__name__)
_CLEAR = "\r\x1b[K"


def console_sink(
    total_steps: int, sizes: ValidationSizes | None = None, stream: TextIO | None = None
) -> "LiveConsole | PlainConsole":
    """A live line if `stream` (default: stderr) is a terminal that can redraw it, else log lines."""
    stream, final = sys.stderr if stream is None else stream, 0 if sizes is None else sizes.final
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    return LiveConsole(total_steps, stream, final) if live else PlainConsole(total_steps, final)


class PlainConsole:
    """A log line for each record."""

    def __init__(self, total_steps: int, final_samples: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._progress = Progress(total_steps, final_samples, now)
        self._validation = ValidationProgress(now)
        self._step = 0

    def log(self, kind: Kind, step: int, values: Values) -> None:
        self._step = step
        if kind == "length":
            self._progress.total_steps = int(values["end_step"])
        elif kind == "validation":
            self._progress.validated(values)
            for line in validation_lines(step, values):
                _logger.info("%s", line)
        else:
            _logger.info("%s", "  ".join(self._fields(step, values)))

    def validating(self, done: int, total: int) -> None:
        """Log the start of the final validation, and a progress line now and then during any validation."""
        line = progress_line(self._validation, self._step == self._progress.total_steps, done, total)
        if (done == 0 and self._step == self._progress.total_steps) or (done and self._validation.is_line_due()):
            _logger.info("%s", line)

    def close(self, outcome: str) -> None:
        """Nothing needs to be closed."""

    def _fields(self, step: int, values: Values) -> Iterator[str]:
        yield f"step {step}/{self._progress.total_steps}"
        yield from _number(values, "loss", "loss {:.4f}")
        yield from _number(values, "grad_norm", "grad norm {:.3g}")
        yield from _number(values, "lr", "lr {:.3e}")
        yield from _speed(values)
        yield from _skipped(values)
        yield from _number(values, "mfu_6n_6lhs", "MFU {:.1%}")
        yield f"ETA {duration(self._progress.remaining(step, values))}"


class LiveConsole:
    """One line, redrawn in place; validation results and log lines of the program are printed above it."""

    def __init__(
        self, total_steps: int, stream: TextIO, final_samples: int = 0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = Progress(total_steps, final_samples, now)
        self._validation = ValidationProgress(now)
        self._step = 0
        self._stream = stream
        self._line = self._step_line = ""
        self._handlers = list(_handlers_on_terminal(stream))
        for handler in self._handlers:
            handler.setStream(_AboveLiveLine(self))

    def log(self, kind: Kind, step: int, values: Values) -> None:
        self._step = step
        if kind == "length":
            self._progress.total_steps = int(values["end_step"])
        elif kind == "validation":
            self._progress.validated(values)
            self._line = self._step_line
            self.print_above("".join(line + "\n" for line in validation_lines(step, values)))
        else:
            self._line = self._step_line = "  ".join(self._fields(step, values))
            self._draw()

    def validating(self, done: int, total: int) -> None:
        """Show the progress of a validation in place of the step's line."""
        self._line = progress_line(self._validation, self._step == self._progress.total_steps, done, total)
        self._draw()

    def close(self, outcome: str) -> None:
        """Leave the last line on the screen, and let the log handlers write to the terminal again."""
        for handler in self._handlers:
            handler.setStream(self._stream)
        if self._line:
            self._stream.write("\n")
            self._stream.flush()

    def print_above(self, text: str) -> None:
        self._stream.write(_CLEAR + text)
        self._draw()

    def flush(self) -> None:
        self._stream.flush()

    def _draw(self) -> None:
        # A line that wraps could not be redrawn in place.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(_CLEAR + self._line[:width])
        self._stream.flush()

    def _fields(self, step: int, values: Values) -> Iterator[str]:
        total = self._progress.total_steps
        yield f"step {step}/{total} ({step / max(total, 1):.0%})"
        yield from _number(values, "loss", "loss {:.4f}")
        yield from _speed(values)
        yield from _skipped(values)
        yield f"ETA {duration(self._progress.remaining(step, values))}"


class _AboveLiveLine:
    """The stream that log handlers write to while there is a live line."""

    def __init__(self, console: LiveConsole) -> None:
        self._console = console
        self._text = ""

    def write(self, text: str) -> None:
        self._text += text
        whole, newline, self._text = self._text.rpartition("\n")
        if newline:
            self._console.print_above(whole + newline)

    def flush(self) -> None:
        self._console.flush()


def _handlers_on_terminal(stream: TextIO) -> Iterator[logging.StreamHandler]:
    logger: logging.Logger | None = _logger
    while logger is not None:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                yield handler
        logger = logger.parent


def validation_lines(step: int, values: Values) -> list[str]:
    """A validation result in one line, and another one if it has tasks or domains."""
    of_tasks = tasks_line(values)
    return [validation_line(step, values), *([f"tasks at step {step}: {of_tasks}"] if of_tasks else [])]


def validation_line(step: int, values: Values) -> str:
    """A validation result in one line."""
    results = [
        *_number(values, "loss", "loss {:.4f}"),
        *_number(values, "perplexity", "perplexity {:.2f}"),
        *_number(values, "bits_per_byte", "{:.4f} bits per byte"),
    ]
    for key in values:
        if key.startswith("loss/"):
            results += _number(values, key, f"{key.removeprefix('loss/')} {{:.4f}}")
    cost = [*_number(values, "samples", "{:,.0f} samples"), *_number(values, "seconds", "{:.1f} s")]
    return f"validation at step {step}: {', '.join(results)}" + (f" ({', '.join(cost)})" if cost else "")


def progress_line(progress: ValidationProgress, is_final: bool, done: int, total: int) -> str:
    """The progress of a validation: samples, rate and time left."""
    title = "final validation" if is_final else "validation"
    to_go = progress.seconds_to_go(done, total)
    if not done:
        return f"{title}: {total:,} samples"
    rate = short_number(progress.rate(done))
    return f"{title}: {done:,} of {total:,} samples  {rate} samples/s  ETA {duration(to_go)}"


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m12s, 5h07m or 2d03h; ? if negative or not finite."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"


def short_number(value: float) -> str:
    """Three significant digits with k, M, B or T: 12.3k."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def _number(values: Values, name: str, form: str) -> Iterator[str]:
    if name in values:
        yield form.format(float(values[name]))


def _speed(values: Values) -> Iterator[str]:
    if "tokens_per_second" in values:
        yield f"{short_number(float(values['tokens_per_second']))} tokens/s"


def _skipped(values: Values) -> Iterator[str]:
    if values.get("skipped_samples"):
        yield f"{values['skipped_samples']:,} samples of bad shards skipped"
