"""Count parameters from the configuration, without allocating them."""

from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig


@dataclass(frozen=True)
class ParameterCount:
    """Parameter counts by part, without vocabulary padding."""

    embedding: int
    """Token embedding, and the output layer unless it is tied."""
    position: int
    """Learned position embedding."""
    layers: int
    """All transformer blocks."""
    idle: int
    """The part of `layers` that a token does not pass through: the experts that were not chosen."""
    final_norm: int
    matrices: int
    """The weights of the linear layers in all blocks."""

    @property
    def total(self) -> int:
        return self.embedding + self.position + self.layers + self.final_norm

    @property
    def active(self) -> int:
        """Parameters that each token passes through."""
        return self.total - self.idle


def count_parameters(model: ModelConfig, vocab_size: int) -> ParameterCount:
    """Count the parameters of `model` with a vocabulary of `vocab_size`."""
    h, ffn = model.hidden_size, model.ffn_hidden_size
    query, key_value = model.num_heads * model.head_size, model.kv_heads * model.head_size
    norm = h * (2 if model.norm == "layernorm" else 1)
    attention = h * (query + 2 * key_value) + query * h
    linear = attention
    if model.qk_norm:
        attention += 2 * model.head_size * (2 if model.norm == "layernorm" else 1)
    up_projections = 2 if model.activation == "swiglu" else 1
    matrices = h * (up_projections + 1)  # elements of a feed-forward block for each unit of its inner width
    biases = (query + 2 * key_value + h) + (up_projections * ffn + h) if model.bias else 0
    experts = model.experts
    sparse_layers = max(0, model.num_layers - experts.dense_layers) if experts.count else 0
    one = matrices * model.expert_width
    sparse = h * experts.count + experts.count * one + matrices * experts.shared_ffn_hidden_size
    blocks = (model.num_layers - sparse_layers) * matrices * ffn + sparse_layers * sparse
    return ParameterCount(
        embedding=vocab_size * h * (1 if model.tie_embeddings else 2),
        position=model.seq_length * h if model.position == "learned" else 0,
        layers=model.num_layers * (attention + biases + 2 * norm) + blocks,
        idle=sparse_layers * (experts.count - experts.topk) * one,
        final_norm=norm,
        matrices=model.num_layers * linear + blocks,
    )


def checkpoint_bytes(model: ModelConfig, optim: OptimConfig, vocab_size: int) -> int:
    """Size of one checkpoint: for each parameter an fp32 master weight and two moments of Adam, or one of Muon."""
    count = count_parameters(model, vocab_size)
    return 12 * count.total - 4 * count.matrices * (optim.name == "muon")
