"""What is timed: named pieces of the published methods at CIFAR shape, with the published settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dcf.data.real import RealData, Split
from dcf.space import ValueSpace
from dcf.types import DataSpec

__all__ = ["BATCH_REAL", "CASES", "PARTS", "STRATEGY", "Case", "Shared", "random_data", "shared_inputs"]

CLASSES = 10
SHAPE = (3, 32, 32)
#: Real images a class and step, and images a step of the network's training: both 256 as published.
BATCH_REAL = BATCH_TRAIN = 256
LR_NET = 0.01
#: The published augmentation of colour images.
STRATEGY = "color_crop_cutout_flip_scale_rotate"
#: That of IDC.
STRATEGY_IDC = "color_crop_cutout"
#: Real images that exist of each class; sampling is part of what is timed.
IMAGES_PER_CLASS = 2000
#: Training steps of the trajectory case; the published settings have 50, in which both sides are linear.
STUDENT_STEPS = 10
#: Test images of an evaluation; the published ones have 10,000, and 300 epochs or more.
TEST_IMAGES = 1000
#: Real images a class of IDC.
BATCH_IDC = 64

_SPACE = ValueSpace((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_UNIT = ValueSpace.unit(3)


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Args:
        name: Of the case, as in `--cases`.
        checkout: Of the published code that it is compared with.
        part: "match": a fresh network and one matching step over all classes, with the update; "training": a fresh
            network and `epochs` epochs on the synthetic set; "outer": a whole outer iteration, timed part by part,
            each a matching step and the training that follows; "evaluation": networks trained and tested.
        ipc: Synthetic images a class.
        matcher: That of dcf.
        augmented: Whether siamese augmentation is on.
        lr: Step size of the synthetic images.
        epochs: Of "training" and "evaluation", and between two matching steps of "outer".
        networks: Of "evaluation".
        batch_real: Real images a class.
    """

    name: str
    checkout: Literal["dc", "dcc", "mtt", "idc"]
    part: Literal["match", "training", "outer", "evaluation"]
    ipc: int
    matcher: str = "dc:match_steps=1"
    augmented: bool = False
    lr: float = 0.1
    epochs: int = 0
    networks: int = 0
    batch_real: int = BATCH_REAL

    @property
    def space(self) -> ValueSpace:
        """Of the images: IDC learns pixels in [0, 1]."""
        return _UNIT if self.checkout == "idc" else _SPACE


_DCC = "dcc:match_steps=1,outer_warmup=0,inner_warmup=0"
_MTT = f"mtt:syn_steps={STUDENT_STEPS},expert_epochs=1,max_start_epoch=2"
#: Matching steps of an outer iteration at 10 images a class, each timed with the training before it.
PARTS = 10
_OUTER = f"dc:match_steps={PARTS},net_epochs=50"

CASES = {
    case.name: case
    for case in (
        Case("dc-ipc1", "dc", "match", 1),
        Case("dc-ipc10", "dc", "match", 10),
        Case("dc-ipc10-training", "dc", "training", 10, epochs=5),
        Case("dsa-ipc10", "dc", "match", 10, augmented=True),
        Case("dsa-ipc10-training", "dc", "training", 10, augmented=True, epochs=5),
        Case("dm-ipc10", "dc", "match", 10, "dm", augmented=True, lr=1.0),
        Case("dm-ipc50", "dc", "match", 50, "dm", augmented=True, lr=1.0),
        Case("dcc-ipc10", "dcc", "match", 10, _DCC),
        Case("mtt-ipc1", "mtt", "match", 1, _MTT, augmented=True, lr=100.0),
        Case("idc-ipc10", "idc", "match", 10, "idc:inner_loop=1", augmented=True, lr=5e-3, batch_real=BATCH_IDC),
        Case("evaluation-ipc1", "dc", "evaluation", 1, epochs=100, networks=5),
        Case("evaluation-ipc10", "dc", "evaluation", 10, epochs=20, networks=3),
        Case("dc-ipc10-outer", "dc", "outer", 10, _OUTER, epochs=50),
    )
}


@dataclass(frozen=True)
class Shared:
    """The same input for both sides, to see that they compute the same.

    Attributes:
        weights: Of the network, in order of its layers.
        target: Other weights: where the expert went, for trajectory matching.
        real: `(K, B, C, H, W)` normalised real images.
        synthetic: `(K * ipc, C, H, W)` synthetic images, class by class.
        seeds: One for each class, for the augmentation; None for no augmentation.
    """

    weights: tuple[Tensor, ...]
    target: tuple[Tensor, ...]
    real: Tensor
    synthetic: Tensor
    seeds: tuple[int, ...] | None

    @property
    def dtype(self) -> torch.dtype:
        """Of everything."""
        return self.synthetic.dtype


def random_data(device: torch.device, space: ValueSpace = _SPACE) -> RealData:
    """Random 8-bit images in the shape of CIFAR-10, `IMAGES_PER_CLASS` of each class."""
    spec = DataSpec(*SHAPE, tuple(f"class {c}" for c in range(CLASSES)), space)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (CLASSES * IMAGES_PER_CLASS, *SHAPE), generator=draws, dtype=torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)
    train = Split(pixels, labels, space, CLASSES)
    test = Split(pixels[:TEST_IMAGES], torch.arange(TEST_IMAGES) % CLASSES, space, CLASSES)
    return RealData(spec, train, test, "benchmark").to(device)


def shared_inputs(case: Case, data: RealData, weights: tuple[Tensor, ...], dtype: torch.dtype, real: int) -> Shared:
    """Inputs of one agreement check; the synthetic images are noise.

    Args:
        case: The case.
        data: Real images.
        weights: Of a fresh network.
        dtype: Of everything. In float64 nothing is augmented: the published augmentation knows fp32 alone.
        real: Real images a class.
    """
    draws = torch.Generator().manual_seed(1)
    device = data.train.device
    images = data.train.images(data.train.sample(real, draws))
    synthetic = torch.randn(CLASSES * case.ipc, *SHAPE, generator=draws)
    synthetic = torch.rand(synthetic.shape, generator=draws) if case.checkout == "idc" else synthetic
    target = [w + 0.02 * torch.randn(w.shape, generator=draws).to(device) for w in weights]
    augmented = case.augmented and dtype == torch.float32 and case.checkout == "dc"
    return Shared(
        tuple(w.to(dtype) for w in weights),
        tuple(w.to(dtype) for w in target),
        images.to(dtype),
        synthetic.to(device, dtype),
        tuple(100 + 17 * c for c in range(CLASSES)) if augmented else None,
    )
