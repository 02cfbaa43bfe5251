"""The bytes of one micro-batch's forward and backward pass through a chunk of layers."""

import functools
from dataclasses import dataclass

from pretrain.config.engine import RecomputeConfig
from pretrain.config.parallel import Chunk
from pretrain.planner.passes.ends import Tables, embedding, head
from pretrain.planner.passes.gradients import GradientKind, Gradients
from pretrain.planner.passes.layer import layer
from pretrain.planner.passes.meter import Meter
from pretrain.planner.passes.recompute import recomputed
from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Tape, Tensor


@dataclass(frozen=True)
class Pass:
    """Bytes against those before the pass."""

    peak: int
    change: int
    """Bytes that stay after it: activations of a forward pass. A backward pass frees them, so it is below 0."""


@dataclass(frozen=True)
class Passes:
    """The passes of one chunk."""

    forward: Pass
    backward: Pass
    """The first micro-batch of a step makes the gradients."""
    later: Pass
    """The other micro-batches add to them."""


@functools.lru_cache(maxsize=1 << 14)
def chunk_passes(
    sizes: Sizes, tables: Tables, recompute: RecomputeConfig, chunk: Chunk, gradients: GradientKind
) -> Passes:
    """The passes of a chunk. Layouts share most of theirs, so results are kept."""
    forward, backward = _both(Meter(), sizes, tables, recompute, chunk, gradients.make(later=False))
    _, later = _both(Meter(), sizes, tables, recompute, chunk, gradients.make(later=True))
    return Passes(forward, backward, later)


def _both(
    meter: Meter, sizes: Sizes, tables: Tables, recompute: RecomputeConfig, chunk: Chunk, gradients: Gradients
) -> tuple[Pass, Pass]:
    tape = Tape(meter, records=True)
    given = embedding(tape, sizes, tables, gradients) if chunk.embedding else tape.new(sizes.hidden)
    hidden = _layers(tape, sizes, recompute, chunk, gradients, given)
    if chunk.head:
        hidden = head(tape, sizes, tables, gradients, hidden)
    else:
        tape.free(hidden)  # sent to the next stage
    forward = Pass(meter.peak, meter.now)
    meter.begin()
    if chunk.head:
        hidden.gradient = hidden.storage
    else:
        hidden.gradient = tape.new(sizes.hidden).storage
    tape.backward()
    if given.gradient is not None:
        tape.drop(given.gradient)  # sent to the stage before
    gradients.end_backward(meter)
    return forward, Pass(meter.peak - forward.change, meter.now - forward.change)


def _layers(
    tape: Tape, sizes: Sizes, recompute: RecomputeConfig, chunk: Chunk, gradients: Gradients, hidden: Tensor
) -> Tensor:
    number, first = chunk.num_layers, chunk.first
    groups = [1] * number
    if recompute.granularity == "full" and recompute.method == "uniform":
        whole, rest = divmod(number, recompute.num_layers)
        groups = [recompute.num_layers] * whole + [rest] * (rest > 0)
    for index, count in enumerate(groups):
        run = functools.partial(_run, sizes, gradients, range(first, first + count))
        first += count
        if recompute.granularity == "full" and (recompute.method == "uniform" or index < recompute.num_layers):
            hidden = recomputed(tape, hidden, run)
        else:
            hidden = run(tape, hidden)
    return hidden


def _run(sizes: Sizes, gradients: Gradients, numbers: range, tape: Tape, hidden: Tensor) -> Tensor:
    for number in numbers:
        hidden = layer(tape, sizes, gradients, hidden, number)
    return hidden
