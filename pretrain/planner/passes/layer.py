"""One transformer layer's forward pass on the tape: Megatron's layer with our norms, attention and SwiGLU.

Eager, as megatron-core 0.16.1 runs it on torch 2.13. All attention kernels but `math` keep the context and one fp32
number for each query and head; `math` is not planned here.
"""

from collections.abc import Sequence

from pretrain.planner.passes.context import shared_core
from pretrain.planner.passes.experts import routed
from pretrain.planner.passes.gradients import Gradients
from pretrain.planner.passes.products import gated, linear, linear_to_hidden, norm
from pretrain.planner.passes.recompute import recomputed_of
from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Storage, Tape, Tensor


def layer(tape: Tape, sizes: Sizes, gradients: Gradients, hidden: Tensor, number: int) -> Tensor:
    """Takes the input over from the caller. `number`: that of the layer in the whole model."""
    normed = norm(tape, sizes, hidden)
    context = _attention(tape, sizes, gradients, normed)
    rows = sizes.model.num_heads * sizes.model.head_size // sizes.tp * sizes.model.hidden_size
    middle = _sum(tape, sizes, linear_to_hidden(tape, sizes, gradients, context, rows), hidden)
    tape.free(normed)
    hidden_after = _feed_forward(tape, sizes, gradients, middle, number)
    tape.free(hidden)
    return hidden_after


def _attention(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor) -> Tensor:
    scores = sizes.tokens * sizes.model.num_heads // sizes.tp * 4
    heads = _heads(tape, sizes, gradients, normed)
    if sizes.documents and sizes.samples > 1 and sizes.context == 1:
        heads = [_copied(tape, part) for part in heads]
    core = _core if sizes.context == 1 and sizes.model.window is None else shared_core
    if "core_attn" in sizes.recomputed:
        context = recomputed_of(tape, heads, lambda inner, given: core(inner, sizes, given, scores))
    else:
        context = core(tape, sizes, heads, scores)
    tape.free(*heads)
    return context


