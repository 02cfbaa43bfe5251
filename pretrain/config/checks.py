"""Checks of a whole configuration, before any process group or model exists. All faults are reported at once."""

from collections.abc import Iterator

from pretrain.config.bounds import BOUNDS, DATA_BOUNDS, LARGEST, LIMITS, out_of_range
from pretrain.config.changes import accept_problems
from pretrain.config.cluster_checks import cluster_problems
from pretrain.config.compile_checks import compile_problems
from pretrain.config.derived import data_parallel_size, micro_batch_size, with_micro_batch_size
from pretrain.config.engine_checks import engine_problems
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.expert_checks import expert_problems
from pretrain.config.layout_checks import (
    describe_layouts,
    layout_problems,
    nearest_layouts,
)
from pretrain.config.mixture_checks import mixture_problems
from pretrain.config.model import ModelConfig
from pretrain.config.numbers import divisors, either, nearest
from pretrain.config.run import RunConfig

MEMBER_BYTES = 1 << 30
"""Largest tar member. A process that writes or verifies a member holds all of it in memory."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError with every broken rule of a training run on `world_size` ranks.

    If the layout is illegal, the error lists the nearest legal ones. With train.micro_batch_size=auto, a micro-batch of
    one sample must be legal.
    """
    if config.train.micro_batch_size == "auto":
        config = with_micro_batch_size(config, 1)
    _refuse_excess(config, world_size)
    layout = list(layout_problems(config, world_size))
    problems: list[Problem | str] = [
        *out_of_range(config, BOUNDS),
        *check_model(config.model),
        *layout,
        *_batch(config, data_parallel_size(config.parallel, world_size)),
        *_length(config),
        *_names(config),
        *_profile(config),
        *engine_problems(config),
        *compile_problems(config),
        *mixture_problems(config.data, config.model.seq_length),
        *cluster_problems(config.cluster),
        *accept_problems(config),
    ]
    if layout:
        near = nearest_layouts(config, world_size)
        problems.append(describe_layouts(near, config.parallel, world_size))
    if problems:
        raise ConfigError(problems)


