"""Common corruptions of images, made on the spot: nothing is downloaded.

They follow Hendrycks and Dietterich (ICLR 2019) in kind and roughly in strength; they are not their files, and numbers
are not to be set beside those of CIFAR-10-C.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dcf_scores.options import Corruption

__all__ = ["CORRUPTIONS", "SEVERITIES", "corrupt"]

#: From `(N, C, H, W)` pixels in [0, 1], a strength and a CPU generator to such pixels, not yet cut off.
_Corrupt: TypeAlias = "Callable[[Tensor, float, torch.Generator], Tensor]"

#: Strength at severities 1 to 5; what it is stands with each function.
SEVERITIES: Final[Mapping[Corruption, tuple[float, ...]]] = MappingProxyType(
    {
        "gaussian-noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "shot-noise": (500, 250, 100, 75, 50),
        "impulse-noise": (0.01, 0.02, 0.03, 0.05, 0.07),
        "blur": (0.4, 0.6, 0.8, 1.0, 1.2),
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
        "pixelate": (0.9, 0.6, 0.5, 0.4, 0.25),
        "jpeg": (80, 65, 50, 40, 25),
    }
)


def corrupt(pixels: Tensor, kind: Corruption, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupted images.

    Args:
        pixels: `(N, C, H, W)` in [0, 1].
        kind: Which corruption.
        severity: 1 to 5.
        generator: A CPU generator; only the noises draw from it.

    Returns:
        `(N, C, H, W)` in [0, 1], on the device of `pixels`.
    """
    return CORRUPTIONS[kind](pixels, SEVERITIES[kind][severity - 1], generator).clamp(0, 1)


def _gaussian(pixels: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return pixels + std * torch.randn(pixels.shape, generator=generator).to(pixels)


def _shot(pixels: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """As if each pixel counted photons, so many where it is white."""
    return (torch.poisson(pixels.cpu() * photons, generator) / photons).to(pixels)


def _impulse(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of all values becomes black or white, half each."""
    u = torch.rand(pixels.shape, generator=generator).to(pixels)
    return torch.where(u < share / 2, 0.0, torch.where(u > 1 - share / 2, 1.0, pixels))


def _blur(pixels: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """A Gaussian of `sigma` pixels where the smaller side has 32, in proportion elsewhere; borders are repeated."""
    sigma = sigma * min(pixels.shape[-2:]) / 32
    reach = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(pixels) / sigma).square())
    weights = weights / weights.sum()
    channels = pixels.shape[1]
    across = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    padded = F.pad(pixels, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, across, groups=channels), across.mT, groups=channels)


def _contrast(pixels: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Nearer to the mean of each channel of the image."""
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    return mean + factor * (pixels - mean)


def _brightness(pixels: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    return pixels + shift


def _pixelate(pixels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shrunk to a share of each side, smoothly, and enlarged again to blocks."""
    height, width = pixels.shape[-2:]
    size = max(1, round(height * share)), max(1, round(width * share))
    small = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(height, width), mode="nearest-exact")


def _jpeg(pixels: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    """Through a JPEG file of this quality; three channels as colours, others each for itself."""
    images = (pixels.cpu() * 255).round().to(torch.uint8)
    n, channels, height, width = images.shape
    planes = images if channels == 3 else images.reshape(n * channels, 1, height, width)
    decoded = [_through_jpeg(plane.permute(1, 2, 0).numpy(), int(quality)) for plane in planes]
    stacked = torch.from_numpy(np.stack(decoded)).reshape(len(planes), height, width, -1).permute(0, 3, 1, 2)
    return (stacked.reshape(n, channels, height, width).float() / 255).to(pixels)


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


CORRUPTIONS: Final[Mapping[Corruption, _Corrupt]] = MappingProxyType(
    {
        "gaussian-noise": _gaussian,
        "shot-noise": _shot,
        "impulse-noise": _impulse,
        "blur": _blur,
        "contrast": _contrast,
        "brightness": _brightness,
        "pixelate": _pixelate,
        "jpeg": _jpeg,
    }
)
