"""Seconds of one transformer layer, and of the embedding and the head, on one rank and for one micro-batch.

T: tokens of a micro-batch; h: hidden size; f: feed-forward width; t: tensor-parallel size. Bytes of fused elementwise
operations are counted in passes over memory: norms read and write (2 h, backward 3 h), residual sums 3 h and 2 h,
the activation its input and output; rotary positions and q, k, v the heads.
"""

import dataclasses
from dataclasses import dataclass

from pretrain.config.derived import micro_batch_size, padded_vocab_size
from pretrain.config.run import RunConfig
from pretrain.planner.states import parameter_bytes
from pretrain.planner.time.attention import Shape, fused_seconds, unfused_seconds
from pretrain.planner.time.behaviour import Behaviour, Constants
from pretrain.planner.time.hardware import Direction, Hardware
from pretrain.planner.time.links import Group, Links
from pretrain.planner.time.products import Products


@dataclass(frozen=True)
class Parts:
    """Seconds of a pass, broken down by kind of work."""

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    tensor_parallel: float = 0.0
    context_parallel: float = 0.0
    expert_parallel: float = 0.0
    data_parallel: float = 0.0
    host: float = 0.0
    """Seconds in which the device waits for the host."""

    @property
    def seconds(self) -> float:
        return sum(getattr(self, name) for name in _KINDS)

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(*(getattr(self, name) + getattr(other, name) for name in _KINDS))

    def times(self, factor: float) -> "Parts":
        return Parts(*(getattr(self, name) * factor for name in _KINDS))


_KINDS = tuple(field.name for field in dataclasses.fields(Parts))


@dataclass(frozen=True)
class PassTimes:
    """One layer (or table) forward, backward, and what full recomputation repeats."""

    forward: Parts
    backward: Parts
    recompute: Parts


@dataclass(frozen=True)
class Rank:
    """One rank: its configuration, its machine, and the program that runs on it."""

    config: RunConfig
    vocab_size: int
    hardware: Hardware
    behaviour: Behaviour
    constants: Constants
    products: Products
    links: Links
    tensor: Group
    context: Group
    experts: Group
    """The ranks that divide the experts of a layer."""
    share: float
    """Part of the machine that this rank has."""

    @property
    def tokens(self) -> int:
        return micro_batch_size(self.config.train) * self.config.model.seq_length // self.config.parallel.cp

    @property
    def bytes_per_second(self) -> float:
        quantity = self.hardware.elementwise_gbps or self.hardware.copy_gbps
        return quantity.value * 1e9 * self.share

    @property
    def width(self) -> int:
        return parameter_bytes(self.config.engine)

    @property
    def has_sp(self) -> bool:
        return self.config.parallel.sp and self.tensor.ranks > 1


