"""Core attention over samples that ranks share, on the tape: pretrain/model/context.py as it allocates.

The keys and values of whole samples are there from their gather to the backward pass, unless core attention is
recomputed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.planner.passes.tape import Storage, Tape, Tensor

if TYPE_CHECKING:
    from pretrain.planner.passes.layer import Sizes


def shared_core(tape: Tape, sizes: "Sizes", inputs: Sequence[Tensor], scores: int) -> Tensor:
    """`inputs`: this rank's queries, keys and values, which stay the caller's."""
    query, key, value = inputs
    ranks, meter = sizes.context, tape.meter
    own = key.size + value.size
    whole = own * ranks
    meter.add(own, whole)  # keys and values beside each other, and the parts as they arrive
    gathered = tape.new(whole)
    meter.add(-whole, -own)
    asked, seen = tape.hold(query), tape.hold(gathered)
    if sizes.documents and sizes.samples > 1:
        tape.free(asked, seen)
        asked, seen = tape.new(query.size), tape.new(whole)
    parts = tape.new(query.size)
    meter.add(scores)
    joined = tape.new(query.size)
    tape.free(gathered)
    if not tape.records:
        tape.free(asked, seen, parts)
        meter.add(-scores)
        return joined
    # The first part of a rank sees r + 1 of 2 c parts of the keys, its second one 2 c - r.
    spans = whole * (2 * ranks + 1) // (2 * ranks)

    def backward(given: list[Storage]) -> None:
        of_parts = tape.new(query.size).storage
        meter.add(spans)
        tape.drop(given[0])
        tape.free(asked, seen, parts)
        meter.add(-scores)
        for _ in range(2):  # values, keys
            meter.add(whole // 2, -(spans // 2))
        of_query = tape.new(query.size).storage
        tape.drop(of_parts)
        meter.add(whole, -(whole // 2) * 2)
        meter.add(whole)
        of_own = tape.new(own).storage
        meter.add(-whole, -whole)
        of_own.holders += 1
        for tensor, gradient in ((query, of_query), (key, of_own), (value, of_own)):
            tape.give(tensor, gradient)

    tape.record((joined,), backward)
    return joined
