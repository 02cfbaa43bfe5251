"""Recomputation on the tape: Megatron's checkpoint keeps its inputs alone, and runs the pass again when needed."""

from collections.abc import Callable, Sequence

from pretrain.planner.passes.tape import Storage, Tape, Tensor


def recomputed(tape: Tape, hidden: Tensor, run: Callable[[Tape, Tensor], Tensor]) -> Tensor:
    """`run` on hidden states; it takes its input over, as does this."""
    inputs = (hidden,)
    result = recomputed_of(tape, inputs, lambda inner, given: run(inner, inner.hold(given[0])))
    tape.free(hidden)
    return result


def recomputed_of(tape: Tape, inputs: Sequence[Tensor], run: Callable[[Tape, Sequence[Tensor]], Tensor]) -> Tensor:
    """`run` on several inputs, which stay the caller's."""
    result = run(Tape(tape.meter, records=False), inputs)
    if not tape.records:
        return result
    for tensor in inputs:
        tape.hold(tensor)

    def backward(given: list[Storage]) -> None:
        inner = Tape(tape.meter, records=True)
        detached = [Tensor(tensor.storage, tensor.size) for tensor in inputs]
        again = run(inner, detached)
        again.gradient = given[0]
        inner.backward()
        tape.free(again)
        tape.free(*inputs)
        for tensor, alone in zip(inputs, detached, strict=True):
            if alone.gradient is not None:
                tape.give(tensor, alone.gradient)

    tape.record((result,), backward)
    return result
