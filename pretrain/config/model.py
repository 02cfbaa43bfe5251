"""The shape of the model. GPT-3 and Llama models differ in fields, not in classes."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Slower rotary frequencies, with which a model continues at a longer context than it was trained with."""

    kind: Literal["none", "llama3", "yarn"] = "none"
    """Formula. llama3: that of Llama 3.1. yarn: Peng et al. 2023. none: unscaled frequencies."""
    factor: float = 1.0
    """By how much the slow frequencies are divided: new context length / old one."""
    original_length: int | None = None
    """Context length of the training before the scaling."""
    low_freq_factor: float = 1.0
    """llama3: frequencies with fewer turns than this in original_length are divided by factor."""
    high_freq_factor: float = 4.0
    """llama3: frequencies with more turns than this in original_length do not change."""
    beta_fast: float = 32.0
    """yarn: frequencies with more turns than this in original_length do not change."""
    beta_slow: float = 1.0
    """yarn: frequencies with fewer turns than this in original_length are divided by factor."""
    attention_factor: float | None = None
    """yarn: factor of all cosines and sines. null: 0.1 ln(factor) + 1."""


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Feed-forward blocks of experts, of which each token passes through a few (Shazeer et al. 2017)."""

    count: int = 0
    """Number of experts in a layer. 0: no experts."""
    topk: int = 2
    """Number of experts that each token passes through."""
    ffn_hidden_size: int | None = None
    """Inner width of an expert. null: model.ffn_hidden_size, which is that of the dense layers."""
    shared_ffn_hidden_size: int = 0
    """Inner width of an expert that all tokens pass through besides. 0: none."""
    dense_layers: int = 0
    """Number of layers at the beginning that have one dense feed-forward block."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How scores follow from the router's logits."""
    normalize: bool = True
    """Whether the scores of the chosen experts are divided by their sum."""
    scale: float = 1.0
    """Factor of the weights of the chosen experts."""
    sequence_loss: float = 0.0
    """Factor of the loss that balances the experts within each sequence (DeepSeek-V3, equation 17). It is not part of
    the reported loss."""
    z_loss: float = 0.0
    """Factor of the mean squared log-sum-exp of the router's logits (Zoph et al. 2022). It is not part of the reported
    loss."""
    bias_rate: float = 0.0
    """How far a step moves the bias of each expert's score in the choice, up if the expert got fewer tokens than the
    mean (Wang et al. 2024). 0: there is no such bias."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder-only transformer, in the style of GPT-3 or Llama."""

    name: str
    """Name of the preset, shown in logs and reports."""
    num_layers: int
    """Number of transformer layers."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Number of query heads."""
    num_query_groups: int | None
    """Number of key/value heads. null: as many as query heads."""
    head_dim: int | None
    """Width of a head. null: hidden_size / num_heads."""
    ffn_hidden_size: int
    """Inner width of the feed-forward block."""
    seq_length: int
    """Number of tokens in a sample, which is the context length of the model. Prepared samples have the same length."""
    position: Literal["learned", "rope"]
    """Position embeddings. learned: absolute positions (GPT-3). rope: rotary embeddings (Llama)."""
    rope_base: float
    """Base of the rotary frequencies. Only used with position=rope."""
    norm: Literal["layernorm", "rmsnorm"]
    """Normalization before attention, before the feed-forward block and after the last layer."""
    norm_eps: float
    """Small number added to the variance, which prevents division by zero."""
    qk_norm: bool
    """Whether the queries and keys of each head are normalized (Dehghani et al. 2023)."""
    activation: Literal["gelu", "swiglu"]
    """Activation function of the feed-forward block."""
    bias: bool
    """Whether linear layers have biases."""
    tie_embeddings: bool
    """Whether the output layer uses the weights of the input embedding."""
    hidden_dropout: float
    """Dropout on the embeddings and on the two outputs of each layer."""
    attention_dropout: float
    """Dropout on the attention weights."""
    init_std: float
    """Standard deviation of initial weights. Residual projections use init_std / sqrt(2 num_layers), as in GPT-2."""
    vocab_multiple_of: int
    """The vocabulary is padded to a multiple of this times parallel.tp. Padding never enters the loss."""
    vocab_size: int | None = None
    """Number of tokens that the model predicts, if it is larger than the tokenizer's, as in some imported models. null:
    the tokenizer's."""

    rope_scaling: RopeScaling = RopeScaling()
    no_rope_every: int | None = None
    """One layer of this many, the last of them, has no rotary embeddings (Yang et al. 2025). null: no layer."""
    experts: ExpertsConfig = ExpertsConfig()

    window: int | None = None
    """Number of tokens that each token sees, itself included (Beltagy et al. 2020). null: all before it."""
    full_attention_every: int | None = None
    """One layer of this many, the last of them, has no window. null: each layer has it."""

    def rotates(self, layer: int) -> bool:
        """Whether this layer, counted from 0 over all stages, has rotary embeddings."""
        return self.position == "rope" and not (self.no_rope_every and (layer + 1) % self.no_rope_every == 0)

    def window_of(self, layer: int) -> int | None:
        """The window of this layer, counted from 0 over all stages."""
        every = self.full_attention_every
        return None if every is not None and (layer + 1) % every == 0 else self.window

    @property
    def seen_share(self) -> float:
        """The tokens that are seen, over all layers, as a share of those that are seen without windows."""
        length = self.seq_length
        whole = length * (length + 1) / 2
        seen = 0.0
        for layer in range(self.num_layers):
            window = min(self.window_of(layer) or length, length)
            seen += window * length - window * (window - 1) / 2
        return seen / (self.num_layers * whole)

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_query_groups is None else self.num_query_groups

    @property
    def expert_width(self) -> int:
        """Inner width of an expert."""
        return self.experts.ffn_hidden_size or self.ffn_hidden_size

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward block of this layer, counted from 0, has experts."""
        return self.experts.count > 0 and layer >= self.experts.dense_layers

    @property
    def active_width(self) -> int:
        """Inner width of the feed-forward blocks that a token passes through in a layer; the mean of all layers."""
        experts = self.experts
        if not experts.count:
            return self.ffn_hidden_size
        sparse = experts.topk * self.expert_width + experts.shared_ffn_hidden_size
        dense = min(experts.dense_layers, self.num_layers)
        return round((dense * self.ffn_hidden_size + (self.num_layers - dense) * sparse) / self.num_layers)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim
