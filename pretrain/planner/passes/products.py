"""Norms, matrices cut over tensor-parallel ranks, and SwiGLU on the tape."""

from pretrain.planner.passes.gradients import Gradients
from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Storage, Tape, Tensor


def norm(tape: Tape, sizes: Sizes, hidden: Tensor) -> Tensor:
    return tape.op([hidden], hidden.size, keeps=[hidden], kept_bytes=sizes.norm)


def linear(
    tape: Tape,
    sizes: Sizes,
    gradients: Gradients,
    hidden: Tensor,
    columns: int,
    *,
    bias: bool = False,
    weight: int | None = None,
) -> Tensor:
    """A matrix cut by columns: with sequence parallelism it gathers its input into Megatron's own buffer."""
    elements = weight or columns * sizes.model.hidden_size
    gradients.gather(tape.meter, elements, several=bias)
    result = tape.new(sizes.of(columns))
    if bias:
        tape.meter.add(result.size, -result.size)
    gradients.release(tape.meter, elements)
    if not tape.records:
        return result
    tape.hold(hidden)

    def backward(given: list[Storage]) -> None:
        meter = tape.meter
        gradients.gather(meter, elements, several=bias)
        of_hidden = tape.new(sizes.whole)
        if sizes.parts > 1:
            part = tape.new(sizes.hidden)
            gradients.product(meter, elements)
            tape.free(of_hidden)
            of_hidden = part
        else:
            gradients.product(meter, elements)
        tape.drop(given[0])
        gradients.convert(meter, elements)
        tape.free(hidden)
        gradients.arrive(meter, elements)
        gradients.release(meter, elements)
        tape.give(hidden, of_hidden.storage)

    tape.record((result,), backward)
    return result


def linear_to_hidden(tape: Tape, sizes: Sizes, gradients: Gradients, inner: Tensor, elements: int) -> Tensor:
    """A matrix cut by rows, and the sum over tensor-parallel ranks. Takes the input over."""
    gradients.gather(tape.meter, elements)
    result = tape.new(sizes.whole)
    gradients.release(tape.meter, elements)
    if tape.records:
        tape.hold(inner)

        def backward(given: list[Storage]) -> None:
            meter = tape.meter
            gathered = tape.new(sizes.whole).storage if sizes.parts > 1 else given[0]
            if sizes.parts > 1:
                tape.drop(given[0])
            gradients.gather(meter, elements)
            of_inner = tape.new(inner.size).storage
            gradients.product(meter, elements)
            tape.drop(gathered)
            gradients.convert(meter, elements)
            tape.free(inner)
            gradients.arrive(meter, elements)
            gradients.release(meter, elements)
            tape.give(inner, of_inner)

    tape.free(inner)
    if sizes.parts > 1:
        scattered = tape.new(sizes.hidden)
        tape.free(result)
        result = scattered
    if tape.records:
        tape.record((result,), backward)
    return result


def gated(tape: Tape, inner: Tensor) -> Tensor:
    """SwiGLU, which keeps its input alone."""
    half = inner.size // 2
    result = tape.new(half)
    if tape.records:
        tape.hold(inner)

        def backward(given: list[Storage]) -> None:
            made = tape.new(inner.size).storage
            tape.meter.add(half, -half)
            tape.drop(given[0])
            tape.free(inner)
            tape.give(inner, made)

        tape.record((result,), backward)
    return result
