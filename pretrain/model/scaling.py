"""How initial weights, learning rates, weight decay and Adam's eps follow from width and depth (muP and CompleteP).

muP (Yang et al. 2021, "Tensor Programs V") keeps the best learning rate of a small model for a wide one, CompleteP (Dey
et al. 2025) that of a shallow model for a deep one. Let m be the width over optim.base_width, l the depth over
optim.base_depth:

    tensors                                       initial std        learning rate   weight decay   eps
    embeddings, final norm                        1                  1               1              1 / m
    queries, keys, values, fc1                    1 / sqrt(m)        1 / m           m              1 / (m l)
    their biases, norms of layers                                    1                              1 / (m l)
    attention's projection, fc2                   1 / (sqrt(m) l)    1 / (m l)       m l            1 / m
    their biases                                                     1 / l                          1 / m
    untied head                                   1 / m              1 / m           m              1

The multipliers of residual branches (1 / l) and of logits (1 / m) that the papers have are folded into std and learning
rate: for Adam this is the same function with the same updates. Only a tied head has its multiplier in the forward pass,
because its table is the embedding's too. eps follows the size of each tensor's gradients.
"""

import math
from dataclasses import dataclass

from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig

RESIDUAL_PROJECTIONS = ("self_attention.linear_proj.weight", ".linear_fc2.weight")
RESIDUAL_BIASES = ("self_attention.linear_proj.bias", "mlp.linear_fc2.bias")
LAYER, HEAD = "decoder.layers.", "output_layer.weight"


@dataclass(frozen=True)
class Scale:
    """Factors of one tensor, over those of the base model."""

    std: float = 1.0
    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0

    @property
    def of_update(self) -> tuple[float, float, float]:
        """Parameters with equal factors here are in one optimizer group."""
        return self.lr, self.weight_decay, self.eps


@dataclass(frozen=True)
class Scaling:
    """The model's width and depth over those of the base model. 1: the rules change nothing."""

    width: float = 1.0
    depth: float = 1.0
    output: float = 1.0
    """The factor of the logits in the forward pass."""

    @classmethod
    def of(cls, model: ModelConfig, optim: OptimConfig) -> "Scaling":
        width = model.hidden_size / (optim.base_width or model.hidden_size)
        depth = model.num_layers / (optim.base_depth or model.num_layers)
        return cls(width, depth, 1 / width if model.tie_embeddings else 1.0)

    def of_tensor(self, name: str, dimensions: int) -> Scale:
        """The factors of a tensor, by its name in the whole model and its number of dimensions."""
        if name == HEAD:
            return Scale(1 / self.width, 1 / self.width, self.width)
        eps = 1 / self.width
        if not name.startswith(LAYER):
            return Scale(eps=eps)
        if name.endswith(RESIDUAL_BIASES):
            return Scale(lr=1 / self.depth, eps=eps)
        is_projection = name.endswith(RESIDUAL_PROJECTIONS)
        if not is_projection:
            eps /= self.depth
        if dimensions < 2:
            return Scale(eps=eps)
        depth = self.depth if is_projection else 1.0
        ratio = self.width * depth
        return Scale(1 / (math.sqrt(self.width) * depth), 1 / ratio, ratio, eps)


UNSCALED = Scaling()
