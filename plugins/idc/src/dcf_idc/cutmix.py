"""The augmenter `cutmix`: a box of each image comes from another one of the batch, as does a share of its label."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import dcf
from dcf.sending import send
from dcf_idc.options import CutMixConfig

__all__ = ["Box", "CutMix", "Mix", "beta_sample", "cut_and_mix", "draw_box"]


class Box(NamedTuple):
    """Rows `top` to `bottom - 1` and columns `left` to `right - 1`."""

    top: int
    bottom: int
    left: int
    right: int


#: A draw: the box, and the `(N,)` image of the batch that fills it in each; empty where nothing is mixed.
Mix: TypeAlias = "tuple[tuple[int, int, int, int], Tensor] | tuple[()]"


class CutMix(dcf.Augmenter):
    """Mix images and labels of a batch (Yun et al., ICCV 2019).

    With probability `prob` a batch is mixed: one box for all of it, and one permutation that says whose pixels fill it.
    The label of an image becomes its own and the other's, in the shares that they have of its area. It mixes the images
    of a batch, so it is for training networks; a draw that fits any batch, as matching shares it, does not exist.
    """

    Config = CutMixConfig

    @property
    def is_identity(self) -> bool:
        """With a probability of 0."""
        return bool(self.config.prob == 0)

    @property
    def mixes_labels(self) -> bool:
        """Always, unless it does nothing."""
        return not self.is_identity

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Mix:
        """Draw a box and a permutation, or nothing.

        Args:
            n: Number of images.
            shape: `(C, H, W)`.
            generator: A CPU generator.
            shared: Refused, unless it does nothing.

        Raises:
            UsageError: When the draw is to be shared by batches of any size.
        """
        if self.is_identity:
            return ()
        if shared:
            raise dcf.UsageError(
                "cutmix mixes the images of a batch, so its draw cannot be shared by real and synthetic images; use it "
                "where networks are trained: in a protocol's 'augment', or in an option of the matcher for training"
            )
        if float(torch.rand(1, generator=generator)) >= self.config.prob:
            return ()
        box = draw_box(beta_sample(self.config.beta, generator), shape[1:], generator)
        return tuple(box), torch.randperm(n, generator=generator)

    def apply(self, batch: dcf.Batch, values: Mix) -> dcf.Batch:
        """Apply a draw.

        Args:
            batch: `x` of `(N, C, H, W)` and `y` of `(N, K)` probabilities.
            values: What `draw` returned for N images.

        Raises:
            UsageError: When labels are class indices, or the draw was made for another number of images.
        """
        if not values:
            return batch
        if batch.y.ndim != 2:
            raise dcf.UsageError("cutmix mixes labels: expected probabilities (N, K), got class indices")
        box, partner = values
        if len(partner) != len(batch.x):
            raise dcf.UsageError(f"cutmix: expected a draw for {len(batch.x)} images, got one for {len(partner)}")
        return cut_and_mix(batch, Box(*box), partner)


def cut_and_mix(batch: dcf.Batch, box: Box, partner: Tensor) -> dcf.Batch:
    """Fill a box of each image from its partner, and mix the labels by area.

    Args:
        batch: `x` of `(N, C, H, W)` and `y` of `(N, K)` probabilities; not modified.
        box: Which pixels come from the partner.
        partner: `(N,)` number of each image's partner in the batch.

    Returns:
        A batch of the same shapes; labels are `s y + (1 - s) y[partner]`, s the share of the area outside the box.
    """
    height, width = batch.x.shape[-2:]
    kept = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
    partner = send(partner, batch.x.device)
    inside = torch.zeros(height, width, dtype=torch.bool, device=batch.x.device)
    inside[box.top : box.bottom, box.left : box.right] = True
    x = torch.where(inside, batch.x[partner], batch.x)
    return dcf.Batch(x, kept * batch.y + (1 - kept) * batch.y[partner])


def draw_box(kept: float, size: tuple[int, int], generator: torch.Generator) -> Box:
    """A box whose sides are sqrt(1 - kept) of the image's, about a centre that is uniform over the pixels.

    What sticks out of the image is cut off, so that more may be kept than was asked for.

    Args:
        kept: Share of the area, in [0, 1], that stays; a whole number of pixels is taken away, rounded down.
        size: `(H, W)`.
        generator: A CPU generator.
    """
    ratio = math.sqrt(max(0.0, 1 - kept))
    ends = []
    for side in size:
        half, centre = int(side * ratio) // 2, int(torch.randint(side, (1,), generator=generator))
        ends += [max(0, centre - half), min(side, centre + half)]
    return Box(*ends)


def beta_sample(beta: float, generator: torch.Generator) -> float:
    """One value of the beta distribution with both parameters `beta`, in [0, 1].

    By rejection, from uniform values only (Cheng, Communications of the ACM 21, 1978, algorithm BA).

    Args:
        beta: Above 0; 1 is the uniform distribution.
        generator: A CPU generator.
    """
    total = 2 * beta
    spread = 1 / beta if beta <= 1 else math.sqrt((total - 2) / (2 * beta * beta - total))
    shift = beta + 1 / spread
    while True:
        first, second = (1 - torch.rand(2, generator=generator, dtype=torch.float64)).tolist()  # in (0, 1]
        if first == 1.0:
            continue
        tilt = spread * math.log(first / (1 - first))
        if tilt > 700:  # beyond what exp can take: the value is 1
            return 1.0
        weight = beta * math.exp(tilt)
        if total * math.log(total / (beta + weight)) + shift * tilt - math.log(4) >= math.log(first * first * second):
            return weight / (beta + weight)
