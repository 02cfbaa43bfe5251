"""The predicted time of a step in the output of `pretrain plan`."""

from collections.abc import Sequence

from pretrain.config.derived import tokens_per_step
from pretrain.config.run import RunConfig
from pretrain.planner.time.hardware import Hardware, load_hardware, preset_names
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.sensitivity import Sensitivity

SHOWN_SHARE = 0.001
"""Parts below this share of a step are not printed."""
MAX_NAMES = 4
"""Guessed numbers that are printed."""


def chosen_hardware(config: RunConfig, name: str | None) -> Hardware | None:
    """The machine that `--hardware` names, else that of cluster.hardware; None if neither is set."""
    wanted = name or config.cluster.hardware
    return None if wanted is None else load_hardware(wanted)


def run_tokens(config: RunConfig) -> int:
    """Tokens of the whole run."""
    if config.train.max_tokens is not None:
        return config.train.max_tokens
    return (config.train.max_steps or 0) * tokens_per_step(config)


def time_lines(
    step: StepTime, hardware: Hardware, guesses: Sequence[Sensitivity], tokens: int, price: float | None
) -> list[str]:
    """A table of the parts of a step, then speed, length and cost of the run, and where the numbers come from."""
    device = "GPU" if hardware.kind == "gpu" else "rank"
    shares = ", ".join(f"{step.mfu[key]:.1%} by {words}" for key, words in _CONVENTIONS)
    lines = [
        f"a step on {hardware.name}: {_seconds(step.seconds)}, in 8 of 10 cases {_seconds(step.low)} to "
        f"{_seconds(step.high)}",
        *_part_lines(step),
        f"limited by {step.limit}",
        f"{step.tokens_per_second_per_rank:,.0f} tokens/s on each {device}; MFU {shares}",
        _run_line(step, device, tokens, price),
        *_origin_lines(step, guesses),
    ]
    return lines


def unknown_hardware_lines() -> list[str]:
    """How to name a machine."""
    names = ", ".join(preset_names())
    return [
        "",
        "time of a step: not predicted, because the machine is not known. Add --hardware NAME, one of",
        f"{names}, or a file that `pretrain bench --record FILE` wrote on yours.",
    ]


_CONVENTIONS = (("6n", "6N"), ("6n_6lhs", "6N + 6Lhs"), ("6n_12lhs", "6N + 12Lhs"))


def _part_lines(step: StepTime) -> list[str]:
    shown = {name: value for name, value in step.parts.items() if value >= SHOWN_SHARE * step.seconds}
    width = max(map(len, shown))
    return [f"  {name:{width}}  {_seconds(value):>9}  {value / step.seconds:6.1%}" for name, value in shown.items()]


def _run_line(step: StepTime, device: str, tokens: int, price: float | None) -> str:
    hours = step.device_hours(tokens)
    shown = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    line = f"{tokens:,} tokens: {_duration(step.days(tokens))}, {shown} {device}-hours"
    if price is not None:
        line += f", cost {price * hours:,.2f} at {price:g} for each"
    return line


def _origin_lines(step: StepTime, guesses: Sequence[Sensitivity]) -> list[str]:
    counts = ", ".join(f"{len(names)} {_WORDS[origin]}" for origin, names in step.origins.items())
    lines = [f"numbers of the machine: {counts}"]
    if guesses:
        shown = ", ".join(f"{guess.name} {guess.effect:.1%}" for guess in guesses[:MAX_NAMES])
        lines.append(f"guesses that matter most (change of a step if 10% lower): {shown}")
    return lines


_WORDS = {"published": "published", "measured": "measured", "guess": "guessed"}


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 10 else f"{value:.3f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def _duration(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    hours = 24 * days
    return f"{hours:.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"
