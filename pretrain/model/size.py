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
    final_norm: int
    matrices: int
    """The weights of the linear layers in all blocks."""

    @property
    def total(self) -> int:
        return self.embedding + self.position + self.layers + self.final_norm


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
    mlp = h * ffn * (up_projections + 1)
    biases = (query + 2 * key_value + h) + (up_projections * ffn + h) if model.bias else 0
    return ParameterCount(
        embedding=vocab_size * h * (1 if model.tie_embeddings else 2),
        position=model.seq_length * h if model.position == "learned" else 0,
        layers=model.num_layers * (attention + mlp + biases + 2 * norm),
        final_norm=norm,
        matrices=model.num_layers * (linear + mlp),
    )


def checkpoint_bytes(model: ModelConfig, optim: OptimConfig, vocab_size: int) -> int:
    """Size of one checkpoint: for each parameter an fp32 master weight and two moments of Adam, or one of Muon."""
    count = count_parameters(model, vocab_size)
    return 12 * count.total - 4 * count.matrices * (optim.name == "muon")
