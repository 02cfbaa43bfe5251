"""A planned step beside a measured one: how far off the plan is, and in which part."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.config.run import RunConfig
from pretrain.planner.choice import machine_of, modes_of
from pretrain.planner.time.hardware import hardware_of_device, load_hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.step import predict_step

IN_RUN: Mapping[str, str] = {
    "matrix products": "forward and backward",
    "attention": "forward and backward",
    "elementwise": "forward and backward",
    "tensor parallel": "forward and backward",
    "pipeline": "forward and backward",
    "host": "forward and backward",
    "data parallel": "update and its communication",
    "optimizer": "update and its communication",
    "stragglers": "rest",
}
"""Planned part -> the part of a step that a run measures."""
IN_TRACE: Mapping[str, str] = {
    "matrix products": "matrix products",
    "attention": "attention",
    "elementwise": "elementwise and norms",
    "tensor parallel": "communication",
    "data parallel": "communication",
    "optimizer": "optimizer",
    "pipeline": "waiting",
    "host": "waiting",
    "stragglers": "waiting",
}
"""Planned part -> the part of a step in the trace of `pretrain bench`."""
WAITING = ("data", "idle")
"""Parts of a trace in which the device waits."""


@dataclass(frozen=True)
class Row:
    """One part of a step, in seconds."""

    part: str
    planned: float
    measured: float

    @property
    def off(self) -> float:
        return abs(self.planned - self.measured)


@dataclass(frozen=True)
class Versus:
    """A planned and a measured step."""

    planned: StepTime
    seconds: float
    """The measured step."""
    rows: tuple[Row, ...]
    """Empty if no part was measured."""

    @property
    def ratio(self) -> float:
        """Planned over measured."""
        return self.planned.seconds / self.seconds

    @property
    def most_off(self) -> Row | None:
        """The part with the largest difference; None if no part was measured."""
        return max(self.rows, key=lambda row: row.off, default=None)

    @property
    def line(self) -> str:
        """One sentence for the log."""
        within = "within" if self.planned.low <= self.seconds <= self.planned.high else "outside"
        line = (
            f"step time: planned {_ms(self.planned.seconds)} for {self.planned.hardware}, measured "
            f"{_ms(self.seconds)} (planned / measured {self.ratio:.2f}, {within} the planned band)"
        )
        worst = self.most_off
        if worst is None:
            return line
        return f"{line}; most off is {worst.part}: planned {_ms(worst.planned)}, measured {_ms(worst.measured)}"

    def as_json(self) -> dict[str, object]:
        """All planned and measured figures, as a JSON object."""
        parts = [{"part": row.part, "planned": row.planned, "measured": row.measured} for row in self.rows]
        return {**self.planned.as_json(), "measured_seconds_step": self.seconds, "ratio": self.ratio, "compared": parts}


def check_hardware(config: RunConfig) -> None:
    """Raise ConfigError if cluster.hardware is an unknown name, or a file that cannot be read as a record."""
    if config.cluster.hardware is not None:
        load_hardware(config.cluster.hardware)


def planned_step(
    config: RunConfig, vocab_size: int, world_size: int, memory: int, device_name: str | None
) -> StepTime | None:
    """The plan of a run on the machine that cluster.hardware names, else on that of the GPU's name; None if neither is
    known. `memory`: bytes of each rank's device, by which modes are chosen."""
    named = config.cluster.hardware
    known = load_hardware(named) if named is not None else device_name and hardware_of_device(device_name)
    if not known:
        return None
    modes = modes_of(config, vocab_size, world_size, memory, machine_of(config))
    return predict_step(config, vocab_size, world_size, modes, known)


def beside_run(planned: StepTime, measured: Mapping[str, float]) -> Versus:
    """Compare with the means of a run's train records: seconds_step, seconds_data and so on."""
    seconds = {
        "data": measured["seconds_data"],
        "forward and backward": measured["seconds_forward_backward"],
        "update and its communication": measured["seconds_optimizer"],
    }
    seconds["rest"] = max(0.0, measured["seconds_step"] - sum(seconds.values()))
    return Versus(planned, measured["seconds_step"], _rows(planned, IN_RUN, seconds))


def beside_trace(planned: StepTime, step: float, measured: Mapping[str, float]) -> Versus:
    """Compare with the parts of the median step of `pretrain bench`; without them, the whole step only."""
    if not measured:
        return Versus(planned, step, ())
    seconds = {part: value for part, value in measured.items() if part not in WAITING}
    seconds["waiting"] = sum(measured.get(part, 0.0) for part in WAITING)
    return Versus(planned, step, _rows(planned, IN_TRACE, seconds))


def _rows(planned: StepTime, names: Mapping[str, str], measured: Mapping[str, float]) -> tuple[Row, ...]:
    expected = dict.fromkeys(measured, 0.0)
    for part, seconds in planned.parts.items():
        expected[names[part]] = expected.get(names[part], 0.0) + seconds
    return tuple(Row(part, seconds, measured.get(part, 0.0)) for part, seconds in expected.items())


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
