"""The linear classifier that `variant=ridge` fits in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ridge_head", "with_bias"]


def with_bias(features: Tensor) -> Tensor:
    """`(N, F + 1)`: features `(N, F)` and a column of ones."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)


def ridge_head(features: Tensor, labels: Tensor, weight: float) -> Tensor:
    """The classifier W that minimises |Phi W - Y|^2 + weight |W|^2, both sums of squares.

    W = Phi^T (Phi Phi^T + weight I)^-1 Y, differentiable: a system of as many equations as there are images, which are
    fewer than features.

    Args:
        features: Phi, `(N, F)`, with the column of ones.
        labels: Y, `(N, K)`.
        weight: Of the squared norm, positive.

    Returns:
        `(F, K)`.
    """
    gram = features @ features.mT
    system = gram + weight * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    head: Tensor = features.mT @ torch.linalg.solve(system, labels)
    return head
