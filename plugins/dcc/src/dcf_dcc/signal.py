"""How much a loss knows about classes: what it says of right labels against wrong ones, without any training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

import dcf
from dcf.matching import Metric, class_gradients, gradient_distance
from dcf_dcc.contrast import joint_distance

__all__ = ["Signal", "class_signal"]


class Signal(NamedTuple):
    """One loss between real images and others of the same classes.

    Attributes:
        correct: Where each class is compared with itself.
        swapped: Where each class is compared with the images of the next one.
    """

    correct: float
    swapped: float

    @property
    def gap(self) -> float:
        """What the loss knows about classes: `swapped - correct`."""
        return self.swapped - self.correct


def class_signal(net: dcf.NetworkState, real: Tensor, others: Tensor, metric: Metric = "ours") -> tuple[Signal, Signal]:
    """The class-wise and the contrastive loss between two disjoint draws of real images.

    Args:
        net: A network, its batch norms frozen if it has any.
        real: `(c, B, C, H, W)` images of c classes.
        others: `(c, I, C, H, W)` other images of the same classes; they stand in for a synthetic set.
        metric: See `dcf.matching.gradient_distance`.

    Returns:
        The class-wise loss, summed over classes, and the contrastive one.
    """
    wanted = _gradients(net, real)
    right, wrong = (_losses(_gradients(net, images), wanted, metric) for images in (others, others.roll(-1, 0)))
    return Signal(right[0], wrong[0]), Signal(right[1], wrong[1])


def _losses(found: list[Tensor], wanted: list[Tensor], metric: Metric) -> tuple[float, float]:
    """The class-wise and the contrastive loss."""
    joint = joint_distance([g.mean(0) for g in found], [g.mean(0) for g in wanted], metric)
    return float(gradient_distance(found, wanted, metric).sum()), float(joint)


def _gradients(net: dcf.NetworkState, images: Tensor) -> list[Tensor]:
    classes = torch.arange(len(images), device=images.device)
    return class_gradients(net, images, classes[:, None].expand(-1, images.shape[1]))
