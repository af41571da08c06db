"""The parameterization `thumbnail`."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch.nn import functional as F

import dcf


class Thumbnail(dcf.Parameterization):
    """Store each image as a k x k thumbnail; k*k/(H*W) of the pixel budget."""

    class Config(dcf.Config):
        """Options of `thumbnail`."""

        k: int = Field(ge=1, description="side of a thumbnail, in pixels")

    def encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Average-pool `(N, C, H, W)` images to `{"thumbnails": (N, C, k, k)}`; same value range."""
        return {"thumbnails": F.adaptive_avg_pool2d(images, self.config.k)}

    def decode(self, latents: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Upsample bilinearly to `(N, C, *size)`; same value range as the latents."""
        return F.interpolate(latents["thumbnails"], size=size, mode="bilinear")
