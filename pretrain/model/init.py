"""Initial weights: a function of seed, parameter name and index in the whole tensor, so equal in every layout.

As in Radford et al. 2019 and Shoeybi et al. 2019: normal with `init_std`, residual projections divided by sqrt(2 L),
biases 0, norm weights 1; scaling.py has the factors for other widths and depths than a base model's.
Rows that pad the vocabulary are 0, and stay 0 because they never enter the loss.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.config.model import ModelConfig
from pretrain.model.normals import NormalStream
from pretrain.model.rows import Rows
from pretrain.model.scaling import RESIDUAL_PROJECTIONS, UNSCALED, Scaling

VOCABULARY_TABLES = ("word_embeddings.weight", "output_layer.weight")
PIECE = 1 << 20
"""Elements that one thread draws in fp32 on the host, before it copies them to the device in its precision."""


@dataclass(frozen=True)
class InitialValue:
    """The initial value of a whole tensor. Each rank computes its share of it alone."""

    name: str
    seed: int
    std: float
    """Standard deviation; 0: every element is `mean`."""
    mean: float
    end: int | None = None
    """Index in the flat row-major tensor from which on the vocabulary is padding, and the value 0."""

    def write(self, out: Tensor, rows: Rows, start: int = 0) -> None:
        """Write the elements from `start` on of `rows` into `out` [n], of any device and precision."""
        if not self.std:
            out.fill_(self.mean)
            return
        pieces = [(out[at : at + PIECE], rows, start + at) for at in range(0, len(out), PIECE)]
        number = min(torch.get_num_threads(), len(pieces))
        if number < 2:
            for piece in pieces:
                self._write_piece(*piece)
            return
        with ThreadPoolExecutor(number) as threads:
            list(threads.map(self._write_piece, *zip(*pieces, strict=True)))

    def _write_piece(self, out: Tensor, rows: Rows, start: int) -> None:
        drawn = torch.empty(len(out))
        blocks = rows.cut(start, start + len(out))
        self._draw(NormalStream(self.seed, self.name), drawn, blocks)
        out.copy_(drawn)

    def _draw(self, stream: NormalStream, out: Tensor, blocks: list[Rows]) -> None:
        for block, part in zip(blocks, out.split([block.numel for block in blocks]), strict=True):
            real = part.numel()
            if self.end is not None:
                assert block.count == 1, "vocabularies are split by rows"
                real = min(max(self.end - block.first, 0), real)
                part[real:] = 0
            values = part[:real].view(block.count, -1).numpy()
            stream.fill_rows(values, block.first, block.stride, self.std)


def initial_value(
    name: str,
    shape: torch.Size,
    *,
    model: ModelConfig,
    vocab_size: int,
    seed: int,
    scaling: Scaling = UNSCALED,
) -> InitialValue:
    """That of the tensor `name` of `model`, which has `shape` if it is not split."""
    if name.endswith(".bias") or len(shape) == 1:
        return InitialValue(name, seed, std=0.0, mean=0.0 if name.endswith(".bias") else 1.0)
    std = model.init_std
    if name.endswith(RESIDUAL_PROJECTIONS):
        std /= math.sqrt(2 * model.num_layers / scaling.depth)
    std *= scaling.of_tensor(name, len(shape)).std
    end = vocab_size * shape[1:].numel() if name.endswith(VOCABULARY_TABLES) else None
    return InitialValue(name, seed, std, 0.0, end)
