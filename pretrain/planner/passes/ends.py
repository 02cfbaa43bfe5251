"""The embedding before the layers, and the final norm, head and cross-entropy after them, on the tape."""

from dataclasses import dataclass

from pretrain.config.head_blocks import ROWS_ELEMENTS, block_columns
from pretrain.planner.passes.gradients import Gradients
from pretrain.planner.passes.meter import Meter
from pretrain.planner.passes.products import linear, norm
from pretrain.planner.passes.sizes import Sizes
from pretrain.planner.passes.tape import Storage, Tape, Tensor


@dataclass(frozen=True)
class Tables:
    """The vocabulary's tables on one rank."""

    columns: int
    """Rows of a table, which are columns of logits, padding included."""
    real: int
    """Columns of tokens on the rank that has most of them."""
    cross_entropy: str
    compiled: bool
    shared: bool
    """Whether embedding and head are one parameter of this rank."""
    copied: bool = False
    """Whether the head is the last stage's copy of a tied table, which stays gathered until the backward pass ends."""


def embedding(tape: Tape, sizes: Sizes, tables: Tables, gradients: Gradients) -> Tensor:
    model = sizes.model
    table, whole = tables.columns * model.hidden_size, sizes.whole
    gradients.gather(tape.meter, table)
    words = tape.new(whole)
    if sizes.tp > 1:
        # Rows of other ranks are set to 0.
        tape.meter.add(sizes.tokens * 9, -sizes.tokens * 9)
    if not tables.shared:
        gradients.release(tape.meter, table)
    if model.position == "learned":
        positions, total = tape.new(whole), tape.new(whole)
        turned = tape.new(whole) if sizes.samples > 1 else tape.hold(total)
        held = [words, positions]
        tape.free(total)
    else:
        turned, held = (tape.new(whole) if sizes.samples > 1 else tape.hold(words)), [words]
    if sizes.parts > 1:
        cut = tape.new(sizes.hidden)
        tape.free(turned)
        turned = cut
    tape.free(*held)
    if model.hidden_dropout:
        dropped = tape.op([turned], turned.size, kept_bytes=turned.size // sizes.width)
        tape.free(turned)
        turned = dropped

    def backward(given: list[Storage]) -> None:
        meter, gradient = tape.meter, given[0]
        if sizes.parts > 1:
            gathered = tape.new(whole).storage
            tape.drop(gradient)
            gradient = gathered
        if model.position == "learned":
            gradients.gather(meter, model.seq_length * model.hidden_size)
            gradients.release_at_end(model.seq_length * model.hidden_size)
            _table(meter, gradients, model.seq_length * model.hidden_size)
            gradients.arrive(meter, model.seq_length * model.hidden_size)
        if not tables.shared:
            gradients.gather(meter, table)
        _table(meter, gradients, table)
        tape.drop(gradient)
        if tables.shared:
            meter.add(gradients.waiting, -gradients.waiting, -gradients.waiting)
            gradients.waiting = 0
        gradients.release_at_end(table)
        gradients.arrive(meter, table)

    tape.record((turned,), backward)
    return turned


def _table(meter: Meter, gradients: Gradients, elements: int) -> None:
    gradients.product(meter, elements)
    gradients.convert(meter, elements)


def head(tape: Tape, sizes: Sizes, tables: Tables, gradients: Gradients, hidden: Tensor) -> Tensor:
    """The loss of each token. Takes the hidden states over."""
    table = tables.columns * sizes.model.hidden_size
    kept = table if tables.copied else 0
    tape.record((hidden,), lambda given: _first_arrival(tape, gradients, hidden, given[0], kept))
    normed = norm(tape, sizes, hidden)
    tape.free(hidden)
    waiting = _Waiting(gradients) if tables.shared else gradients
    if tables.cross_entropy == "chunked":
        loss = _chunked(tape, sizes, tables, waiting, normed)
        tape.free(normed)
    else:
        logits = linear(tape, sizes, waiting, normed, tables.columns, weight=tables.columns * sizes.model.hidden_size)
        tape.free(normed)
        loss = (_plain if tables.cross_entropy == "plain" else _in_place)(tape, sizes, tables, logits)
    if not tables.shared:
        return loss
    gradients.release(tape.meter, table)
    result = Tensor(loss.storage, loss.size)

    def backward(given: list[Storage]) -> None:
        gradients.gather(tape.meter, table)
        tape.give(loss, given[0])

    tape.record((result,), backward)
    return result


def _first_arrival(tape: Tape, gradients: Gradients, hidden: Tensor, given: Storage, kept: int) -> None:
    """The gradient of the final norm's weight is the first that arrives. `kept`: elements that stay gathered."""
    gradients.allocate_bucket(tape.meter)
    gradients.gather(tape.meter, kept)
    gradients.release_at_end(kept)
    hidden.gradient = given


def _in_place(tape: Tape, sizes: Sizes, tables: Tables, logits: Tensor) -> Tensor:
    tokens = sizes.tokens
    rows = max(ROWS_ELEMENTS // tables.columns, 1)
    part = 0 if tables.compiled else min(rows, tokens) * tables.real * 4
    copied = part if sizes.width < 4 else 0
    loss = tape.new(tokens * 4)
    tape.meter.add(copied, -copied)
    tape.meter.add(tokens * 29)  # labels, their indices, which are inside, logarithms of sums

    def backward(given: list[Storage]) -> None:
        tape.meter.add(copied, part, -copied, -part)
        tape.meter.add(-tokens * 29)
        tape.drop(given[0])
        tape.give(logits, logits.storage)  # overwritten by its gradient

    tape.record((loss,), backward)
    if not tape.records:
        tape.free(logits)
    return loss


def _chunked(tape: Tape, sizes: Sizes, tables: Tables, gradients: Gradients, normed: Tensor) -> Tensor:
    """Blocks of logits, in one memory, which are computed again in the backward pass."""
    meter, tokens, hidden = tape.meter, sizes.tokens, sizes.model.hidden_size
    elements, in_fp32 = tables.columns * hidden, tokens * hidden * 4
    columns = block_columns(tokens, tables.real, sizes.width)
    block = tokens * columns * sizes.width
    rows = 0 if tables.compiled else min(max(ROWS_ELEMENTS // columns, 1), tokens) * columns * 4
    copied = rows if sizes.width < 4 else 0
    gathered = sizes.whole if sizes.parts > 1 else 0
    gradients.gather(meter, elements)
    meter.add(gathered, tokens * 8, block, copied, -copied, -block, -tokens * 8, -gathered)
    gradients.release(meter, elements)
    loss = tape.new(tokens * 4)
    if not tape.records:
        return loss
    tape.hold(normed)
    meter.add(tokens * 12)  # labels and logarithms of sums

    def backward(given: list[Storage]) -> None:
        gradients.gather(meter, elements)
        meter.add(gathered)
        gradients.product(meter, elements)
        meter.add(in_fp32, block, copied, rows, -copied, -rows)
        term = sizes.whole if sizes.width < 4 else 0
        meter.add(term, -term, -block)
        if sizes.width < 4:
            of_states = tape.new(sizes.whole)
            meter.add(-in_fp32)
        else:
            of_states = Tensor(Storage(in_fp32), in_fp32)  # no copy
        if sizes.parts > 1:
            part = tape.new(sizes.hidden)
            tape.free(of_states)
            of_states = part
        meter.add(-gathered)
        tape.drop(given[0])
        gradients.convert(meter, elements)
        tape.free(normed)
        meter.add(-tokens * 12)
        gradients.arrive(meter, elements)
        gradients.release(meter, elements)
        tape.give(normed, of_states.storage)

    tape.record((loss,), backward)
    return loss


def _plain(tape: Tape, sizes: Sizes, tables: Tables, logits: Tensor) -> Tensor:
    """torch's cross-entropy of the real columns, or Megatron's of all on a part of the vocabulary."""
    tokens, meter, alone = sizes.tokens, tape.meter, sizes.tp == 1
    columns = tables.real if alone else tables.columns
    in_fp32, small = tokens * columns * 4, tokens * 16
    if alone:
        kept = tape.new(in_fp32)  # logarithms of probabilities
        if sizes.width < 4:
            meter.add(in_fp32, -in_fp32)  # logits in fp32
    else:
        kept = tape.new(in_fp32) if sizes.width < 4 else tape.hold(logits)
    loss = tape.new(tokens * 4)
    meter.add(small)
    tape.free(logits)

    def backward(given: list[Storage]) -> None:
        tape.drop(given[0])
        gradient = kept.storage
        if alone:
            gradient = tape.new(in_fp32).storage
            meter.add(in_fp32)
            tape.free(kept)
            meter.add(-in_fp32)
        if sizes.width < 4:
            gradient = _replaced(tape, gradient, tokens * columns * sizes.width)
        if columns < tables.columns:
            gradient = _replaced(tape, gradient, logits.size)
        meter.add(-small)
        tape.give(logits, gradient)

    tape.record((loss,), backward)
    return loss


def _replaced(tape: Tape, storage: Storage, size: int) -> Storage:
    other = tape.new(size).storage
    tape.drop(storage)
    return other


class _Waiting(Gradients):
    """The head's gradient of a tied table waits in memory for the embedding's.

    The table stays gathered from the embedding to the head, and again in the backward pass.
    """

    def __init__(self, gradients: Gradients) -> None:
        super().__init__(gradients.parameter, gradients.gradient, gathers=False)
        self._all = gradients

    def arrive(self, meter: Meter, elements: int) -> None:
        self._all.waiting = elements * self.gradient
