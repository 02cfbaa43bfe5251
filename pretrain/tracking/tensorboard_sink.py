"""TensorBoard points, through tensorboard's own writer: torch's adds seconds of import and nothing that is needed."""

import time
from pathlib import Path
from typing import Any

from pretrain.tracking.metrics_file import Kind, Values
from pretrain.tracking.pace import ValidationSizes, series_name


class TensorBoardSink:
    """Numbers as scalars `series/name` in run_dir/tensorboard; on resume the points after `resume_step` are hidden."""

    def __init__(self, run_dir: Path, resume_step: int, sizes: ValidationSizes | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

        self._sizes = sizes
        self._writer = EventFileWriter(str(run_dir / "tensorboard"), flush_secs=10)
        # A session start makes TensorBoard purge what earlier files hold from this step on.
        purge_step = resume_step + 1 if resume_step > 0 else 0
        self._add(purge_step, session_log=SessionLog(status=SessionLog.START))

    def log(self, kind: Kind, step: int, values: Values) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        series = series_name(kind, values, self._sizes)
        scalars = [
            Summary.Value(tag=f"{series}/{name}", simple_value=float(value))
            for name, value in values.items()
            if not isinstance(value, str)
        ]
        self._add(step, summary=Summary(value=scalars))

    def close(self, outcome: str) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))
