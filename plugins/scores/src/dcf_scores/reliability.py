"""How far a confidence can be believed: reliability tables, proper scores, and a temperature."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "TEMPERATURES",
    "Reliability",
    "brier",
    "calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability",
]

#: Range in which a temperature is looked for.
TEMPERATURES: Final = (math.exp(-5), math.exp(5))
#: How often its logarithm is halved.
_HALVINGS: Final = 60


class Reliability(NamedTuple):
    """Predictions by their confidence, in bins of equal width over [0, 1].

    Attributes:
        total: `(B,)` int64 predictions in each bin.
        confidence: `(B,)` float64 sums of their confidence.
        correct: `(B,)` int64, how many of them are right.
    """

    total: Tensor
    confidence: Tensor
    correct: Tensor

    def plus(self, other: Reliability) -> Reliability:
        """The table of both lots of predictions."""
        return Reliability(*(a + b for a, b in zip(self, other, strict=True)))

    def to_json(self) -> list[dict[str, Any]]:
        """One entry for each bin, JSON-ready: edges, count, mean confidence and accuracy; None where it is empty."""
        bins = len(self.total)
        return [
            {
                "from": i / bins,
                "to": (i + 1) / bins,
                "count": n,
                "confidence": float(self.confidence[i]) / n if n else None,
                "accuracy": int(self.correct[i]) / n if n else None,
            }
            for i, n in enumerate(self.total.tolist())
        ]


def reliability(probabilities: Tensor, labels: Tensor, bins: int) -> Reliability:
    """The reliability table of predictions (Guo et al., ICML 2017, section 2).

    Bin b holds confidences in `(b / B, (b + 1) / B]`, as published; the first also holds 0.

    Args:
        probabilities: `(N, K)`, rows summing to 1.
        labels: `(N,)` class indices.
        bins: Their number B.
    """
    confidence, guess = probabilities.double().max(dim=1)
    place = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    zeros = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    return Reliability(
        torch.bincount(place, minlength=bins).cpu(),
        zeros.index_add(0, place, confidence).cpu(),
        torch.bincount(place[guess == labels], minlength=bins).cpu(),
    )


def calibration_error(table: Reliability) -> float:
    """Expected calibration error: the mean over predictions of |accuracy - confidence| of their bin, in [0, 1].

    Source: Guo et al., ICML 2017, equation 3.
    """
    gaps = (table.correct.double() - table.confidence).abs()
    return float(gaps.sum() / table.total.sum())


def negative_log_likelihood(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Mean over images of minus the logarithm of the probability of the true class, in nats.

    Args:
        logits: `(N, K)`.
        labels: `(N,)` class indices.
        temperature: What the logits are divided by, positive.
    """
    return float(F.cross_entropy(logits.double() / temperature, labels))


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over images of the squared distance of probabilities and true class, summed over classes, in [0, 2].

    Source: Brier, 1950, for K classes.

    Args:
        probabilities: `(N, K)`, rows summing to 1.
        labels: `(N,)` class indices.
    """
    truth = F.one_hot(labels, probabilities.shape[1])
    return float((probabilities.double() - truth).square().sum(dim=1).mean())


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 that minimises the negative log-likelihood of `logits / T` (Guo et al., ICML 2017, 4.2).

    The likelihood is convex in 1/T, so that its derivative changes sign once, and bisection finds where; T stays in
    `TEMPERATURES`, and comes out at its lower end where every image is right, so that no temperature is the best.

    Args:
        logits: `(N, K)` of images that the network was not trained on.
        labels: `(N,)` class indices.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None])[:, 0].mean()
    low, high = map(math.log, TEMPERATURES)
    for _ in range(_HALVINGS):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64)
        expected = (torch.softmax(logits / middle.exp(), dim=1) * logits).sum(dim=1).mean()
        # Derivative in 1/T: too hot where the expected logit still falls short of the true one.
        low, high = (low, float(middle)) if expected <= true else (float(middle), high)
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())
