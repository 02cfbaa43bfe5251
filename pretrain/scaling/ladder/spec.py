"""A ladder file: sizes of models times lengths of training, and what all their runs have in common.

name: tiny
overrides: [data=stdlib, model=tiny_llama]   # of every run, as for `pretrain train`
sizes: {layers: [2, 3, 4], width_per_layer: 32, head_size: 32}
tokens: {multiples: [1, 2, 4], trunk: true}  # multiples of 20 tokens for each parameter
rates: {law: own}
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pretrain.config.describe import CONF_DIR
from pretrain.config.errors import ConfigError, Problem, RunError
from pretrain.config.nearest import did_you_mean
from pretrain.config.records import to_record

SHIPPED = CONF_DIR / "scaling"
EXPONENT = re.compile(r"[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True)
class SizesSpec:
    """Sizes of models: presets of conf/model, or depths with a rule for the width."""

    models: tuple[str, ...] = ()
    """Names of presets, as in [gpt3_125m,gpt3_350m]."""
    layers: tuple[int, ...] = ()
    """Depths of models that are otherwise the one in `overrides`."""
    width_per_layer: int | None = None
    """Width of such a model: its depth times this."""
    widths: tuple[int, ...] = ()
    """Instead of width_per_layer: the width of each of `layers`, as in layers [2,2,4], widths [64,96,128]."""
    head_size: int | None = None
    """Columns of a head: the width divided by it is the number of heads. null: that of the model in `overrides`."""
    ffn_ratio: float = 4.0
    """Width of the feed-forward layer as a multiple of the width."""
    ffn_multiple_of: int = 16
    """That width is rounded up to a multiple of this."""
    init_scale: float | None = None
    """Standard deviation of the initial values, times the square root of the width. null: model.init_std of
    `overrides`, for all sizes."""


@dataclass(frozen=True, kw_only=True)
class TokensSpec:
    """Training lengths of every size: multiples of 20 tokens per parameter, FLOP budgets, or numbers of tokens."""

    multiples: tuple[float, ...] = ()
    """1 is 20 tokens for each parameter (Hoffmann et al. 2022)."""
    budgets: tuple[float, ...] = ()
    """Floating-point operations C; a size trains on D = C / 6N tokens."""
    lengths: tuple[float, ...] = ()
    """Numbers of tokens."""
    ratios: tuple[float, float] = (2.0, 400.0)
    """Smallest and largest number of tokens for each parameter in a budget. Other cells are left out."""
    trunk: bool = False
    """Whether the runs of one size share their constant phase (lr_schedule=wsd): the longest is the trunk, and the
    others branch from its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class PowerSpec:
    """coefficient * N^parameters_exponent * D^tokens_exponent."""

    coefficient: float = 0.0
    parameters_exponent: float = 0.0
    tokens_exponent: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RatesSpec:
    """The peak learning rate and the batch of each run. Without a law they are those in `overrides`."""

    law: str | None = None
    """Name of a published law: own, step_law, deepseek."""
    lr: PowerSpec = field(default_factory=PowerSpec)
    """A law of your own for the learning rate. A coefficient of 0: not used."""
    batch: PowerSpec = field(default_factory=PowerSpec)
    """A law of your own for the tokens in a batch. A coefficient of 0: not used."""


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """Runs that are not in the fit: the law must predict them."""

    sizes: SizesSpec = field(default_factory=SizesSpec)
    tokens: TokensSpec = field(default_factory=TokensSpec)


@dataclass(frozen=True, kw_only=True)
class LadderSpec:
    """The content of a ladder file."""

    name: str
    """Name of the ladder: its folder is ladders/NAME, and its wandb group has this name."""
    overrides: tuple[str, ...] = ()
    """Overrides of every run, as for `pretrain train`."""
    sizes: SizesSpec = field(default_factory=SizesSpec)
    tokens: TokensSpec = field(default_factory=TokensSpec)
    rates: RatesSpec = field(default_factory=RatesSpec)
    targets: TargetSpec = field(default_factory=TargetSpec)
    seeds: tuple[int, ...] = ()
    """Every cell and target is trained once with each of these values of run.seed, and the fit takes the mean. None:
    once, with the seed of `overrides`."""
    count: Literal["without_embeddings", "all"] = "without_embeddings"
    """Which parameters N counts, for lengths and for the fit."""
    layout: Literal["given", "auto"] = "given"
    """auto: the planner chooses the fastest layout that fits. given: that of `overrides`."""
    hardware: str | None = None
    """Record of the machine, for the planned time: a name in conf/hardware, or a file. null: no time is planned."""
    price: float | None = None
    """Price of one GPU-hour, for the planned cost."""


