"""An estimate of what forward passes keep for backward passes, after Korthikanti et al. 2022, section 4.

Of their count, s b h (10 + 24/t) bytes for a layer in 16 bits, this one differs where our layers do: widths of grouped
queries and SwiGLU, bytes of the precision, dropout masks only where there is dropout. Their s^2 term is absent:
attention is torch's scaled_dot_product_attention, which keeps no scores. What libraries keep for themselves is not
counted: an estimate, not a law.
"""

from collections.abc import Sequence

from pretrain.config.derived import micro_batch_size, padded_vocab_size
from pretrain.config.engine import EngineConfig, RecomputeConfig
from pretrain.config.head_blocks import ROWS_ELEMENTS, block_columns
from pretrain.config.model import ModelConfig
from pretrain.config.parallel import Chunk, ParallelConfig
from pretrain.config.run import RunConfig
from pretrain.planner.shapes import StageShapes


def activation_bytes(config: RunConfig, shapes: StageShapes, pp_rank: int, micro_batches: int, vocab_size: int) -> int:
    """Bytes on each rank of pipeline stage `pp_rank` when most micro-batches are between forward and backward."""
    model, parallel, engine = config.model, config.parallel, config.engine
    tokens = model.seq_length * micro_batch_size(config.train)
    running = chunks_in_flight(shapes.chunks, parallel, pp_rank, micro_batches)
    kept = sum(_chunk_bytes(model, parallel, engine, chunk.num_layers) for chunk in running)
    largest = max(chunk.num_layers for chunk in shapes.chunks)
    again = layer_bytes(model, parallel, engine) * _layers_computed_at_once(engine.recompute, largest)
    head = _head_bytes(config, vocab_size) if shapes.has_head else 0.0
    return round(tokens * (kept + again) + head)


def _head_bytes(config: RunConfig, vocab_size: int) -> float:
    """The last norm, the output layer and the loss of one micro-batch, at their greatest."""
    model, parallel, engine = config.model, config.parallel, config.engine
    tokens, width = model.seq_length * micro_batch_size(config.train), _width(engine)
    columns = padded_vocab_size(model, vocab_size, parallel.tp) // parallel.tp
    # Input of the last norm and of the output layer.
    kept = tokens * width * 2 * model.hidden_size / _sequence_parts(parallel)
    if engine.cross_entropy == "chunked":
        # A block of logits and fp32 copies of some of its rows, two of 16-bit ones; the sum of the gradients of hidden
        # states in fp32, and a term of it; with sequence parallelism, hidden states of the whole sequence.
        block = tokens * block_columns(tokens, columns, width)
        of_hidden = tokens * model.hidden_size * (4 + width * (width < 4) + width * (_sequence_parts(parallel) > 1))
        return kept + width * block + 4 * (1 + (width < 4)) * min(block, ROWS_ELEMENTS) + of_hidden
    # The logits, and in the plain way those in fp32 and their softmax.
    more = 4 + 4 * (width < 4) if engine.cross_entropy == "plain" else 0
    return kept + tokens * columns * (width + more)


def chunks_in_flight(
    chunks: Sequence[Chunk], parallel: ParallelConfig, pp_rank: int, micro_batches: int
) -> list[Chunk]:
    """The passes through this stage's chunks whose backward pass is still to come, at their greatest number.

    1F1B: one for each stage from here to the end (Narayanan et al. 2021); interleaved: Megatron's warm-up, which runs
    pp micro-batches through a chunk before it takes the next, and one more.
    """
    pp, vp = parallel.pp, parallel.vp
    if vp == 1:
        return [chunks[0]] * min(micro_batches, pp - pp_rank)
    passes = min(2 * (pp - pp_rank - 1) + (vp - 1) * pp + 1, micro_batches * vp)
    return [chunks[turn // pp % vp] for turn in range(passes)]


def layer_bytes(model: ModelConfig, parallel: ParallelConfig, engine: EngineConfig) -> float:
    """Bytes for each token that one layer keeps on one rank; full recomputation left aside."""
    width, parts, tp = _width(engine), _sequence_parts(parallel), parallel.tp
    hidden, recompute = model.hidden_size, engine.recompute
    # Inputs of both norms and of both first matrices: on every tensor-parallel rank, or cut along the sequence.
    alike = width * 4 * hidden + (2 * hidden if model.hidden_dropout > 0 else 0)
    keys_values = 2 * max(model.kv_heads / tp, 1) * model.head_size
    attention = 2 * model.num_heads * model.head_size / tp + keys_values  # queries and attention's output
    # Input of the activation, which is twice as wide for SwiGLU, and of the second matrix.
    inner = (3 if model.activation == "swiglu" else 2) * model.ffn_hidden_size / tp
    if recompute.granularity == "selective" and "mlp" in recompute.modules:
        inner = 0.0
    return alike / parts + width * (attention + inner)


def _chunk_bytes(model: ModelConfig, parallel: ParallelConfig, engine: EngineConfig, num_layers: int) -> float:
    recompute, layer = engine.recompute, layer_bytes(model, parallel, engine)
    if recompute.granularity != "full":
        return num_layers * layer
    an_input = _width(engine) * model.hidden_size / _sequence_parts(parallel)
    if recompute.method == "uniform":
        return -(-num_layers // recompute.num_layers) * an_input
    recomputed = min(recompute.num_layers, num_layers)
    return recomputed * an_input + (num_layers - recomputed) * layer


def _layers_computed_at_once(recompute: RecomputeConfig, largest_chunk: int) -> int:
    """Number of layers whose activations are in memory while they are recomputed."""
    if recompute.granularity != "full":
        return 0
    return min(recompute.num_layers, largest_chunk) if recompute.method == "uniform" else 1


def _width(engine: EngineConfig) -> int:
    return 4 if engine.precision == "fp32" else 2


def _sequence_parts(parallel: ParallelConfig) -> int:
    """Parts into which sequence parallelism cuts what tensor-parallel ranks would all hold."""
    return parallel.tp if parallel.sp else 1
