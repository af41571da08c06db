"""Scores of single images: higher ones are kept first."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ForgettingCounter",
    "entropy",
    "error_norm",
    "forgetting_scores",
    "gradient_norm",
    "least_confidence",
    "margin",
]


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest class probability.

    Args:
        logits: `(N, K)`.

    Returns:
        `(N,)` float64 in [0, 1 - 1/K].
    """
    return 1 - _probabilities(logits).amax(1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the class probabilities, in nats.

    Args:
        logits: `(N, K)`.

    Returns:
        `(N,)` float64 in [0, log K], summed over classes.
    """
    nats: Tensor = torch.special.entr(_probabilities(logits)).sum(1)
    return nats


def margin(logits: Tensor) -> Tensor:
    """One minus the difference of the two largest class probabilities.

    Args:
        logits: `(N, K)`; of a single class the second probability is 0.

    Returns:
        `(N,)` float64 in [0, 1].
    """
    top = F.pad(_probabilities(logits), (0, 1)).topk(2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


def error_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """Euclidean norm of class probabilities minus the label as one-hot (Paul et al., NeurIPS 2021, definition 2.2).

    Args:
        logits: `(N, K)`.
        labels: `(N,)` class indices.

    Returns:
        `(N,)` float64 in [0, sqrt 2].
    """
    wanted = F.one_hot(labels, logits.shape[1])
    norm: Tensor = torch.linalg.vector_norm(_probabilities(logits) - wanted, dim=1)
    return norm


def gradient_norm(features: Tensor, logits: Tensor, labels: Tensor, bias: bool = True) -> Tensor:
    """Norm of an image's cross-entropy gradient with respect to the last linear layer.

    The gradient is `(p - y) f^T` for the weight and `p - y` for the bias, so the norm of both together is
    `||p - y|| sqrt(1 + ||f||^2)` (Paul et al., NeurIPS 2021, definition 2.1, restricted to the last layer).

    Args:
        features: `(N, F)` inputs of that layer.
        logits: `(N, K)` its outputs.
        labels: `(N,)` class indices.
        bias: Whether the layer has a bias; without it the 1 is left out.

    Returns:
        `(N,)` float64.
    """
    size = features.double().square().sum(1) + float(bias)
    return error_norm(logits, labels) * size.sqrt()


def _probabilities(logits: Tensor) -> Tensor:
    """In float64: float32 makes all probabilities near 1 equal, and ties of them."""
    return logits.double().softmax(1)


def forgetting_scores(forgotten: Tensor, learned: Tensor) -> Tensor:
    """How often an image was forgotten; one that was never learned counts as forgotten without end.

    That is how the authors sort them (Toneva et al., ICLR 2019, section 4).

    Args:
        forgotten: `(N,)` counts.
        learned: `(N,)` whether the image was right at any visit.

    Returns:
        `(N,)` float64, infinite where `learned` is False.
    """
    return forgotten.double().masked_fill(~learned, math.inf)


class ForgettingCounter:
    """How often each image was forgotten: right at one visit and wrong at the next (Toneva et al., ICLR 2019).

    Args:
        images: Number of images N.
        device: Where the visits happen.

    Attributes:
        forgotten: `(N,)` transitions from right to wrong between successive visits of the image, int64.
        learned: `(N,)` whether it was right at any visit.
    """

    def __init__(self, images: int, device: torch.device | str = "cpu") -> None:
        self.forgotten = torch.zeros(images, dtype=torch.int64, device=device)
        self.learned = torch.zeros(images, dtype=torch.bool, device=device)
        self._right = torch.zeros(images, dtype=torch.bool, device=device)

    def visit(self, index: Tensor, right: Tensor) -> None:
        """Note one visit.

        Args:
            index: `(n,)` different image numbers.
            right: `(n,)` whether each was classified correctly.
        """
        self.forgotten[index] += (self._right[index] & ~right).long()
        self.learned[index] |= right
        self._right[index] = right
