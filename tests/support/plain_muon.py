"""Muon on whole matrices, written without the product's code: the reference of the engine's."""

import math

import torch
from torch import Tensor, nn

from pretrain.config.run import RunConfig


class PlainMuon:
    """The update of one parameter, which may hold several matrices."""

    def __init__(self, parameter: nn.Parameter, name: str, lr: float, weight_decay: float, config: RunConfig) -> None:
        self.parameter, self.name, self.lr, self.weight_decay = parameter, name, lr, weight_decay
        self.config, self.momentum = config, torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self) -> None:
        gradient, rate = self.parameter.grad, self.config.optim.muon.momentum
        assert gradient is not None
        self.momentum.mul_(rate).add_(gradient, alpha=1 - rate)
        update = gradient * (1 - rate) + self.momentum * rate
        self.parameter.mul_(1 - self.lr * self.weight_decay)
        for rows in self.rows():
            self.parameter[rows] -= self.lr * self.orthogonal(update[rows])

    def rows(self) -> list[Tensor]:
        """The rows of each matrix: each group has its queries, key and value together; gate precedes up."""
        model, number = self.config.model, torch.arange(len(self.parameter))
        if "linear_qkv" in self.name:
            size, heads = model.head_size, model.num_heads // model.kv_heads
            place = number // size % (heads + 2)
            return [number[place < heads], number[place == heads], number[place == heads + 1]]
        if "linear_fc1" in self.name and model.activation == "swiglu":
            return list(number.chunk(2))
        return [number]

    def orthogonal(self, matrix: Tensor) -> Tensor:
        x = matrix / torch.linalg.matrix_norm(matrix)
        if x.shape[0] > x.shape[1]:
            return self.orthogonal(matrix.T).T
        for _ in range(self.config.optim.muon.iterations):
            x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
        return 0.2 * math.sqrt(max(x.shape)) * x
