"""A dataset under texture that tells nothing about the class: what a method makes of faint signal."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dcf.data.base import LabelledPixels, real_data, value_space
from dcf.data.derived import DerivedDataset
from dcf.data.options import NuisanceConfig
from dcf.data.real import RealData, Split
from dcf.errors import DataError
from dcf.seeding import generator

__all__ = ["Nuisance", "blend", "fit_background", "fit_base"]

#: Images that are blended in one piece.
_PIECE = 4096


class Nuisance(DerivedDataset):
    """`signal * base + weight * background`, the same few backgrounds for every class, train and test.

    Images rest as float32, since a faint signal is less than a step of 8 bits.
    """

    Config = NuisanceConfig

    name: ClassVar[str] = "nuisance"

    def load(self) -> RealData:
        """Load both datasets and lay one over the other.

        Raises:
            DataError: When one cannot be loaded, or their channels do not go together.
        """
        base = self.load_part("base")
        texture = self.load_part("background")
        backgrounds = self._backgrounds(texture.train)
        train, test = (self._blended(getattr(base, part), backgrounds, part) for part in ("train", "test"))
        space = value_space(train.pixels, self.config.norm, self.config.mean, self.config.std)
        source = f"{base.source}; backgrounds: {texture.source}"
        return real_data(train, test, base.spec.classes, space, self.id, source, base.hints)

    def _backgrounds(self, split: Split) -> Tensor:
        """`(P, C, H, W)` pixels in [0, 1]; one for mode `fixed`, which is the first of every pool."""
        count = 1 if self.config.mode == "fixed" else self.config.pool
        if count > len(split):
            raise DataError(f"background of {self.name}: a pool of {count} images, but there are {len(split)}")
        order = torch.randperm(len(split), generator=generator(self.config.seed, "nuisance backgrounds"))
        return _pixels(split, order[:count])

    def _blended(self, split: Split, backgrounds: Tensor, part: str) -> LabelledPixels:
        shape = common_shape(split.shape, _shape(backgrounds))
        textures = fit_background(backgrounds, shape).mul_(self.config.weight)
        draw = generator(self.config.seed, "nuisance", part)
        which = torch.randint(len(textures), (len(split),), generator=draw)
        pixels = torch.empty(len(split), *shape)
        for start in range(0, len(split), _PIECE):
            piece = torch.arange(start, min(start + _PIECE, len(split)))
            images = fit_base(_pixels(split, piece), shape)
            pixels[start : start + _PIECE] = blend(images, textures[which[piece]], self.config.signal)
        return LabelledPixels(pixels, split.labels)


def blend(images: Tensor, textures: Tensor, signal: float) -> Tensor:
    """`signal * images + textures`, in float32.

    Args:
        images: `(N, C, H, W)` pixels in [0, 1].
        textures: `(N, C, H, W)` pixels that are added.
        signal: Weight of `images`.
    """
    return textures.add(images, alpha=signal)


def common_shape(base: tuple[int, int, int], background: tuple[int, int, int]) -> tuple[int, int, int]:
    """`(C, H, W)` that both can be brought to: the larger of each; grey goes with anything.

    Raises:
        DataError: When neither is grey and their numbers of channels differ.
    """
    if base[0] != background[0] and 1 not in (base[0], background[0]):
        raise DataError(
            f"the base of nuisance has {base[0]} channels, the background {background[0]}; "
            "take data with as many, or grey ones"
        )
    channels, height, width = map(max, base, background)
    return channels, height, width


def fit_base(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Grey repeated to all channels, and a black margin around smaller images, the odd pixel right and below.

    Args:
        images: `(N, C, H, W)` pixels, no larger than `shape`.
        shape: `(C, H, W)` wanted.
    """
    channels, height, width = shape
    above, left = (height - images.shape[2]) // 2, (width - images.shape[3]) // 2
    margin = (left, width - images.shape[3] - left, above, height - images.shape[2] - above)
    return functional.pad(images.expand(-1, channels, -1, -1), margin)


def fit_background(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Grey repeated to all channels, and smaller images stretched bilinearly.

    Args:
        images: `(P, C, H, W)` pixels, no larger than `shape`.
        shape: `(C, H, W)` wanted.
    """
    channels, *size = shape
    images = images.expand(-1, channels, -1, -1).clone()
    if list(images.shape[2:]) == size:
        return images
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _pixels(split: Split, index: Tensor) -> Tensor:
    """Images by number `(n,)` as float32 pixels in [0, 1], not normalised."""
    return split.store.take(index).float() / split.levels


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return channels, height, width