def layer_times(rank: Rank) -> PassTimes:
    """One transformer layer, without what ZeRO-3 gathers."""
    forward = _with_host(rank, _layer_forward(rank), collectives=2)
    backward = _with_host(rank, _layer_backward(rank), collectives=2)
    recompute = forward
    if rank.behaviour.stops_early:
        last = rank.products.seconds(rank.tokens, rank.config.model.active_width // rank.tensor.ranks, _hidden(rank))
        recompute = dataclasses.replace(forward, products=max(0.0, forward.products - last))
    return PassTimes(forward, backward, recompute)


def head_times(rank: Rank) -> PassTimes:
    """The last norm, the output layer and the loss."""
    columns = padded_vocab_size(rank.config.model, rank.vocab_size, rank.tensor.ranks) // rank.tensor.ranks
    tokens, hidden, products = rank.tokens, _hidden(rank), rank.products
    loss = rank.behaviour.loss_bytes * rank.width / 2 * tokens * columns / rank.bytes_per_second
    forward = Parts(
        products=products.seconds(tokens, hidden, columns),
        elementwise=0.4 * loss,
        tensor_parallel=_sequence_gather(rank),
    )
    # Only these two store the logits; without them the backward pass computes them again.
    stored = rank.config.engine.cross_entropy in ("plain", "in_place")
    backward = Parts(
        products=(0.0 if stored else forward.products)
        + products.seconds(tokens, columns, hidden, data_gradient=True)
        + products.seconds(hidden, tokens, columns, accumulate=rank.behaviour.accumulates),
        elementwise=0.6 * loss,
        tensor_parallel=_reduction(rank),
    )
    return PassTimes(forward, backward, Parts())


def embedding_times(rank: Rank) -> PassTimes:
    """The lookup, its gradient, and the reduction of the lookup over tensor-parallel ranks."""
    moved = rank.width * rank.tokens * _hidden(rank) / rank.bytes_per_second
    return PassTimes(
        Parts(elementwise=3 * moved, tensor_parallel=_reduction(rank)), Parts(elementwise=4 * moved), Parts()
    )


def transfer_seconds(rank: Rank, world_size: int) -> float:
    """The output of a stage, sent to the next one; sequence parallelism sends each rank's part only."""
    if rank.config.parallel.pp == 1:
        return 0.0
    parts = rank.tensor.ranks if rank.has_sp or rank.behaviour.splits_sends else 1
    seconds = rank.links.send(_activations(rank) / parts, world_size)
    if parts > 1 and not rank.has_sp:
        seconds += rank.links.gather(_activations(rank), rank.tensor)
    return seconds


def _hidden(rank: Rank) -> int:
    return rank.config.model.hidden_size


def _with_host(rank: Rank, parts: Parts, collectives: int) -> Parts:
    behaviour, machine = rank.behaviour, rank.hardware
    seconds = behaviour.host_layer * machine.host_layer_us.value * 1e-6
    # Ranks of a group wait for the last host of the group.
    seconds += collectives * behaviour.host_collective_us * (rank.tensor.ranks - 1) * 1e-6
    if behaviour.attention == "unfused" and _softmax_is_eager(rank):
        seconds += behaviour.host_eager_softmax_us * 1e-6
    if not behaviour.host_overlaps:
        return dataclasses.replace(parts, host=seconds)
    # The longer of the two; where both are equal, some operations wait for the host and others for the device.
    device, power = parts.seconds, rank.constants.host_overlap_power
    return dataclasses.replace(parts, host=(device**power + seconds**power) ** (1 / power) - device)


def _softmax_is_eager(rank: Rank) -> bool:
    """Whether Megatron's fused softmax does not take this shape: it needs a multiple of four score matrices."""
    model = rank.config.model
    return micro_batch_size(rank.config.train) * model.num_heads // rank.tensor.ranks % 4 != 0


def _matrices(rank: Rank) -> list[tuple[int, int]]:
    """Depth and columns of the four products of a layer on one rank."""
    model, tp = rank.config.model, rank.tensor.ranks
    heads = model.num_heads * model.head_size // tp
    keys_values = 2 * max(model.kv_heads // tp, 1) * model.head_size
    up = model.active_width // tp * (2 if model.activation == "swiglu" else 1)
    hidden = model.hidden_size
    return [(hidden, heads + keys_values), (heads, hidden), (hidden, up), (model.active_width // tp, hidden)]


def _layer_forward(rank: Rank) -> Parts:
    products = sum(rank.products.seconds(rank.tokens, depth, columns) for depth, columns in _matrices(rank))
    return Parts(
        products=products,
        attention=_attention(rank, "forward"),
        elementwise=_elementwise(rank, "forward"),
        tensor_parallel=2 * _reduction(rank) if not rank.has_sp else 4 * _sequence_gather(rank),
        context_parallel=_context_gather(rank),
        expert_parallel=_expert_traffic(rank),
    )


def _layer_backward(rank: Rank) -> Parts:
    accumulate, products = rank.behaviour.accumulates, 0.0
    for depth, columns in _matrices(rank):
        products += rank.products.seconds(rank.tokens, columns, depth, data_gradient=True)
        products += rank.products.seconds(depth, rank.tokens, columns, accumulate=accumulate)
    recompute = rank.config.engine.recompute
    attention = _attention(rank, "backward")
    elementwise, context = _elementwise(rank, "backward"), _context_gather(rank)
    if recompute.granularity == "selective" and "core_attn" in recompute.modules:
        attention += _attention(rank, "forward")
        context += _context_gather(rank)
    if recompute.granularity == "selective" and "mlp" in recompute.modules:
        products += sum(rank.products.seconds(rank.tokens, depth, columns) for depth, columns in _matrices(rank)[2:])
        elementwise += 0.6 * _elementwise(rank, "forward")
    # Sequence parallelism gathers the inputs of both first matrices again, behind the other product of its layer.
    tensor = 2 * _reduction(rank) if not rank.has_sp else 4 * _sequence_gather(rank)
    return Parts(
        products=products,
        attention=attention,
        elementwise=elementwise,
        tensor_parallel=tensor,
        context_parallel=context,
        expert_parallel=_expert_traffic(rank),
    )


def _attention(rank: Rank, direction: Direction) -> float:
    """Ranks that share samples have equal parts of the scores."""
    model, tp = rank.config.model, rank.tensor.ranks
    shape = Shape(micro_batch_size(rank.config.train), model.seq_length, max(1, model.num_heads // tp), model.head_size)
    if rank.behaviour.attention == "unfused":
        return unfused_seconds(rank.products, direction, shape, rank.bytes_per_second) / rank.context.ranks
    narrow = rank.constants.narrow_heads_gpu if rank.hardware.kind == "gpu" else 1.0
    seconds = fused_seconds(rank.hardware, rank.behaviour.attention, direction, shape, narrow, rank.share)
    return seconds * model.seen_share / rank.context.ranks


def _elementwise(rank: Rank, direction: Direction) -> float:
    model, tp = rank.config.model, rank.tensor.ranks
    hidden, inner = model.hidden_size, model.active_width / tp
    into = inner * (2 if model.activation == "swiglu" else 1)
    heads = (model.num_heads + 2 * model.kv_heads) * model.head_size / tp
    turned = heads if model.position == "rope" else 0.0
    parts = tp if rank.has_sp else 1
    if direction == "forward":
        elements = (2 * 2 * hidden + 2 * 3 * hidden) / parts + into + inner + 2 * turned
    else:
        elements = (2 * 3 * hidden + 2 * 3 * hidden) / parts + 2 * into + inner + 2 * turned
    launches = 8 * rank.hardware.launch_us.value * 1e-6
    return rank.behaviour.elementwise * (rank.width * rank.tokens * elements / rank.bytes_per_second + launches)


def _activations(rank: Rank) -> float:
    return float(rank.width * rank.tokens * _hidden(rank))


def _reduction(rank: Rank) -> float:
    return rank.links.all_reduce(_activations(rank), rank.tensor)


def _context_gather(rank: Rank) -> float:
    """The keys and values of whole samples gathered, or their gradients reduced."""
    model, train = rank.config.model, rank.config.train
    columns = 2 * max(model.kv_heads // rank.tensor.ranks, 1) * model.head_size
    num_bytes = rank.width * micro_batch_size(train) * model.seq_length * columns
    return rank.links.gather(float(num_bytes), rank.context)


def _expert_traffic(rank: Rank) -> float:
    """The tokens of all ranks that divide the experts gathered, and their outputs summed; the mean of all layers."""
    model, ranks = rank.config.model, rank.experts.ranks
    sparse = sum(model.has_experts(number) for number in range(model.num_layers)) / model.num_layers
    own = rank.tokens // (rank.tensor.ranks if rank.has_sp else 1)
    return sparse * 2 * rank.links.gather(float(rank.width * own * ranks * model.hidden_size), rank.experts)


def _sequence_gather(rank: Rank) -> float:
    return rank.links.gather(_activations(rank), rank.tensor) if rank.has_sp else 0.0
