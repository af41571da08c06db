"""What both methods judge a set by: how well a network that was trained on it does on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

import dcf
from dcf.training import cross_entropy

__all__ = ["Logits", "real_loss"]

#: `(images, weights) -> logits`.
Logits: TypeAlias = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def real_loss(logits: Logits, weights: Mapping[str, Tensor], real: dcf.Batch) -> tuple[Tensor, Tensor]:
    """What the set is judged by: the trained network on real images.

    Args:
        logits: The network.
        weights: After training.
        real: `x` of `(N, C, H, W)`, `y` of `(N,)` class indices.

    Returns:
        The cross-entropy averaged over the images, and the fraction that is right, detached.
    """
    answers = logits(real.x, weights)
    right = (answers.detach().argmax(1) == real.y).float().mean()
    return cross_entropy(answers, real.y), right
