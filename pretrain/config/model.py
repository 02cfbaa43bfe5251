"""The decoder's shape: two families (GPT-3, Llama) told apart by fields, not by class."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer."""

    name: str
    """Name of the preset, for logs and reports."""
    num_layers: int
    """Transformer blocks."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Query heads."""
    num_query_groups: int | None
    """Key/value heads; null: as many as query heads."""
    head_dim: int | None
    """Width of a head; null: hidden_size / num_heads."""
    ffn_hidden_size: int
    """Inner width of the feed-forward block."""
    seq_length: int
    """Tokens that the model sees at once; prepared samples have the same length."""
    position: Literal["learned", "rope"]
    """Learned absolute positions (GPT-3) or rotary (Llama)."""
    rope_base: float
    """Base of the rotary frequencies; used by position=rope only."""
    norm: Literal["layernorm", "rmsnorm"]
    """Normalisation before attention, before the feed-forward block and at the end."""
    norm_eps: float
    """Added to the variance."""
    qk_norm: bool
    """Normalise the queries and keys of each head (Dehghani et al. 2023)."""
    activation: Literal["gelu", "swiglu"]
    """Feed-forward activation."""
    bias: bool
    """Biases in the linear layers."""
    tie_embeddings: bool
    """Use the input embedding as output layer."""
    hidden_dropout: float
    """Dropout on the embeddings and on each block's two outputs."""
    attention_dropout: float
    """Dropout on the attention weights."""
    init_std: float
    """Standard deviation of initial weights; residual projections use init_std / sqrt(2 num_layers), as in GPT-2."""
    vocab_multiple_of: int
    """The embedding is padded to a multiple of this; padding never enters the loss."""

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_query_groups is None else self.num_query_groups

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim


def padded_vocab_size(vocab_size: int, multiple_of: int) -> int:
    """The smallest multiple of `multiple_of` that holds `vocab_size` rows."""
    return -(-vocab_size // multiple_of) * multiple_of
