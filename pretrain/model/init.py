"""Initial weights as a pure function of the seed and the parameter name: the same in every layout.

As in Radford et al. 2019 and Shoeybi et al. 2019: normal with `init_std`, residual projections divided by sqrt(2 L),
biases 0, norm weights 1. Rows that pad the vocabulary are 0, and stay 0 because they never enter the loss.
"""

import hashlib
import math

import torch
from torch import Tensor

from pretrain.config.model import ModelConfig

RESIDUAL_PROJECTIONS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
VOCABULARY_TABLES = ("word_embeddings.weight", "output_layer.weight")


def initial_value(name: str, shape: torch.Size, *, model: ModelConfig, vocab_size: int, seed: int) -> Tensor:
    """The whole fp32 tensor `name` on the CPU."""
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    std = model.init_std
    if name.endswith(RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2 * model.num_layers)
    value = torch.zeros(shape)
    # Padding is not drawn, because torch's last few values depend on how many are drawn.
    drawn = value[:vocab_size] if name.endswith(VOCABULARY_TABLES) else value
    drawn.normal_(0.0, std, generator=_generator(seed, name))
    return value


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
