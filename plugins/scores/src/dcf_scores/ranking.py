"""The scores of DD-Ranking as functions of accuracies, which are fractions; free of torch.

A score maps a difference of accuracies in [-1, 1] to [0, 1] by `normalized`. A difference of 0 becomes `NEUTRAL`,
0.269: a score is no percentage of anything, and 0.27 says "no better and no worse", not "bad".

Source: Li et al., DD-Ranking, 2025 (HLR, IOR, LRS, ARS). The released 0.2.0 puts percentages into the exponential.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = [
    "NEUTRAL",
    "augmentation_robust_score",
    "hard_label_recovery",
    "improvement_over_random",
    "label_robust_score",
    "normalized",
]


def normalized(difference: float) -> float:
    """`(exp(a) - exp(-1)) / (exp(1) - exp(-1))` of a difference a in [-1, 1]: 0 at -1, 1 at 1, convex in between.

    Raises:
        ValueError: When it is not a difference of fractions.
    """
    _require("a difference of accuracies as fractions", difference, -1.0)
    return (math.exp(difference) - math.exp(-1)) / (math.exp(1) - math.exp(-1))


#: The score of a difference of 0: `1 / (e + 1)`, 0.2689.
NEUTRAL: Final = 1 / (math.e + 1)


def hard_label_recovery(full_hard: float, syn_hard: float) -> float:
    """HLR: the accuracy of the whole training set minus that of the set, both with hard labels; smaller is better.

    Args:
        full_hard: Accuracy after training on the whole training set, in [0, 1].
        syn_hard: Accuracy after training on the set with hard labels, in [0, 1].

    Raises:
        ValueError: When one is not a fraction.
    """
    return _accuracy(full_hard) - _accuracy(syn_hard)


def improvement_over_random(syn: float, random: float) -> float:
    """IOR: the accuracy of the set, under the rules of its method, minus that of random real images; larger is better.

    Args:
        syn: Accuracy after training on the set, in [0, 1].
        random: Accuracy after training on random images, in [0, 1].

    Raises:
        ValueError: When one is not a fraction.
    """
    return _accuracy(syn) - _accuracy(random)


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """LRS: `normalized(weight IOR - (1 - weight) HLR)`, in [0, 1].

    Args:
        hlr: See `hard_label_recovery`.
        ior: See `improvement_over_random`.
        weight: Of the improvement over random images, in [0, 1]; the paper's lambda.

    Raises:
        ValueError: When one is out of its range.
    """
    return normalized(_mixed(ior, -hlr, weight))


def augmentation_robust_score(with_augmentation: float, without: float, weight: float = 0.5) -> float:
    """ARS: `normalized(weight with + (1 - weight) without)` of two improvements over random images, in [0, 1].

    Args:
        with_augmentation: `improvement_over_random` where both are trained with augmentation.
        without: The same where neither is.
        weight: Of the former, in [0, 1]; the paper's gamma.

    Raises:
        ValueError: When one is out of its range.
    """
    return normalized(_mixed(with_augmentation, without, weight))


def _mixed(first: float, second: float, weight: float) -> float:
    _require("a weight", weight, 0.0)
    for value in (first, second):
        _require("a difference of accuracies as fractions", value, -1.0)
    return weight * first + (1 - weight) * second


def _accuracy(value: float) -> float:
    _require("an accuracy as a fraction", value, 0.0)
    return value


def _require(what: str, value: float, low: float) -> None:
    if not low <= value <= 1:
        raise ValueError(f"expected {what} in [{low:g}, 1], got {value:g}; percentages are to be divided by 100")
