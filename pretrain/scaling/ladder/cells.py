"""The cells of a ladder: for each size and length, the overrides of one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data_pipeline.errors import UserError
from pretrain.config.derived import data_parallel_size
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.load import load_run_config
from pretrain.config.numbers import divisors
from pretrain.config.run import RunConfig
from pretrain.model.size import count_parameters
from pretrain.planner.plan import vocabulary
from pretrain.scaling.ladder.rates import rates_of
from pretrain.scaling.ladder.spec import LadderSpec, SizesSpec, TokensSpec

TOKENS_PER_PARAMETER = 20
"""Hoffmann et al. 2022: about so many tokens for each parameter use a compute budget best."""
LADDERS = "ladders"
WARMUP_SHARE = 20
"""Runs of one trunk share a warmup: one step in so many of the shortest."""


@dataclass(frozen=True)
class Cell:
    """One run of a ladder."""

    name: str
    size: str
    """Name of its model size."""
    parameters_without_embeddings: int
    parameters: int
    tokens: int
    """Tokens it trains on, its trunk's share included."""
    steps: int
    batch: int
    """Samples in a step."""
    lr: float
    counted: int
    """N: the parameters that the ladder counts."""
    is_target: bool = False
    """Whether it stays out of the fit."""
    budget: float | None = None
    """The FLOP budget that it belongs to."""
    trunk: str | None = None
    """The cell whose checkpoint it continues; None: it starts at step 0."""
    branch_step: int = 0
    """The step of that checkpoint."""
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    """The seed that the ladder file gives it, if the file lists several."""

    @property
    def flops(self) -> float:
        """C = 6 N D, of the whole run."""
        return 6.0 * self.counted * self.tokens

    @property
    def trained_tokens(self) -> int:
        """Tokens that this run itself trains on."""
        return self.tokens // self.steps * (self.steps - self.branch_step)

    @property
    def trained_flops(self) -> float:
        """The compute that this run itself takes."""
        return 6.0 * self.counted * self.trained_tokens

    @property
    def run_dir(self) -> str:
        return next(word for word in self.overrides if word.startswith("run.dir=")).removeprefix("run.dir=")


@dataclass(frozen=True)
class Length:
    """One length of training for a size."""

    label: str
    tokens: float
    budget: float | None = None


@dataclass(frozen=True)
class Size:
    """One model size, with its configuration before the length of a run is known."""

    name: str
    words: tuple[str, ...]
    config: RunConfig
    without_embeddings: int
    parameters: int
    counted: int


def build_cells(spec: LadderSpec, more: Sequence[str] = ()) -> list[Cell]:
    """All cells, those of one size together and trunks first; `more`: overrides added to those of every run.

    Raises UserError for sizes, lengths or rates that make no run, and for two cells that are the same run.
    """
    cells = list(_of_grid(spec, spec.sizes, spec.tokens, more, is_target=False))
    if spec.targets.sizes.models or spec.targets.sizes.layers:
        cells += _of_grid(spec, spec.targets.sizes, spec.targets.tokens, more, is_target=True)
    _refuse_duplicates(cells)
    return cells


def _of_grid(
    spec: LadderSpec, sizes: SizesSpec, tokens: TokensSpec, more: Sequence[str], *, is_target: bool
) -> Iterator[Cell]:
    found = [_size(spec, name, words, more) for name, words in _size_words(spec, sizes)]
    lengths = {size.name: _lengths(size, tokens) for size in found}
    for budget in tokens.budgets:
        if not any(length.budget == budget for of_size in lengths.values() for length in of_size):
            raise _no_cell(budget, found, tokens)
    for size in found:
        for seed in spec.seeds or (None,):
            cells = _of_size(spec, size, lengths[size.name], tokens, seed)
            yield from (replace(cell, is_target=is_target) for cell in cells)


