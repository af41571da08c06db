"""Images as mixtures of bases that all classes share (Deng and Russakovsky, NeurIPS 2022)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

import dcf
from dcf_memory.bases import addresses_of, basis_size, best_bases, enlarge, recall, xavier
from dcf_memory.options import MemoryConfig

__all__ = ["Memory"]

log = logging.getLogger(__name__)

#: A budget that is refused only by what would refuse any.
_ENDLESS: Final = 2**48


class Memory(dcf.Parameterization):
    """Store K bases for all classes together, and of each image the K numbers by which it mixes them.

    `bases (K, C, h, w)` are `down` times smaller than images along each axis, the mixture is enlarged bilinearly;
    `addresses (items, K)`, one row an image, class after class. A further image costs K floats however large it is.
    Labels are fixed: of an address, the class it was made for.

    With a parameterization on its left, that one stores the bases, as K canvases of the small size which belong to
    no class; then `bases` counts its items, and each canvas it decodes is a basis.
    """

    Config = MemoryConfig

    stackable: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"init": "random"}

    #: Absent where a left one stores them.
    bases: nn.Parameter
    addresses: nn.Parameter

    def __init__(self, config: dcf.Config | None = None, inner: dcf.Parameterization | None = None) -> None:
        super().__init__(config, inner)
        if inner is not None and "labels" in inner.drives:
            raise dcf.UsageError(
                f"memory keeps its bases in the parameterization on its left, and bases have no labels to be learned; "
                f"{type(inner).__name__} learns labels: put it to the right of memory"
            )

    # --- size ------------------------------------------------------------------------------------

    def plan(self, spec: dcf.DataSpec, floats: int) -> int:
        """How many images a class fit into a budget, beside the bases.

        Raises:
            BudgetError: When not even one fits, or what is on the left refuses to store canvases of this size.
        """
        if self.inner is not None:
            height, width = basis_size((spec.height, spec.width), self.config.down)
            self.inner.plan(replace(spec, height=height, width=width), _ENDLESS)
        return super().plan(spec, floats)

    def inner_classes(self, item_class: Tensor) -> Tensor:
        """The left one stores bases, which belong to no class; it is told class 0 of each."""
        return item_class.new_zeros(self.config.bases)

    def allocate(self, spec: dcf.DataSpec, item_class: Tensor) -> None:
        """Create addresses and bases, zero; with a left one, that creates its own."""
        self.set_layout(spec, item_class)
        height, width = basis_size((spec.height, spec.width), self.config.down)
        count = self.config.bases
        if self.inner is None:
            empty = torch.zeros(count, spec.channels, height, width)
            self.register_parameter("bases", nn.Parameter(empty))
        else:
            self.inner.allocate(replace(spec, height=height, width=width), self.inner_classes(item_class))
            count = len(self.inner.view_class)
        self.register_parameter("addresses", nn.Parameter(torch.zeros(len(item_class), count)))
        self.latent_names = ("addresses",)

    # --- images ----------------------------------------------------------------------------------

    def stored_bases(self) -> Tensor:
        """`(K, C, h, w)`: the bases, differentiable; decoded by the left parameterization where there is one."""
        if self.inner is None:
            return self.bases
        return self.inner.images(torch.arange(self.addresses.shape[1], device=self.item_class.device))

    def images(self, index: Tensor) -> Tensor:
        """Mixtures of the bases, enlarged to images.

        Args:
            index: `(N,)` view numbers.

        Returns:
            `(N, C, H, W)` in the dataset's value space.
        """
        return recall(self.addresses[index], self.stored_bases(), self.config.down, (self.shape[1], self.shape[2]))

    @torch.no_grad()
    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from real images (`init=images`) or from noise, which ignores the images.

        Where the images have fewer directions than there are bases, the remaining bases start from noise and no
        address makes use of them yet, so that both can be learned.
        """
        _, channels, height, width = images.shape
        shape = (channels, *basis_size((height, width), self.config.down))
        self._warn_if_wasteful(shape)
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        items, count = self.addresses.shape
        addresses = xavier(items, count, draw).to(images)
        bases = xavier(count, shape[0] * shape[1] * shape[2], draw).to(images).view(count, *shape)
        if self.config.init == "images":
            best = best_bases(images, count, self.config.down)
            bases[: len(best)] = best
        if self.inner is None:
            self.bases.copy_(bases)
        else:
            self.inner.absorb(bases, draw)
        if self.config.init == "images":
            addresses = addresses_of(images, enlarge(self.stored_bases(), self.config.down, (height, width)))
        self.addresses.copy_(addresses)

    def absorb_labels(self, labels: Tensor) -> None:
        """Refuse: labels are fixed, and those of the left one would be labels of bases.

        Raises:
            UsageError: Always.
        """
        raise dcf.UsageError("memory has fixed labels; expected learned ones, such as --labels soft")

    def _warn_if_wasteful(self, shape: tuple[int, int, int]) -> None:
        count, values = self.addresses.shape[1], shape[0] * shape[1] * shape[2]
        if count > values:
            log.warning(
                "memory stores %d bases of %d values each (%s); %d are enough for every image of that size, and make "
                "room for more: consider memory:bases=%d",
                count,
                values,
                " x ".join(map(str, shape)),
                values,
                values,
            )

    # --- learning --------------------------------------------------------------------------------

    def param_groups(self) -> list[dcf.ParamGroup]:
        """`bases` and `addresses`, both with the run's step size; what a left one calls `images` are the bases."""
        if self.inner is None:
            groups = [dcf.ParamGroup("bases", [self.bases])]
        else:
            groups = [
                replace(group, name="bases") if group.name == "images" else group for group in self.inner.param_groups()
            ]
        return [*groups, dcf.ParamGroup("addresses", [self.addresses])]
