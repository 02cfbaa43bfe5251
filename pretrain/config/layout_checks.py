"""Is this split of the model legal on so many ranks, and if not, which ones near it are?

The rules are those of megatron-core 0.16.1's layers and schedules and of arithmetic; there is no rule for the
vocabulary, which is padded to a multiple of the tensor-parallel size.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from data_pipeline.config_text import written
from pretrain.config.derived import data_parallel_size, micro_batch_size, micro_batches
from pretrain.config.errors import Problem
from pretrain.config.expert_checks import expert_layout_problems, fitting_experts
from pretrain.config.model import ModelConfig
from pretrain.config.numbers import divisors, either, nearest
from pretrain.config.parallel import Chunk, LayoutError, ParallelConfig, even_layout, stage_chunks
from pretrain.config.run import RunConfig, TrainConfig


def layout_problems(config: RunConfig, world_size: int) -> Iterator[Problem]:
    """Every broken rule of `config.parallel`, on `world_size` ranks."""
    model, parallel = config.model, config.parallel
    if min(parallel.tp, parallel.pp, parallel.vp, parallel.cp, parallel.ep, parallel.etp) < 1 or not _shape_is_sound(
        model
    ):
        return  # bounds.py reports these
    yield from _world(parallel, world_size)
    yield from _tensor(model, parallel)
    yield from _context(model, parallel)
    yield from expert_layout_problems(model, parallel, world_size)
    yield from _pipeline(model, parallel)
    yield from _interleaving(config.train, parallel, world_size)


def chunks_or_none(config: RunConfig) -> list[Chunk] | None:
    """The chunks of the pipeline; None where they cannot be cut so."""
    parallel = config.parallel
    if min(parallel.pp, parallel.vp) < 1 or config.model.num_layers < 1:
        return None
    try:
        return stage_chunks(parallel, config.model.num_layers)
    except LayoutError:
        return None


def nearest_layouts(config: RunConfig, world_size: int, count: int = 5) -> list[ParallelConfig]:
    """Up to `count` legal layouts of this model and batch on `world_size` ranks, nearest to what was asked first.

    Near is: few doublings or halvings of tp, pp, vp and cp, tp counted twice, then fewer ranks to a copy of the model.
    """
    model, asked = config.model, config.parallel
    if world_size < 1 or not _shape_is_sound(model):
        return []
    legal = []
    for tp in divisors(world_size):
        for pp in divisors(world_size // tp):
            for vp in divisors(model.num_layers) if pp > 1 else [1]:
                for cp in divisors(world_size // tp // pp) if asked.cp > 1 else [1]:
                    candidate = dataclasses.replace(asked, tp=tp, pp=pp, vp=vp, cp=cp)
                    candidate = fitting_experts(candidate, model, world_size)
                    if candidate.pp * candidate.vp != asked.pp * asked.vp:
                        candidate = dataclasses.replace(candidate, pp_layout=None)
                    if _is_legal(dataclasses.replace(config, parallel=candidate), world_size):
                        legal.append(candidate)
    return sorted(legal, key=lambda layout: _distance(layout, asked))[:count]


def describe_layouts(layouts: Sequence[ParallelConfig], asked: ParallelConfig, world_size: int) -> str:
    """The layouts as overrides for the command line, one a line."""
    if not layouts:
        return f"no layout of this model and batch is legal on {_ranks(world_size)}"
    lines = [f"nearest legal layouts on {_ranks(world_size)}:"]
    for layout in layouts:
        names = ("tp", "pp", "vp", "cp") if asked.cp > 1 else ("tp", "pp", "vp")
        words = [f"parallel.{name}={getattr(layout, name)}" for name in names]
        others = (name for name in ("sp", "ep", "etp") if getattr(layout, name) != getattr(asked, name))
        words += [f"parallel.{name}={written(getattr(layout, name))}" for name in others]
        if layout.pp_layout != asked.pp_layout:
            words.append("parallel.pp_layout=null")
        lines.append(f"    {' '.join(words)}   (data-parallel size {data_parallel_size(layout, world_size)})")
    return "\n".join(lines)


def _is_legal(config: RunConfig, world_size: int) -> bool:
    dp = data_parallel_size(config.parallel, world_size)
    fits = dp is not None and micro_batches(config.train, dp) is not None
    return fits and next(layout_problems(config, world_size), None) is None


def _distance(layout: ParallelConfig, asked: ParallelConfig) -> tuple[float, int, int, int]:
    def apart(name: str) -> float:
        return abs(math.log2(getattr(layout, name) / max(getattr(asked, name), 1)))

    return (
        round(2 * apart("tp") + apart("pp") + apart("vp") + apart("cp"), 6),
        layout.tp * layout.pp,
        layout.tp,
        layout.vp,
    )


def _world(parallel: ParallelConfig, world_size: int) -> Iterator[Problem]:
    names = [name for name in ("tp", "cp", "pp") if name != "cp" or parallel.cp > 1]
    degrees = tuple(getattr(parallel, name) for name in names)
    product, text = math.prod(degrees), " * ".join(names)
    if world_size % product:
        rule = f"{text} = {product} must divide the number of ranks, which is {world_size}"
        above = -(-world_size // product) * product
        remedy = f"make {text} {either(nearest(divisors(world_size), product))}, or start {above} ranks"
        yield Problem(", ".join(f"parallel.{name}" for name in names), degrees, rule, remedy)


def _tensor(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    tp = parallel.tp
    for name, size in (("num_heads", model.num_heads), ("ffn_hidden_size", model.ffn_hidden_size)):
        if size % tp:
            yield Problem("parallel.tp", tp, f"must divide model.{name}={size}", f"choose {_near(divisors(size), tp)}")
    groups = model.kv_heads
    if groups % tp and tp % groups and model.num_heads % tp == 0:
        fitting = [n for n in divisors(model.num_heads) if groups % n == 0 or n % groups == 0]
        rule = f"it and model.num_query_groups={groups} must divide one another"
        yield Problem("parallel.tp", tp, rule, f"choose {_near(fitting, tp)}")
    # With fewer groups than ranks Megatron still cuts the rows of the query, key and value matrix evenly.
    rows = (model.num_heads + 2 * groups) * model.head_size
    if rows % tp and tp % groups == 0 and model.num_heads % tp == 0:
        rule = f"must divide the {rows} rows of queries, keys and values, (num_heads + 2 num_query_groups) * head_dim"
        fitting = [n for n in divisors(math.gcd(rows, model.num_heads)) if groups % n == 0 or n % groups == 0]
        yield Problem("parallel.tp", tp, rule, f"choose {_near(fitting, tp)}")
    if parallel.sp and model.seq_length % tp:
        rule = f"with parallel.sp=true it must divide model.seq_length={model.seq_length}"
        yield Problem(
            "parallel.tp", tp, rule, f"choose {_near(divisors(model.seq_length), tp)}, or set parallel.sp=false"
        )


def _context(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    """Each rank has the parts i and 2 cp - 1 - i of 2 cp equal ones, which sequence parallelism divides further."""
    cp, parts = parallel.cp, parallel.tp if parallel.sp else 1
    if cp > 1 and model.seq_length % (2 * cp * parts):
        product = "2 * cp * tp" if parts > 1 else "2 * cp"
        rule = f"{product} = {2 * cp * parts} must divide model.seq_length={model.seq_length}"
        fitting = [n for n in divisors(model.seq_length) if model.seq_length % (2 * n * parts) == 0]
        yield Problem("parallel.cp", cp, rule, f"choose {_near({1, *fitting}, cp)}")


def _pipeline(model: ModelConfig, parallel: ParallelConfig) -> Iterator[Problem]:
    pp, vp, layers = parallel.pp, parallel.vp, model.num_layers
    if vp > 1 and pp == 1:
        yield Problem("parallel.vp", vp, "needs a pipeline to interleave", "set parallel.vp=1, or parallel.pp above 1")
        return
    try:
        stage_chunks(parallel, layers)
    except LayoutError as error:
        example = even_layout(layers, pp * vp)
        # Quoted once for the shell and once for Hydra, so that it can be typed unchanged.
        instead = f"\"parallel.pp_layout='{example}'\"" if example else ""
        if parallel.pp_layout is not None:
            remedy = f"set {instead}, or null for equal chunks" if instead else "set it to null"
            yield Problem("parallel.pp_layout", parallel.pp_layout, str(error), remedy)
            return
        equal = f"choose pp * vp {_near(divisors(layers), pp * vp)}"
        remedy = f"{equal}, or set {instead}" if instead else equal
        yield Problem("parallel.pp, parallel.vp", (pp, vp), str(error), remedy)


def _interleaving(train: TrainConfig, parallel: ParallelConfig, world_size: int) -> Iterator[Problem]:
    """Megatron's interleaved schedule runs micro-batches in groups of pp and refuses a smaller last group."""
    dp = data_parallel_size(parallel, world_size)
    number = None if dp is None else micro_batches(train, dp)
    if dp is None or number is None or parallel.vp == 1 or parallel.pp == 1 or number % parallel.pp == 0:
        return
    group = micro_batch_size(train) * dp * parallel.pp
    batch = train.global_batch_size
    below, above = batch // group * group, -(-batch // group) * group
    rule = (
        f"with parallel.vp={parallel.vp} the {number} micro-batches of a step must be a multiple of "
        f"parallel.pp={parallel.pp}"
    )
    choices = either([n for n in (below, above) if n])
    yield Problem("train.global_batch_size", batch, rule, f"choose {choices}, or set parallel.vp=1")


def _near(values: Iterable[int], asked: int) -> str:
    return either(nearest(values, asked, 4))


def _ranks(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size} ranks"


def _shape_is_sound(model: ModelConfig) -> bool:
    sizes = (model.num_heads, model.kv_heads, model.num_layers, model.ffn_hidden_size, model.seq_length)
    return min(sizes) >= 1
