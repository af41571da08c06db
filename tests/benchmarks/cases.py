"""What is timed: named pieces of the published methods at CIFAR shape, with the published settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dcf.data.real import RealData, Split
from dcf.space import ValueSpace
from dcf.types import DataSpec

__all__ = ["BATCH_REAL", "CASES", "STRATEGY", "Case", "Shared", "random_data", "shared_inputs"]

CLASSES = 10
SHAPE = (3, 32, 32)
#: Real images a class and step, and images a step of the network's training: both 256 as published.
BATCH_REAL = BATCH_TRAIN = 256
LR_NET = 0.01
#: The published augmentation of colour images.
STRATEGY = "color_crop_cutout_flip_scale_rotate"
#: Real images that exist of each class; sampling is part of what is timed.
IMAGES_PER_CLASS = 2000

_SPACE = ValueSpace((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Args:
        name: Of the case, as in `--cases`.
        part: "gradient": a fresh network and one matching step over all classes, with the update; "embedding": the
            same for distribution matching; "training": a fresh network and `epochs` epochs on the synthetic set.
        ipc: Synthetic images a class.
        augmented: Whether siamese augmentation is on.
        lr: Step size of the synthetic images.
        epochs: Of "training".
    """

    name: str
    part: Literal["gradient", "embedding", "training"]
    ipc: int
    augmented: bool = False
    lr: float = 0.1
    epochs: int = 0


CASES = {
    case.name: case
    for case in (
        Case("dc-ipc1", "gradient", 1),
        Case("dc-ipc10", "gradient", 10),
        Case("dc-ipc10-training", "training", 10, epochs=5),
        Case("dsa-ipc10", "gradient", 10, augmented=True),
        Case("dsa-ipc10-training", "training", 10, augmented=True, epochs=5),
        Case("dm-ipc10", "embedding", 10, augmented=True, lr=1.0),
        Case("dm-ipc50", "embedding", 50, augmented=True, lr=1.0),
    )
}


@dataclass(frozen=True)
class Shared:
    """The same input for both sides, to see that they compute the same.

    Attributes:
        weights: Of the network, in order of its layers.
        real: `(K, 256, C, H, W)` normalised real images.
        synthetic: `(K * ipc, C, H, W)` synthetic images, class by class.
        seeds: One for each class, for the augmentation.
    """

    weights: tuple[Tensor, ...]
    real: Tensor
    synthetic: Tensor
    seeds: tuple[int, ...]


def random_data(device: torch.device) -> RealData:
    """Random 8-bit images in the shape of CIFAR-10, `IMAGES_PER_CLASS` of each class."""
    spec = DataSpec(*SHAPE, tuple(f"class {c}" for c in range(CLASSES)), _SPACE)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CLASSES * IMAGES_PER_CLASS, *SHAPE), generator=draws, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)
    train = Split(pixels, labels, _SPACE, CLASSES)
    test = Split(pixels[:CLASSES], torch.arange(CLASSES), _SPACE, CLASSES)
    return RealData(spec, train, test, "benchmark").to(device)


def shared_inputs(case: Case, data: RealData, weights: tuple[Tensor, ...]) -> Shared:
    """Inputs of one agreement check; the synthetic images are noise."""
    draws = torch.Generator().manual_seed(1)
    real = data.train.images(data.train.sample(BATCH_REAL, draws))
    synthetic = torch.randn(CLASSES * case.ipc, *SHAPE, generator=draws).to(data.train.device)
    return Shared(weights, real, synthetic, tuple(100 + 17 * c for c in range(CLASSES)))