def _heads(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor) -> list[Tensor]:
    """Queries, keys and values: views of one product, or copies where views would keep it in memory for nothing."""
    model = sizes.model
    groups = max(model.kv_heads // sizes.tp, 1)
    queries, keys = sizes.of(model.num_heads * model.head_size // sizes.tp), sizes.of(groups * model.head_size)
    columns = (queries + 2 * keys) // sizes.of(1)
    mixed = linear(tape, sizes, gradients, normed, columns, bias=model.bias)
    query, key, value = tape.split(mixed, [queries, keys, keys])
    tape.free(mixed)
    are_kept = model.qk_norm or model.position != "rope"
    are_views = 1 in (groups, queries // keys)
    if not are_views:
        query = _copied(tape, query)
    if not (are_kept and are_views):
        value = _copied(tape, value)
        if are_kept:
            key = _copied(tape, key)
    if model.qk_norm:
        query, key = (_head_norm(tape, sizes, part) for part in (query, key))
    if model.position == "rope":
        query, key = (_rotated(tape, part) for part in (query, key))
    return [query, key, value]


def _core(tape: Tape, sizes: Sizes, inputs: Sequence[Tensor], scores: int) -> Tensor:
    context = tape.new(inputs[0].size)
    tape.meter.add(scores)
    joined = tape.new(context.size) if sizes.documents else context
    if not tape.records:
        tape.meter.add(-scores)
        if sizes.documents:
            tape.free(context)
        return joined
    for tensor in inputs:
        tape.hold(tensor)
    if not sizes.documents:
        tape.hold(context)

    def backward(given: list[Storage]) -> None:
        made = [tape.new(tensor.size).storage for tensor in inputs]
        tape.drop(given[0])
        tape.free(*inputs, context)
        tape.meter.add(-scores)
        for tensor, gradient in zip(inputs, made, strict=True):
            if sizes.documents:  # of each document, and joined
                whole = tape.new(tensor.size).storage
                tape.drop(gradient)
                gradient = whole
            tape.give(tensor, gradient)

    tape.record((joined,), backward)
    return joined


def _copied(tape: Tape, tensor: Tensor) -> Tensor:
    """A copy whose gradient is the tensor's. Takes the tensor over."""
    return _freed(tape, tape.add(tensor), tensor)


def _head_norm(tape: Tape, sizes: Sizes, heads: Tensor) -> Tensor:
    statistics = heads.size // (sizes.width * sizes.model.head_size) * (8 if sizes.model.norm == "layernorm" else 4)
    return _freed(tape, tape.op([heads], heads.size, keeps=[heads], kept_bytes=statistics), heads)


def _rotated(tape: Tape, heads: Tensor) -> Tensor:
    """Each half of the heads is a sum of two products; the halves are joined. The gradient turns back in this way."""
    half = heads.size // 2

    def turn() -> Tensor:
        for _ in range(2):
            tape.meter.add(half, half, half, -half, -half)
        turned = tape.new(heads.size)
        tape.meter.add(-half, -half)
        return turned

    result = turn()

    def backward(given: list[Storage]) -> None:
        made = turn().storage
        tape.drop(given[0])
        tape.give(heads, made)

    tape.record((result,), backward)
    return _freed(tape, result, heads)


def _feed_forward(tape: Tape, sizes: Sizes, gradients: Gradients, middle: Tensor, number: int) -> Tensor:
    normed = norm(tape, sizes, middle)
    block = _experts if sizes.model.has_experts(number) else _dense
    if "mlp" in sizes.recomputed:
        output = recomputed_of(tape, (normed,), lambda inner, given: block(inner, sizes, gradients, given[0]))
    else:
        output = block(tape, sizes, gradients, normed)
    result = _sum(tape, sizes, output, middle)
    tape.free(normed, middle)
    return result


def _experts(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor) -> Tensor:
    output = routed(tape, sizes, gradients, normed)
    width = sizes.model.experts.shared_ffn_hidden_size
    if not width:
        return output
    shared = _mlp(tape, sizes, gradients, normed, width)
    return _freed(tape, tape.add(output, shared), output, shared)


def _dense(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor) -> Tensor:
    return _mlp(tape, sizes, gradients, normed, sizes.model.ffn_hidden_size)


def _mlp(tape: Tape, sizes: Sizes, gradients: Gradients, normed: Tensor, inner_width: int) -> Tensor:
    model = sizes.model
    width = inner_width // sizes.tp
    is_gated = model.activation == "swiglu"
    inner = linear(tape, sizes, gradients, normed, (2 if is_gated else 1) * width)
    if model.bias:
        inner = _freed(tape, tape.add(inner), inner)
    active = gated(tape, inner) if is_gated else tape.op([inner], inner.size, keeps=[inner])
    tape.free(inner)
    return linear_to_hidden(tape, sizes, gradients, active, width * model.hidden_size)


def _sum(tape: Tape, sizes: Sizes, output: Tensor, residual: Tensor) -> Tensor:
    """Bias, dropout and the sum with the block's input. Takes the output over."""
    if sizes.model.bias:
        output_and_bias = tape.add(output)
        total = _dropped(tape, sizes, output_and_bias, residual)
        tape.free(output_and_bias)
    else:
        total = _dropped(tape, sizes, output, residual)
    tape.free(output)
    return total


def _dropped(tape: Tape, sizes: Sizes, output: Tensor, residual: Tensor) -> Tensor:
    if sizes.model.hidden_dropout == 0.0:
        return tape.add(residual, output)
    dropped = tape.op([output], output.size, kept_bytes=output.size // sizes.width)  # its mask
    return _freed(tape, tape.add(residual, dropped), dropped)


def _freed(tape: Tape, result: Tensor, *used: Tensor) -> Tensor:
    tape.free(*used)
    return result
