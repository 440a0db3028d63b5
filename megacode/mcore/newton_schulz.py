"""Make a matrix orthogonal by Newton-Schulz iterations, and how far a step goes along the result.

For M = U S V^T the goal is U V^T. X starts as M of Frobenius norm 1. An iteration is X <- a X + (b A + c A^2) X, where
A = X X^T: a polynomial of the singular values alone, which moves all of them towards 1. These coefficients move small
ones fastest, and end between about 0.7 and 1.2 instead of at 1, which trains as well.

Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024), for iteration and coefficients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megacode.config.training import Muon

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_EPSILON = 1e-7


def orthogonalized(matrix: Tensor, steps: int) -> Tensor:
    """Return the nearly orthogonal matrix of a whole matrix, [rows, columns], in its type; zeros stay zeros.

    Costs `steps` x (4 m^2 n + 2 m^3) operations, where m is the smaller side and n the larger one.
    """
    a, b, c = COEFFICIENTS
    # The Gram matrix of the smaller side: fewer operations, the same result.
    wide = matrix if matrix.size(0) <= matrix.size(1) else matrix.T
    x = wide / torch.linalg.vector_norm(wide).clamp(min=_EPSILON)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.size(0) <= matrix.size(1) else x.T


def step_scale(settings: Muon, rows: int, columns: int) -> float:
    """Return the factor of the learning rate for a whole matrix.

    An orthogonal matrix has entries of size sqrt(1 / max(rows, columns)), so `moonlight` makes them 0.2, about what
    AdamW's updates have. Sources: Liu et al., Muon is Scalable for LLM Training (2025), section 2.2; for `spectral`,
    Bernstein and Newhouse, Old Optimizer, New Norm (2024), and Jordan et al. (2024).
    """
    if settings.scale == "moonlight":
        return settings.scale_factor * 0.2 * math.sqrt(max(rows, columns))
    return settings.scale_factor * math.sqrt(max(1.0, rows / columns))
