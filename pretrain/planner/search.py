"""The legal layouts of a run on a number of ranks that fit in memory, ordered by the predicted time of a step.

What is varied: tensor, sequence, context and pipeline parallelism, interleaving, the micro-batch, the ZeRO stage with
its modes, and recomputation. All else stays as it is configured: the global batch, so that the loss stays the same,
precision, offload, cross-entropy and compilation. torch is not needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pretrain.config.checks import check_run
from pretrain.config.compile_checks import compile_problems
from pretrain.config.derived import data_parallel_size, with_micro_batch_size
from pretrain.config.engine import RecomputeConfig
from pretrain.config.engine_checks import engine_problems
from pretrain.config.errors import ConfigError
from pretrain.config.layout_checks import layout_problems
from pretrain.config.numbers import divisors
from pretrain.config.parallel import ParallelConfig, even_layout
from pretrain.config.run import RunConfig
from pretrain.planner.choice import fitting_modes, micro_batch_sizes, rounded_seconds, sized
from pretrain.planner.memory import Modes, choose_modes, plan_memory
from pretrain.planner.shapes import StageShapes, all_stages
from pretrain.planner.time.hardware import Hardware
from pretrain.planner.time.result import StepTime
from pretrain.planner.time.step import predict_step

ZeroStage = Literal[0, 1, 2, 3]


SHORTEST = 4096
"""Tokens of a sample that each context-parallel rank has at least in a proposed layout, unless it is configured so."""


@dataclass(frozen=True)
class Candidate:
    """A legal layout that fits."""

    config: RunConfig
    """With numbers and modes in place of `auto`."""
    modes: Modes
    dp: int
    peak: int
    """Bytes on a rank of the fullest stage."""
    step: StepTime


@dataclass(frozen=True)
class Search:
    """The result of a search."""

    candidates: list[Candidate]
    illegal: int
    too_large: int
    """Legal settings that do not fit."""
    slower: int
    """Legal settings that are left out because they differ from one that fits only by recomputing more."""
    configured: Candidate | None
    """The layout as it is configured; None if it is illegal."""
    configured_fits: bool
    why_illegal: str
    """The first rule that the configured layout breaks, or empty."""

    @property
    def place(self) -> int | None:
        """Number of candidates that are faster than the configured layout, plus one; None if that does not fit."""
        if self.configured is None or not self.configured_fits:
            return None
        seconds = rounded_seconds(self.configured.step)
        return 1 + sum(rounded_seconds(each.step) < seconds for each in self.candidates)


def search_layouts(
    config: RunConfig, vocab_size: int, world_size: int, hardware: Hardware, budget_bytes: int | None
) -> list[Candidate]:
    """The candidates of `search`, best first."""
    return search(config, vocab_size, world_size, hardware, budget_bytes).candidates


def search(config: RunConfig, vocab_size: int, world_size: int, hardware: Hardware, budget_bytes: int | None) -> Search:
    """All legal settings that fit in 0.9 of the budget (None: all), the fastest first.

    Of equally fast ones the one that needs less memory comes first. Raises ConfigError if the configuration breaks a
    rule that no layout can keep.
    """
    found = _Found([])
    for parallel in _layouts(config, world_size):
        stages: list[StageShapes] = []
        for zero in get_args(ZeroStage):
            engine = replace(config.engine, zero_stage=zero, grad_reduction="auto", param_gather="auto")
            tried = replace(config, parallel=parallel, engine=engine)
            _try_sizes(tried, vocab_size, world_size, hardware, budget_bytes, stages, found)
    candidates = found.candidates
    candidates.sort(key=_order)
    if candidates:
        check_run(candidates[0].config, world_size)
    else:
        check_run(config, world_size)
    configured, fits, why = _configured(config, vocab_size, world_size, hardware, budget_bytes)
    return Search(candidates, found.illegal, found.too_large, found.slower, configured, fits, why)


def layout_of(config: RunConfig) -> tuple[object, ...]:
    """The split of the model over ranks. Settings that differ in other things have equal ones."""
    parallel = config.parallel
    return parallel.tp, parallel.sp and parallel.tp > 1, parallel.pp, parallel.vp, parallel.pp_layout, parallel.cp


def overrides_of(candidate: Candidate, asked: RunConfig) -> list[str]:
    """The words for the command line that change the asked configuration to the candidate."""
    words = []
    for section, names in (
        ("parallel", ("tp", "sp", "pp", "vp", "pp_layout", "cp")),
        ("train", ("micro_batch_size",)),
        ("engine", ("zero_stage", "grad_reduction", "param_gather")),
        ("engine.recompute", ("granularity", "modules", "method", "num_layers")),
    ):
        old, new = _section(asked, section), _section(candidate.config, section)
        for name in names:
            if (value := getattr(new, name)) != getattr(old, name):
                words.append(f"{section}.{name}={_word(value)}")
    return words


def slower_by(candidate: Candidate, best: Candidate, count: int = 2) -> dict[str, float]:
    """The parts of a step that take longer than in the best layout, with the seconds, largest first."""
    more = {name: seconds - best.step.parts.get(name, 0.0) for name, seconds in candidate.step.parts.items()}
    names = sorted((name for name in more if more[name] > 0.001 * best.step.seconds), key=lambda name: -more[name])
    return {name: more[name] for name in names[:count]}


@dataclass
class _Found:
    candidates: list[Candidate]
    illegal: int = 0
    too_large: int = 0
    slower: int = 0


def _try_sizes(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    hardware: Hardware,
    budget_bytes: int | None,
    stages: list[StageShapes],
    found: _Found,
) -> None:
    """Add a candidate for each micro-batch: the one that recomputes least of those that fit.

    What does not fit with one micro-batch does not fit with a larger one either: activations grow with it. Except a
    single one in a step: it adds to no gradients of an earlier one.
    `stages` is filled once for all settings of a layout.
    """
    options = _recomputations(config.engine.recompute)
    dp = data_parallel_size(config.parallel, world_size) or 1
    for size in micro_batch_sizes(config, world_size) or [1]:
        fits = False
        for recompute in _recomputations(config.engine.recompute):
            tried = with_micro_batch_size(config, size)
            tried = replace(tried, engine=replace(tried.engine, recompute=recompute))
            if not _is_legal(tried, world_size):
                found.illegal += 1
                continue
            if fits:
                found.slower += 1
                continue
            stages[:] = stages or all_stages(config.model, config.parallel, vocab_size)
            is_tried = recompute in options or size * dp == config.train.global_batch_size
            modes = fitting_modes(tried, vocab_size, world_size, budget_bytes, stages) if is_tried else []
            if modes:
                found.candidates.append(_fastest(tried, vocab_size, world_size, hardware, modes, stages))
                fits = True
                continue
            found.too_large += 1
            options = [each for each in options if each != recompute]


def _layouts(config: RunConfig, world_size: int) -> Iterator[ParallelConfig]:
    """Every way to split the ranks; the configured pp_layout where it has the number of chunks."""
    for parallel in _without_context(config, world_size):
        # Parts of a sample below SHORTEST tokens are too small for a device to be worth the traffic.
        most = max(config.parallel.cp, config.model.seq_length // SHORTEST)
        for cp in divisors(world_size // parallel.tp // parallel.pp):
            if cp <= most:
                yield replace(parallel, cp=cp)


def _without_context(config: RunConfig, world_size: int) -> Iterator[ParallelConfig]:
    asked, layers = config.parallel, config.model.num_layers
    for tp in divisors(world_size):
        for sp in sorted({asked.sp, True}) if tp > 1 else [asked.sp]:
            for pp in divisors(world_size // tp):
                for vp in range(1, layers // pp + 1) if pp > 1 else [1]:
                    chunks = pp * vp
                    if chunks == asked.pp * asked.vp and asked.pp_layout is not None:
                        yield replace(asked, tp=tp, sp=sp, pp=pp, vp=vp)
                    elif layers % chunks == 0:
                        yield replace(asked, tp=tp, sp=sp, pp=pp, vp=vp, pp_layout=None)
                    elif vp == 1:
                        yield replace(asked, tp=tp, sp=sp, pp=pp, vp=vp, pp_layout=even_layout(layers, chunks))


def _recomputations(asked: RecomputeConfig) -> list[RecomputeConfig]:
    """None, the MLP, and whole layers: each computes more again and keeps less."""
    return [
        replace(asked, granularity="none"),
        replace(asked, granularity="selective", modules=("mlp",)),
        replace(asked, granularity="full", method="uniform", num_layers=1),
    ]


def _is_legal(config: RunConfig, world_size: int) -> bool:
    """Whether no rule about what is varied is broken; `micro_batch_sizes` has seen to the global batch."""
    dp = data_parallel_size(config.parallel, world_size)
    if dp is None or config.train.global_batch_size % dp:
        return False
    for rules in (layout_problems(config, world_size), engine_problems(config), compile_problems(config)):
        if next(iter(rules), None) is not None:
            return False
    return True


def _fastest(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    hardware: Hardware,
    fitting: list[tuple[Modes, int]],
    stages: Sequence[StageShapes],
) -> Candidate:
    made = [_candidate(config, vocab_size, world_size, hardware, modes, peak, stages) for modes, peak in fitting]
    return min(made, key=lambda each: (rounded_seconds(each.step), each.peak))


def _candidate(
    config: RunConfig,
    vocab_size: int,
    world_size: int,
    hardware: Hardware,
    modes: Modes,
    peak: int,
    stages: Sequence[StageShapes],
) -> Candidate:
    engine = config.engine
    if engine.zero_stage >= 2:
        engine = replace(engine, grad_reduction=modes.grad_reduction)
    if engine.zero_stage == 3:
        engine = replace(engine, param_gather=modes.param_gather)
    config = replace(config, engine=engine)
    dp = data_parallel_size(config.parallel, world_size)
    assert dp is not None
    step = predict_step(config, vocab_size, world_size, modes, hardware, stages=stages)
    return Candidate(config, modes, dp, peak, step)


def _order(candidate: Candidate) -> tuple[object, ...]:
    """By time, then memory; what is left are settings that make no difference, the plainest first."""
    parallel, engine = candidate.config.parallel, candidate.config.engine
    plainest = (
        parallel.cp,
        parallel.tp,
        parallel.pp,
        parallel.vp,
        parallel.sp,
        engine.zero_stage,
        engine.recompute.granularity,
    )
    return rounded_seconds(candidate.step), candidate.peak, plainest, candidate.config.train.micro_batch_size


def _configured(
    config: RunConfig, vocab_size: int, world_size: int, hardware: Hardware, budget_bytes: int | None
) -> tuple[Candidate | None, bool, str]:
    """The configured layout, whether it fits, and the rule that makes it illegal."""
    try:
        check_run(config, world_size)
    except ConfigError as error:
        return None, False, str(error.problems[0]).splitlines()[0]
    if config.train.micro_batch_size == "auto":
        try:
            config = sized(config, vocab_size, world_size, budget_bytes or 1 << 62, hardware)
        except ConfigError:
            config = with_micro_batch_size(config, 1)
    stages = all_stages(config.model, config.parallel, vocab_size)
    if fitting := fitting_modes(config, vocab_size, world_size, budget_bytes, stages):
        return _fastest(config, vocab_size, world_size, hardware, fitting, stages), True, ""
    modes = choose_modes(config, vocab_size, world_size, budget_bytes)
    peak = max(stage.peak for stage in plan_memory(config, vocab_size, world_size, modes, stages))
    return _candidate(config, vocab_size, world_size, hardware, modes, peak, stages), False, ""


def _section(config: RunConfig, name: str) -> object:
    found: object = config
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _word(value: object) -> str:
    """A value as Hydra reads it; what the shell would read is quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"'[{','.join(map(str, value))}]'"
    text = str(value)
    return text if text.replace("_", "").isalnum() else f"\"'{text}'\""
