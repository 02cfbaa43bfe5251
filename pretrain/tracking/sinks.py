"""The sinks of a run: each one receives every record."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_pipeline.errors import UserError
from pretrain.config.run import RunConfig
from pretrain.tracking.console import console_sink
from pretrain.tracking.metrics_file import JsonlSink, Kind, Values
from pretrain.tracking.pace import ValidationSizes
from pretrain.tracking.report import ReportSink
from pretrain.tracking.tensorboard_sink import TensorBoardSink
from pretrain.tracking.wandb_sink import WandbSink

_logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Takes the records of a run."""

    def log(self, kind: Kind, step: int, values: Values) -> None:
        """Take one record; the steps of a kind never decrease."""

    def close(self, outcome: str) -> None:
        """End the record: `finished`, `stopped` (to be resumed), or another word for a failure."""


@runtime_checkable
class ShowsProgress(Protocol):
    """A sink that shows the progress of a validation."""

    def validating(self, done: int, total: int) -> None:
        """Take the number of samples done; 0 at the start."""


def build_sinks(
    config: RunConfig,
    run_dir: Path,
    resume_step: int,
    total_steps: int,
    description: Mapping[str, object],
    sizes: ValidationSizes | None = None,
) -> list[Sink]:
    """The sinks that `config.tracking` asks for, set to continue after `resume_step` (0: from the start).

    metrics.jsonl, the console and the report are always among them. A sink that fails, now or later, is left out with
    one warning. Raises UserError if wandb is online and has no API key.
    """
    builders: list[tuple[str, Callable[[], Sink]]] = [("console", lambda: console_sink(total_steps, sizes))]
    if config.tracking.tensorboard:
        builders.append(("TensorBoard", lambda: TensorBoardSink(run_dir, resume_step, sizes)))
    if config.tracking.wandb != "off":
        builders.append(("wandb", lambda: WandbSink(config, run_dir, description, sizes)))
    # Last, because it shows what the other sinks have received.
    builders.append(("report", lambda: ReportSink(run_dir)))

    run_dir.mkdir(parents=True, exist_ok=True)
    sinks: list[Sink] = [JsonlSink(run_dir, resume_step)]
    for name, build in builders:
        try:
            sinks.append(Spare(name, build()))
        except UserError:
            raise
        except Exception as error:
            _warn(name, error)
    return sinks


class Spare:
    """A sink that training does not need: its first failure is logged as one warning, and it is not called again."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self._sink: Sink | None = sink

    def log(self, kind: Kind, step: int, values: Values) -> None:
        self._try(lambda sink: sink.log(kind, step, values))

    def validating(self, done: int, total: int) -> None:
        self._try(lambda sink: sink.validating(done, total) if isinstance(sink, ShowsProgress) else None)

    def close(self, outcome: str) -> None:
        self._try(lambda sink: sink.close(outcome))

    def _try(self, action: Callable[[Sink], None]) -> None:
        if self._sink is None:
            return
        try:
            action(self._sink)
        except Exception as error:
            self._sink = None
            _warn(self.name, error)


def _warn(name: str, error: Exception) -> None:
    _logger.warning("%s failed and is disabled for the rest of the run: %s: %s", name, type(error).__name__, error)
