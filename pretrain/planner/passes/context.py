"""Core attention over samples that ranks share, or with windows, on the tape: as pretrain/model/context.py allocates.

The keys and values of whole samples are there from their gather to the backward pass, unless core attention is
recomputed.
"""

from collections.abc import Sequence

from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Storage, Tape, Tensor


def shared_core(tape: Tape, sizes: Sizes, inputs: Sequence[Tensor], scores: int) -> Tensor:
    """`inputs`: this rank's queries, keys and values, which stay the caller's."""
    query, key, value = inputs
    ranks, meter = sizes.context, tape.meter
    own = key.size + value.size
    whole = own * ranks
    seen = [tape.hold(key), tape.hold(value)]
    if ranks > 1:
        meter.add(own, whole)  # keys and values beside each other, and the parts as they arrive
        gathered = tape.new(whole)
        meter.add(-whole, -own)
        tape.free(*seen)
        seen = [gathered]
    asked, used = tape.hold(query), [tape.hold(tensor) for tensor in seen]
    if sizes.documents and sizes.samples > 1:
        tape.free(asked, *used)
        asked, used = tape.new(query.size), [tape.new(whole)]
    parts = tape.new(query.size)
    meter.add(scores)
    joined = tape.new(query.size)
    tape.free(*seen)
    if not tape.records:
        tape.free(asked, *used, parts)
        meter.add(-scores)
        return joined
    # The first part of a rank sees r + 1 of 2 c parts of the keys, its second one 2 c - r. Windows see each key twice.
    spans = 2 * whole if sizes.model.window is not None else whole * (2 * ranks + 1) // (2 * ranks)

    def backward(given: list[Storage]) -> None:
        of_parts = tape.new(query.size).storage
        meter.add(spans)
        tape.drop(given[0])
        tape.free(asked, *used, parts)
        meter.add(-scores)
        of_seen = []
        for _ in range(2):  # values, keys
            of_seen.append(tape.new(whole // 2).storage)
            meter.add(-(spans // 2))
        of_query = tape.new(query.size).storage
        tape.drop(of_parts)
        if ranks > 1:
            meter.add(whole)
            for part in of_seen:
                tape.drop(part)
            meter.add(whole)
            of_own = tape.new(own).storage
            meter.add(-whole, -whole)
            of_own.holders += 1
            of_seen = [of_own, of_own]
        for tensor, gradient in zip((query, value, key), (of_query, *of_seen), strict=True):
            tape.give(tensor, gradient)

    tape.record((joined,), backward)
    return joined
