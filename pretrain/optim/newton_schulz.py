"""Bring all singular values of a matrix near 1 by Newton-Schulz iterations, which are matrix products alone."""

import math

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of Jordan et al. 2024: after five iterations singular values are between about 0.7 and 1.2."""


def orthogonalised(matrix: Tensor, *, iterations: int, dtype: torch.dtype) -> Tensor:
    """matrix [a, b] -> fp32 [a, b] with the same singular vectors. A matrix of zeros stays zero."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (wide / wide.norm().clamp_min(1e-30)).to(dtype)
    for _ in range(iterations):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return (x if wide is matrix else x.T).float()


def scale_like_adam(matrix: Tensor) -> float:
    """The factor that gives an orthogonal [a, b] the root mean square of a usual update of AdamW, about 0.2.

    Liu et al. 2025, "Muon is scalable for LLM training". So AdamW's learning rate and weight decay fit both.
    """
    return 0.2 * math.sqrt(max(matrix.shape))
