"""Floating-point operations of training per token, by the three conventions in use."""

from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.model.size import count_parameters


@dataclass(frozen=True)
class TokenFlops:
    """Forward and backward operations per trained token.

    N: matrix parameters that a token passes through, including the output layer.
    """

    six_n: float
    """6N (Kaplan et al. 2020): matrix products only."""
    six_n_6lhs: float
    """6N + 6Lhs: with causal attention counted once (llm.c, Megatron-LM today)."""
    six_n_12lhs: float
    """6N + 12Lhs: with full attention (Chowdhery et al. 2022, PaLM, appendix B)."""


def token_flops(model: ModelConfig, vocab_size: int) -> TokenFlops:
    """Operations per token of a sequence of `model.seq_length`, as one document: kept apart, several take fewer."""
    count = count_parameters(model, vocab_size)
    six_n = 6.0 * (count.layers - count.idle + count.final_norm + vocab_size * model.hidden_size)
    attention = 6.0 * model.num_layers * model.num_heads * model.head_size * model.seq_length * model.seen_share
    return TokenFlops(six_n=six_n, six_n_6lhs=six_n + attention, six_n_12lhs=six_n + 2 * attention)
