"""The sinks of a run on this rank, and the record of how the run ended."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import error_line
from pretrain.distributed.watchdog.reported import report_of
from pretrain.outcome import record
from pretrain.outcome.record import OutcomeRecord
from pretrain.run.outcome import record_end
from pretrain.tracking.close_sinks import close_within
from pretrain.tracking.sinks import ShowsProgress, Sink, Spare

STOPPED_SECONDS, ENDED_SECONDS = 25.0, 150.0
"""Time for report and wandb to close. After most stops a SIGKILL follows, 30 s after the signal that asked for the
stop; wandb itself gives up after 120 s."""


class RunSinks:
    """The open sinks of this rank. Only the main rank opens any."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sinks: list[Sink] = []
        self.outcome = "failed"
        self.end_record: OutcomeRecord | None = None
        """The record of a run that finished, or was stopped and saved."""
        self.losses: dict[str, float] = {}
        """The last training and validation loss."""

    def open(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def record(self, kind: Any, step: int, values: Mapping[str, float | int | str]) -> None:
        if "loss" in values:
            self.losses[f"{kind} loss"] = float(values["loss"])
        for sink in self._sinks:
            sink.log(kind, step, values)

    def show_validation(self, done: int, total: int) -> None:
        """Show how many samples of a validation are done."""
        for sink in self._sinks:
            if isinstance(sink, ShowsProgress):
                sink.validating(done, total)

    def end(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Record in the run folder how and why the run ended, then close the sinks; the exit of an ExitStack."""
        if self._sinks:
            end = self.end_record
            if error is not None:
                end = record.failure(report_of(error), error_line(error) or type(error).__name__)
            if end is not None:
                record_end(self._folder, end)
        for sink in self._sinks:
            if not isinstance(sink, Spare):
                sink.close(self.outcome)
        spare = {sink.name: partial(sink.close, self.outcome) for sink in self._sinks if isinstance(sink, Spare)}
        close_within(STOPPED_SECONDS if self.outcome == "stopped" else ENDED_SECONDS, spare)