def _refuse_excess(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError where counting out what could be done instead, or what each layer holds, would not end."""
    problems = list(out_of_range(config, LIMITS))
    if world_size > LARGEST:
        problems.append(Problem("number of ranks", world_size, f"must be at most {LARGEST}"))
    if problems:
        raise ConfigError(problems)


def check_prepare(config: RunConfig) -> None:
    """Raise ConfigError with every setting of the data that is out of range."""
    problems = [*out_of_range(config, DATA_BOUNDS), *_members(config)]
    if problems:
        raise ConfigError(problems)


def check_model(model: ModelConfig) -> Iterator[Problem]:
    """Rules within the model's shape."""
    hidden, heads = model.hidden_size, model.num_heads
    if min(hidden, heads, model.kv_heads, model.num_layers, model.ffn_hidden_size, model.seq_length) < 1:
        return  # BOUNDS reports these
    if model.head_dim is None and hidden % heads:
        near = nearest(divisors(hidden), heads)
        rule = f"does not divide model.hidden_size={hidden}"
        yield Problem("model.num_heads", heads, rule, f"choose {either(near)}, or give model.head_dim")
    if heads % model.kv_heads:
        rule = f"does not divide model.num_heads={heads}"
        yield Problem("model.num_query_groups", model.kv_heads, rule, f"choose {either(divisors(heads))}")
    if model.position == "rope" and model.head_size % 2:
        yield Problem(
            "model.head_dim", model.head_size, "must be even, because rotary embeddings rotate pairs of dimensions"
        )
    yield from _rope_scaling(model)
    yield from expert_problems(model)


def _rope_scaling(model: ModelConfig) -> Iterator[Problem]:
    scaling, section = model.rope_scaling, "model.rope_scaling"
    if scaling.kind == "none":
        return
    if model.position != "rope":
        yield Problem(f"{section}.kind", scaling.kind, "needs model.position=rope", f"set {section}.kind=none")
    if scaling.original_length is None:
        rule = f"{section}.kind={scaling.kind} needs the context length before the scaling"
        yield Problem(
            f"{section}.original_length", None, rule, "give the seq_length that the weights were trained with"
        )
    pairs = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
    low, high = pairs[scaling.kind]
    below, above = getattr(scaling, low), getattr(scaling, high)
    if below >= above:
        yield Problem(f"{section}.{low}", below, f"must be less than {section}.{high}={above:g}")


def _members(config: RunConfig) -> Iterator[Problem]:
    """The size of tar members."""
    length, count = config.model.seq_length, config.data.samples_per_member
    if 1 <= length <= LARGEST and count > (most := MEMBER_BYTES // (4 * (length + 1))):
        rule = f"makes tar members of more than {MEMBER_BYTES >> 20} MiB with model.seq_length={length}"
        yield Problem("data.samples_per_member", count, rule, f"choose at most {most}")


def _batch(config: RunConfig, dp: int | None) -> Iterator[Problem]:
    if dp is None:
        return  # the rules of the layout report this
    batch, micro = config.train.global_batch_size, micro_batch_size(config.train)
    at_once = micro * dp
    if at_once > 0 and batch % at_once:
        below, above = batch // at_once * at_once, -(-batch // at_once) * at_once
        rule = (
            f"must be a multiple of train.micro_batch_size={micro} times the data-parallel size {dp}, "
            f"which is {at_once}"
        )
        yield Problem("train.global_batch_size", batch, rule, f"choose {either([n for n in (below, above) if n])}")


def _length(config: RunConfig) -> Iterator[Problem]:
    train, schedule = config.train, config.lr_schedule
    if (train.max_steps is None) == (train.max_tokens is None):
        lengths = (train.max_steps, train.max_tokens)
        yield Problem("train.max_steps, train.max_tokens", lengths, "give one of them", "set the other to null")
    elif schedule.warmup_steps is not None and schedule.warmup_tokens is not None:
        warmups = (schedule.warmup_steps, schedule.warmup_tokens)
        keys = "lr_schedule.warmup_steps, lr_schedule.warmup_tokens"
        yield Problem(keys, warmups, "give one of them", "set the other to null")
    # Steps and tokens are compared where it is known how many tokens the run has had: see check_length.
    elif train.max_steps is not None and 0 < train.max_steps < (schedule.warmup_steps or 0):
        yield warmup_problem("warmup_steps", schedule.warmup_steps, f"{train.max_steps} steps")
    elif train.max_tokens is not None and 0 < train.max_tokens < (schedule.warmup_tokens or 0):
        yield warmup_problem("warmup_tokens", schedule.warmup_tokens, f"{train.max_tokens} tokens")


def warmup_problem(name: str, value: object, length: str) -> Problem:
    """A warmup that does not end within the run."""
    rule = f"is longer than the whole run of {length}"
    return Problem(f"lr_schedule.{name}", value, rule, "shorten the warmup or lengthen the run")


def _names(config: RunConfig) -> Iterator[Problem]:
    for key, value in (("run.name", config.run.name), ("run.dir", config.run.dir)):
        if not value.strip():
            yield Problem(key, value, "names no folder of the run's own", "give it a name")


def _profile(config: RunConfig) -> Iterator[Problem]:
    steps, train = config.profile.steps, config.train
    if steps is None:
        return
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
        rule = "must be a first and a last step, counted from 1"
        yield Problem("profile.steps", list(steps), rule, "write it as in [10,12]")
    elif train.max_steps is not None and steps[1] > train.max_steps > 0:
        yield profile_problem(steps, train.max_steps)


def profile_problem(steps: tuple[int, ...], last: int) -> Problem:
    """Profiled steps that the run does not reach."""
    remedy = f"end at {last} or before, or lengthen the run"
    return Problem("profile.steps", list(steps), f"the run ends with step {last}", remedy)
