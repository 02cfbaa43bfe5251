"""A feed-forward block of experts on the tape, with its tokens spread evenly over the experts."""

from dataclasses import replace

from pretrain.planner.passes.gradients import Gradients
from pretrain.planner.passes.products import gated, linear, linear_to_hidden
from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Tape, Tensor


def routed(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor) -> Tensor:
    """The output of the experts, for the tokens between the matrices."""
    model, experts = sizes.model, sizes.model.experts
    own = sizes.tokens // sizes.parts
    choices = sizes.tokens * experts.topk
    # Logits and scores in fp32; the choices with their weights; hidden states in fp32 if they are in 16 bits.
    cast = own * model.hidden_size * 4 if sizes.width < 4 else 0
    scores = 4 * own * experts.count
    weights = tape.op([normed], own * experts.topk * 4, kept_bytes=cast + 2 * scores + 8 * choices // sizes.parts)
    tokens = tape.op([normed], sizes.whole) if sizes.parts > 1 else normed
    rows = replace(sizes, tokens=choices // sizes.ep, parts=1, tp=1)
    width = model.expert_width // sizes.etp
    held = experts.count // sizes.ep * width * model.hidden_size  # elements of one matrix
    inputs = tape.op([tokens], rows.whole, kept_bytes=8 * choices)
    if sizes.parts > 1:
        tape.free(tokens)
    matrices = 2 if model.activation == "swiglu" else 1
    inner = linear(tape, rows, gradients, inputs, matrices * width, weight=matrices * held)
    active = gated(tape, inner) if matrices > 1 else tape.op([inner], inner.size, keeps=[inner])
    tape.free(inputs, inner)
    output = linear_to_hidden(tape, rows, gradients, active, held)
    weighted = tape.op([output, weights], output.size, keeps=[output])
    tape.free(output, weights)
    placed = tape.op([weighted], choices * model.hidden_size * sizes.width)
    tape.free(weighted)
    total = tape.op([placed], sizes.whole)
    tape.free(placed)
    if sizes.parts > 1:
        scattered = tape.op([total], sizes.hidden)
        tape.free(total)
        total = scattered
    return total