def _size_words(spec: LadderSpec, sizes: SizesSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    for model in sizes.models:
        yield model, (f"model={model}",)
    widths = sizes.widths or tuple(layers * (sizes.width_per_layer or 0) for layers in sizes.layers)
    for layers, width in zip(sizes.layers, widths, strict=True):
        head = sizes.head_size or 0
        if head and width % head:
            rule = f"does not divide the width {width} of {layers} layers"
            raise ConfigError([Problem("sizes.head_size", head, rule, "choose a divisor of the widths")])
        ffn = -(-round(width * sizes.ffn_ratio) // sizes.ffn_multiple_of) * sizes.ffn_multiple_of
        shape = [f"model.num_layers={layers}", f"model.hidden_size={width}", f"model.ffn_hidden_size={ffn}"]
        heads = [f"model.num_heads={width // head}", "model.num_query_groups=null"] if head else []
        initial = [f"model.init_std={sizes.init_scale / math.sqrt(width):.4g}"] if sizes.init_scale else []
        yield f"d{layers}w{width}", (*shape, *heads, *initial)


def _size(spec: LadderSpec, name: str, words: tuple[str, ...], more: Sequence[str]) -> Size:
    given = (*spec.overrides, *words, *more)
    config = load_run_config([*given])
    vocab_size, _ = vocabulary(config)
    count = count_parameters(config.model, vocab_size)
    inner = count.layers + count.final_norm
    return Size(name, given, config, inner, count.total, count.total if spec.count == "all" else inner)


def _lengths(size: Size, tokens: TokensSpec) -> list[Length]:
    """The lengths of the cells of a size, the shortest first."""
    if tokens.multiples:
        return [Length(f"{m:g}x", m * TOKENS_PER_PARAMETER * size.counted) for m in sorted(tokens.multiples)]
    if tokens.lengths:
        return [Length(f"{count / 1e6:g}M", count) for count in sorted(tokens.lengths)]
    low, high = tokens.ratios
    of_budgets = [
        Length(f"{budget:.3g}".replace("+", ""), budget / (6 * size.counted), budget)
        for budget in sorted(tokens.budgets)
    ]
    return [length for length in of_budgets if low <= length.tokens / size.counted <= high]


def _no_cell(budget: float, sizes: Sequence[Size], tokens: TokensSpec) -> ConfigError:
    low, high = tokens.ratios
    rule = f"no size trains on {low:g} to {high:g} tokens for each parameter in this budget"
    met = (f"{size.name} {6 * low * size.counted**2:.2g} to {6 * high * size.counted**2:.2g}" for size in sizes)
    hint = f"change sizes or tokens.ratios; now these budgets are met: {', '.join(met)}"
    return ConfigError([Problem("tokens.budgets", budget, rule, hint)])


def _of_size(
    spec: LadderSpec, size: Size, lengths: Sequence[Length], tokens: TokensSpec, seed: int | None
) -> list[Cell]:
    """The cells of a size; with a trunk, it comes first and all have its rates."""
    if tokens.trunk:
        if size.config.lr_schedule.name != "wsd":
            rule = f"needs a constant phase, and the schedule is {size.config.lr_schedule.name}"
            raise ConfigError([Problem("tokens.trunk", True, rule, "add lr_schedule=wsd to overrides")])
        # One rate for all lengths: that of the length in the middle of them, by ratio.
        middle = math.sqrt(lengths[0].tokens * lengths[-1].tokens) if lengths else 0.0
        cells = [_cell(spec, size, length, middle, seed) for length in lengths]
        return _branched(size, cells)
    return [_cell(spec, size, length, length.tokens, seed) for length in lengths]


def _cell(spec: LadderSpec, size: Size, length: Length, rated: float, seed: int | None) -> Cell:
    """The cell of a size and a length, at the rates for `rated` tokens."""
    config, seq = size.config, size.config.model.seq_length
    rates = rates_of(spec.rates, size.counted, rated, config)
    ranks = max(config.cluster.ranks, 1)
    is_auto = spec.layout == "auto"
    unit = ranks if is_auto else data_parallel_size(config.parallel, ranks) or 1
    batch = max(1, round(rates.batch_tokens / seq / unit)) * unit
    layout = _auto_layout(spec, size, batch) if is_auto else _micro_batch(config, batch // unit)
    steps = max(1, round(length.tokens / (batch * seq)))
    name = f"{size.name}-{length.label}" + ("" if seed is None else f"-seed{seed}")
    words = [
        f"run.name={spec.name}-{name}",
        f"run.dir={LADDERS}/{spec.name}/runs/{name}",
        *([f"tracking.wandb_group={spec.name}"] if config.tracking.wandb != "off" else []),
        *size.words,
        "train.max_tokens=null",
        f"train.max_steps={steps}",
        f"train.global_batch_size={batch}",
        *layout,
        f"optim.lr={rates.lr:.6g}",
        *([] if seed is None else [f"run.seed={seed}"]),
    ]
    labels = {"ladder": spec.name, "size": size.name, "N": size.counted, "D": steps * batch * seq}
    words += [f"tracking.labels.{key}={value}" for key, value in labels.items()]
    cell = Cell(
        name=name,
        size=size.name,
        parameters_without_embeddings=size.without_embeddings,
        parameters=size.parameters,
        tokens=steps * batch * seq,
        steps=steps,
        batch=batch,
        lr=float(f"{rates.lr:.6g}"),
        counted=size.counted,
        budget=length.budget,
        seed=seed,
    )
    return replace(cell, overrides=tuple(words))


def _auto_layout(spec: LadderSpec, size: Size, batch: int) -> list[str]:
    """Overrides for the fastest layout of a step of this batch."""
    from pretrain.planner.time.hardware import load_hardware
    from pretrain.scaling.layouts import fastest_layout, layout_words

    assert spec.hardware is not None, "a rule of the ladder file"
    config = replace(size.config, train=replace(size.config.train, global_batch_size=batch))
    ranks = max(config.cluster.ranks, 1)
    return layout_words(fastest_layout(config, vocabulary(config)[0], ranks, load_hardware(spec.hardware)))


def _micro_batch(config: RunConfig, samples: int) -> list[str]:
    """The largest micro-batch that divides a rank's samples and is not larger than the configured one."""
    size = config.train.micro_batch_size
    if size == "auto" or samples % size == 0:
        return []
    return [f"train.micro_batch_size={max(each for each in divisors(samples) if each <= size)}"]


def _branched(size: Size, cells: Sequence[Cell]) -> list[Cell]:
    """The longest cell as the trunk, and the others as its branches, each from the step before its decay begins."""
    if not cells:
        return []
    *shorter, longest = cells
    schedule = size.config.lr_schedule
    steps = {cell.name: cell.steps - round(schedule.decay_fraction * cell.steps) for cell in shorter}
    words: list[str] = []
    if schedule.warmup_steps is None and schedule.warmup_tokens is None:
        words = [f"lr_schedule.warmup_steps={cells[0].steps // WARMUP_SHARE}"]
    warmup = schedule.warmup_steps if schedule.warmup_steps is not None else cells[0].steps // WARMUP_SHARE
    for cell in shorter:
        if not warmup < steps[cell.name] < cell.steps:
            rule = f"{cell.name} has {cell.steps} steps, too few for a warmup of {warmup}, a constant phase and a decay"
            raise ConfigError([Problem("tokens.trunk", True, rule, "lengthen the runs, or lower the batch")])
    kept = ",".join(str(step) for step in sorted(set(steps.values())))
    trunk = replace(
        longest, overrides=(*longest.overrides, *words, *([f"checkpoint.keep_steps=[{kept}]"] if kept else ()))
    )
    branches = [
        replace(
            cell,
            trunk=trunk.name,
            branch_step=steps[cell.name],
            overrides=(*cell.overrides, *words, f"run.branch_from={checkpoint_of(trunk, steps[cell.name])}"),
        )
        for cell in shorter
    ]
    return [trunk, *branches]


def checkpoint_of(cell: Cell, step: int) -> str:
    """The folder of a checkpoint of this cell's run."""
    return f"{cell.run_dir}/checkpoints/step-{step:08d}"


def _refuse_duplicates(cells: Sequence[Cell]) -> None:
    seen: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        for key in ((cell.name,), (cell.parameters_without_embeddings, cell.parameters, cell.tokens, cell.seed)):
            if key in seen:
                both = cell.name if seen[key].name == cell.name else f"{seen[key].name} and {cell.name}"
                raise UserError(
                    f"duplicate cells: {both} would be the same run, of {cell.counted:,} parameters and "
                    f"{cell.tokens:,} tokens",
                    "name each size and each length once; targets must not be in the grid",
                )
            seen[key] = cell
