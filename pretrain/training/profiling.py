"""A torch profiler around a few steps of the training loop."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

log = logging.getLogger(__name__)


class StepProfiler:
    """Records the steps from `first` to `last`, each marked `step N` in the trace, and hands it to `done`."""

    def __init__(self, first: int, last: int, done: Callable[[profile, int, int], None]) -> None:
        self.first, self.last, self._done = first, last, done
        self._profile: profile | None = None
        self._began = 0
        self._mark: record_function | None = None

    def begin_step(self, step: int) -> None:
        """Call this before the batch is loaded."""
        if not self.first <= step <= self.last:
            return
        if self._profile is None:
            _synchronize()
            self._profile, self._began = profile(activities=_activities()), step
            self._profile.start()
        self._mark = record_function(step_mark(step))
        self._mark.__enter__()

    def end_step(self, step: int) -> None:
        """Call this after the update: recording and saving belong to no step."""
        if self._mark is None:
            return
        if step == self.last:
            _synchronize()  # kernels that still run belong to the step
        self._mark.__exit__(None, None, None)
        self._mark = None
        if step == self.last and self._profile is not None:
            self._profile.stop()
            self._done(self._profile, self._began, step)
            self._profile = None


def profiler_of(steps: Sequence[int] | None, run_folder: Path, rank: int) -> StepProfiler | None:
    """A profiler that writes a Chrome trace of these first to last steps into the run folder; None without steps."""
    if steps is None:
        return None

    def write(recorded: profile, first: int, last: int) -> None:
        path = run_folder / "profile" / f"steps-{first:08d}-{last:08d}-rank-{rank:05d}.json"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        recorded.export_chrome_trace(str(partial))
        partial.replace(path)
        log.info("profiled steps %d to %d: %s", first, last, path)

    return StepProfiler(steps[0], steps[1], write)


def step_mark(step: int) -> str:
    """The name of a step in a trace."""
    return f"step {step}"


def _activities() -> list[ProfilerActivity]:
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return [ProfilerActivity.CPU, *on_gpu]


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
