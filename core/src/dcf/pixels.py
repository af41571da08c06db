"""The plain parameterization: every pixel is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from dcf.parameterization import Parameterization

__all__ = ["Pixels"]


class Pixels(Parameterization):
    """Store the images themselves, one float a pixel, in the dataset's value space."""

    lossless: ClassVar[bool] = True

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """The images."""
        return {"images": images}

    def decode(self, latents: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The images."""
        return latents["images"]
