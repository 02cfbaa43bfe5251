"""The decoder: Megatron-core's GPTModel with our loss, filled with layout-independent weights."""

from dataclasses import dataclass

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn
from torch.nn import functional

from pretrain.config.model import ModelConfig, padded_vocab_size
from pretrain.model.init import VOCABULARY_TABLES, initial_value
from pretrain.model.specs import block_spec, transformer_config


class Decoder(GPTModel):
    """GPTModel whose loss leaves out the padding of the vocabulary."""

    real_vocab_size: int

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels [b, s], logits [s, b, v] -> loss of each token [b, s], in fp32."""
        # Padded rows get no probability, so neither they nor the loss depend on how much padding there is.
        real = logits[..., : self.real_vocab_size].flatten(0, 1).float()  # [s * b, v]
        # The labels are turned, not the logits: those are thousands of times larger.
        loss = functional.cross_entropy(real, labels.transpose(0, 1).flatten(), reduction="none")
        return loss.view(logits.shape[:2]).transpose(0, 1)


def build_decoder(model: ModelConfig, *, vocab_size: int, precision: str, seed: int, device: torch.device) -> Decoder:
    """The whole decoder in fp32 on `device`; process groups must exist."""
    with torch.device("meta"):
        decoder = Decoder(
            config=transformer_config(model, precision),
            transformer_layer_spec=block_spec(model),
            vocab_size=padded_vocab_size(vocab_size, model.vocab_multiple_of),
            max_sequence_length=model.seq_length,
            share_embeddings_and_output_weights=model.tie_embeddings,
            position_embedding_type="learned_absolute" if model.position == "learned" else "rope",
            rotary_base=model.rope_base,
        )
    decoder.real_vocab_size = vocab_size
    for name, parameter in list(decoder.named_parameters()):
        value = initial_value(name, parameter.shape, model=model, vocab_size=vocab_size, seed=seed).to(device)
        filled = nn.Parameter(value)
        filled.__dict__.update(parameter.__dict__)  # Megatron's marks, such as `tensor_model_parallel`
        owner, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(owner), leaf, filled)
    return decoder


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor as a checkpoint knows it, at `offset` in the flat row-major parameter that holds it."""

    name: str
    shape: tuple[int, ...]
    offset: int


def logical_tensors(name: str, shape: torch.Size, *, model: ModelConfig, vocab_size: int) -> list[LogicalTensor]:
    """What a parameter holds, free of layout: no vocabulary padding, SwiGLU's two projections apart."""
    if name.endswith(VOCABULARY_TABLES):
        return [LogicalTensor(name, (vocab_size, *shape[1:]), 0)]
    if model.activation == "swiglu" and ".linear_fc1." in name:
        half = (shape[0] // 2, *shape[1:])
        parts = (name.replace(".linear_fc1.", f".linear_fc1.{part}.") for part in ("gate", "up"))
        return [LogicalTensor(part, half, i * torch.Size(half).numel()) for i, part in enumerate(parts)]
    return [LogicalTensor(name, tuple(shape), 0)]
