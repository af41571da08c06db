"""Images stored as low-rank factors (Yang et al., NeurIPS 2023)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dcf
from dcf_lowrank.budget import check_rank, images_for_budget, least_budget
from dcf_lowrank.factors import balanced_svd, noise_factors, rank_decode, variance_corrected
from dcf_lowrank.options import LowRankConfig

__all__ = ["LowRank"]

log = logging.getLogger(__name__)


class LowRank(dcf.Parameterization):
    """Store each channel of each image as two thin factors, X = A B, and learn those.

    At equal floats that makes HW / ((H + W) r) times as many images, all of rank r. `A (items, C, H, r)` and
    `B (items, C, r, W)` are all that is stored; nothing is shared by images, channels or classes. Both are learned by
    the same plain SGD, as published: there is no re-balancing of the two, and the same step size moves the images
    further than it would move pixels, the more so the larger the factors are.
    """

    Config = LowRankConfig

    defaults: ClassVar[Mapping[str, Any]] = {"init": "random"}

    # --- size ------------------------------------------------------------------------------------

    def plan(self, spec: dcf.DataSpec, floats: int) -> int:
        """How many images a class fit into a budget, by the rule that was chosen.

        Raises:
            BudgetError: When the rank costs more than pixels, or not even one image fits.
        """
        check_rank(spec.height, spec.width, self.config.r)
        if self.config.rule == "exact":
            return super().plan(spec, floats)
        settings = (spec.num_classes, spec.shape, self.config.r)
        least = least_budget(self.config.rule, *settings)
        if floats < least:
            raise dcf.BudgetError(
                f"the budget of {floats} floats ({4 * floats} bytes) holds no item a class by rule=reference, which "
                f"counts whole plain images; the smallest that works is {least} floats ({4 * least} bytes)"
            )
        return images_for_budget(self.config.rule, floats, *settings)

    def allocate(self, spec: dcf.DataSpec, item_class: Tensor) -> None:
        """Create the two factors, zero; no decomposition is needed to know their shapes."""
        self.set_layout(spec, item_class)
        items, r = len(item_class), self.config.r
        self.register_parameter("A", nn.Parameter(torch.zeros(items, spec.channels, spec.height, r)))
        self.register_parameter("B", nn.Parameter(torch.zeros(items, spec.channels, r, spec.width)))
        self.latent_names = ("A", "B")
        # A run plans on the meta device, several times perhaps, and then allocates once.
        if spec.space.kind == "zca" and not self.latents()["A"].is_meta:
            log.warning(
                "lowrank on whitened images: whitening removes the redundancy that low rank needs (of CIFAR10, rank 2 "
                "keeps 48 % of the energy instead of 82 %); consider data without it"
            )

    # --- images ----------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Factors of the best approximation of rank r of each channel."""
        a, b = balanced_svd(images, self.config.r)
        return {"A": a, "B": b}

    def decode(self, latents: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """The products A B."""
        return rank_decode(latents["A"], latents["B"])

    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from real images (`init=svd`) or from noise, which ignores the images.

        Raises:
            BudgetError: When the rank costs more than pixels.
        """
        height, width = images.shape[-2:]
        check_rank(height, width, self.config.r)
        if self.config.init == "svd":
            super().absorb(images, generator)
            return
        stored = self.latents()
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        a, b = noise_factors([tensor.shape for tensor in stored.values()], draw)
        if self.config.init == "scaled-noise":
            a, b = variance_corrected(a, b, self.config.sigma)
        with torch.no_grad():
            stored["A"].copy_(a)
            stored["B"].copy_(b)
