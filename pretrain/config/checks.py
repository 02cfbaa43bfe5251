"""Checks of a whole configuration, before any process group or model exists. All faults are reported at once."""

from collections.abc import Iterator

from data_pipeline.config import LEAST_SHARE, DataConfig
from pretrain.config.attention_kernels import attention_problems, attention_request
from pretrain.config.changes import accept_problems
from pretrain.config.cluster_checks import cluster_problems
from pretrain.config.compile_checks import compile_problems
from pretrain.config.derived import data_parallel_size, micro_batch_size, with_micro_batch_size
from pretrain.config.engine_checks import engine_problems
from pretrain.config.errors import ConfigError, Problem
from pretrain.config.layout_checks import (
    describe_layouts,
    divisors,
    either,
    layout_problems,
    nearest,
    nearest_layouts,
)
from pretrain.config.mixture_checks import mixture_problems
from pretrain.config.model import ModelConfig
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


def _loss_scale(config: RunConfig) -> Iterator[Problem]:
    scale = config.engine.loss_scale.initial
    if scale < 1 or not math.log2(scale).is_integer():
        yield Problem("engine.loss_scale.initial", scale, "must be a power of two", "choose 65536")


def _recompute(config: RunConfig) -> Iterator[Problem]:
    recompute, chunks = config.engine.recompute, chunks_or_none(config)
    if recompute.granularity == "selective" and not recompute.modules:
        rule = "engine.recompute.granularity=selective needs at least one"
        yield Problem("engine.recompute.modules", recompute.modules, rule, "choose [core_attn], [mlp] or both")
    if recompute.granularity != "full" or recompute.num_layers < 1 or chunks is None:
        return
    sizes = sorted({chunk.num_layers for chunk in chunks if chunk.num_layers})
    # Megatron's uniform groups run past the end of a chunk that they don't divide; its block ends with the chunk.
    if recompute.method == "uniform" and any(size % recompute.num_layers for size in sizes):
        rule = f"engine.recompute.method=uniform: must divide the layers of each chunk, {_and(sizes)}"
        fitting = nearest(divisors(math.gcd(*sizes)), recompute.num_layers)
        yield Problem("engine.recompute.num_layers", recompute.num_layers, rule, f"choose {either(fitting)}")
    if recompute.method == "block" and recompute.num_layers > max(sizes):
        rule = "engine.recompute.method=block: is more than any chunk has layers"
        yield Problem("engine.recompute.num_layers", recompute.num_layers, rule, f"choose at most {max(sizes)}")


def _modes(engine: EngineConfig) -> Iterator[Problem]:
    stage = engine.zero_stage
    if engine.grad_reduction == "per_micro_batch" and stage < 2:
        rule = f"engine.zero_stage={stage} holds whole gradients and reduces them once per step"
        yield Problem("engine.grad_reduction", engine.grad_reduction, rule, "set it to auto, or engine.zero_stage to 2")
    if engine.param_gather != "auto" and stage < 3:
        rule = f"engine.zero_stage={stage} holds whole parameters: there is nothing to gather"
        yield Problem("engine.param_gather", engine.param_gather, rule, "set it to auto, or engine.zero_stage=3")


def _offload(engine: EngineConfig) -> Iterator[Problem]:
    stage, offload = engine.zero_stage, engine.offload
    for name, place, at_least in (
        ("optimizer", offload.optimizer, 3 if offload.optimizer == "nvme" else 1),
        ("params", offload.params, 3),
    ):
        if place != "none" and stage < at_least:
            above = f"engine.zero_stage={at_least}" if at_least == 3 else f"engine.zero_stage={at_least} or above"
            rule = f"needs {above}; the stage is {stage}"
            yield Problem(f"engine.offload.{name}", place, rule, f"set {above}, or engine.offload.{name}=none")
    if "nvme" in (offload.optimizer, offload.params) and offload.nvme_path is None:
        rule = "nvme in engine.offload needs a folder on a disk of each node"
        yield Problem("engine.offload.nvme_path", None, rule, "set it, or cpu for nvme")
    if offload.optimizer == "nvme" and engine.grad_reduction == "per_step":
        rule = "engine.offload.optimizer=nvme needs gradients reduced after each micro-batch"
        yield Problem("engine.grad_reduction", "per_step", rule, "set it to auto, or engine.offload.optimizer=cpu")
    if offload.params == "nvme" and engine.param_gather == "per_step":
        rule = "engine.offload.params=nvme needs parameters gathered for each micro-batch"
        yield Problem("engine.param_gather", "per_step", rule, "set it to auto, or engine.offload.params=cpu")


def _attention(config: RunConfig) -> Iterator[Problem]:
    """Where the device is found out later, what stands against a kernel is told then (engine/build.py)."""
    model, device = config.model, config.engine.device
    if device != "auto" and model.num_heads > 0:
        yield from attention_problems(
            config.engine, attention_request(model, config.engine, device, documents=config.data.document_mask)
        )


def _mixture(data: DataConfig, seq_length: int) -> Iterator[Problem]:
    if data.mixture is None:
        for name in ("mixture_max_epochs", "mixture_later"):
            if getattr(data, name):
                yield Problem(f"data.{name}", getattr(data, name), "needs data.mixture", "set that too")
        return
    names = ", ".join(data.mixture)
    for key, weights in (
        ("data.mixture", data.mixture),
        *((f"data.mixture_later[{number}].weights", phase.weights) for number, phase in enumerate(data.mixture_later)),
    ):
        whole = sum(weights.values())
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
            yield Problem(key, weights, "weights must not be negative")
        elif not whole > 0:
            yield Problem(key, weights, "at least one weight must be greater than 0")
        elif not math.isfinite(whole):
            yield Problem(key, weights, "must have a finite sum", "divide all weights by one number: only ratios count")
        for name, weight in weights.items():
            if 0 < weight < whole * LEAST_SHARE < math.inf:
                rule = f"is less than {LEAST_SHARE:.2g} of all weights, shares are kept to no finer"
                yield Problem(f"{key}.{name}", weight, rule, "raise it, or set it to 0")
        if unknown := sorted(weights.keys() - data.mixture.keys()):
            yield Problem(key, unknown[0], "is not in data.mixture", f"name {names}; with weight 0 one may begin later")
    for name, epochs in (data.mixture_max_epochs or {}).items():
        if name not in data.mixture:
            yield Problem("data.mixture_max_epochs", name, "is not in data.mixture", f"name {names}")
        if not (math.isfinite(epochs) and epochs > 0):
            yield Problem(f"data.mixture_max_epochs.{name}", epochs, "must be greater than 0")
    after = [phase.after_tokens for phase in data.mixture_later]
    begins = [0, *(-(-tokens // max(1, seq_length)) for tokens in after)]
    if any(later <= earlier for earlier, later in itertools.pairwise(begins)):
        rule = "after_tokens must grow from phase to phase, from above 0"
        yield Problem("data.mixture_later", after, f"{rule}, each into a later sample of {seq_length} tokens")


def _and(values: list[int]) -> str:
    return f"{', '.join(map(str, values[:-1]))} and {values[-1]}" if len(values) > 1 else str(values[0])