def read_spec(given: str, name: str | None = None) -> LadderSpec:
    """Read a ladder file, by its path or by its name in conf/scaling; raises UserError that names what is wrong.

    `name`: instead of the one in the file, for a variant of the ladder.
    """
    path = find_spec(given)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if name is not None and isinstance(values, dict):
        values["name"] = name
    spec = to_record(_with_numbers(values), LadderSpec, where=f"{path}: ")
    problems = list(_problems(spec, values))
    if problems:
        raise ConfigError([Problem(f"{path}: {each.key}", each.value, each.rule, each.hint) for each in problems])
    return spec


def find_spec(given: str) -> Path:
    """The path of a ladder file; raises RunError if it does not exist."""
    path = Path(given)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{given}.yaml"
    if NAME.fullmatch(given) and shipped.is_file():
        return shipped
    known = sorted(each.stem for each in SHIPPED.glob("*.yaml"))
    hint = did_you_mean(given, known) or f"give a file, or one of conf/scaling: {', '.join(known)}"
    raise RunError(f"{given}: no such ladder file", hint)


def _with_numbers(value: Any) -> Any:
    """The values with texts such as 1e18, which YAML 1.1 does not take for numbers, as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def _problems(spec: LadderSpec, values: Mapping[str, Any]) -> "list[Problem]":
    found: list[Problem] = []
    if not NAME.fullmatch(spec.name):
        found.append(Problem("name", spec.name, "must be letters, digits and any of _.-"))
    for key, sizes, tokens in (("", spec.sizes, spec.tokens), ("targets.", spec.targets.sizes, spec.targets.tokens)):
        if key and "targets" not in values:
            continue
        found += _size_problems(key, sizes)
        found += _token_problems(key, tokens)
    if len(set(spec.seeds)) < len(spec.seeds):
        found.append(Problem("seeds", list(spec.seeds), "must be different numbers"))
    if spec.layout == "auto" and spec.hardware is None:
        found.append(
            Problem("layout", "auto", "needs the time of each layout", "name a record of the machine: hardware")
        )
    if spec.price is not None and not spec.price > 0:
        found.append(Problem("price", spec.price, "must be greater than 0"))
    return found


def _size_problems(key: str, sizes: SizesSpec) -> list[Problem]:
    if bool(sizes.models) == bool(sizes.layers):
        given = (list(sizes.models), list(sizes.layers))
        keys = f"{key}sizes.models, {key}sizes.layers"
        return [Problem(keys, given, "give one of them", "models: presets; layers: depths, with width_per_layer")]
    if sizes.layers and not (sizes.width_per_layer or sizes.widths):
        rule = "is needed with sizes.layers, or sizes.widths"
        return [Problem(f"{key}sizes.width_per_layer", sizes.width_per_layer, rule)]
    if sizes.widths and (sizes.width_per_layer or len(sizes.widths) != len(sizes.layers)):
        rule = "must be the width of each of sizes.layers, without sizes.width_per_layer"
        return [Problem(f"{key}sizes.widths", list(sizes.widths), rule)]
    found = []
    for name in ("layers", "widths"):
        if wrong := [number for number in getattr(sizes, name) if number < 1]:
            found.append(Problem(f"{key}sizes.{name}", wrong, "must be greater than 0"))
    for name in ("head_size", "ffn_ratio", "ffn_multiple_of", "width_per_layer", "init_scale"):
        value = getattr(sizes, name)
        if value is not None and not value > 0:
            found.append(Problem(f"{key}sizes.{name}", value, "must be greater than 0"))
    return found


def _token_problems(key: str, tokens: TokensSpec) -> list[Problem]:
    ways = (tokens.multiples, tokens.budgets, tokens.lengths)
    if sum(map(bool, ways)) != 1:
        keys = f"{key}tokens.multiples, {key}tokens.budgets, {key}tokens.lengths"
        hint = "multiples of 20 N, FLOP budgets, or numbers of tokens"
        return [Problem(keys, tuple(map(list, ways)), "give one of them", hint)]
    wrong = [number for way in ways for number in way if not number > 0]
    found = [Problem(f"{key}tokens", wrong, "lengths must be greater than 0")] if wrong else []
    if not 0 < tokens.ratios[0] < tokens.ratios[1]:
        rule = "must be a smallest and a largest number of tokens for each parameter"
        found.append(Problem(f"{key}tokens.ratios", list(tokens.ratios), rule))
    return found
