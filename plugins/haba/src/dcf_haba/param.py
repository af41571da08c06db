"""Bases, and the hallucinators that make images of them (Liu et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

import dcf
from dcf_haba.adversary import Adversary
from dcf_haba.hallucinators import NAMES, Sizes, Styles, around_identity, as_layers, hallucinate
from dcf_haba.options import HabaConfig

__all__ = ["Haba"]

#: A budget that is refused only by what would refuse any.
_ENDLESS: Final = 2**48


class Haba(dcf.Parameterization):
    """Store a basis an item, and S hallucinators that all classes share; each pair of the two is a view.

    View v is what hallucinator v mod S makes of basis v div S, so the S images of a basis follow each other. An epoch
    shows each basis once, in the version of a random hallucinator: of its own in evaluation, of one for the whole
    mini-batch in a matcher's inner training.

    With a parameterization on its left, that one stores the bases, and each image that it decodes is a basis.
    """

    Config = HabaConfig

    stackable: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"init": "random"}

    #: Absent where a left one stores them.
    bases: nn.Parameter

    def __init__(self, config: dcf.Config | None = None, inner: dcf.Parameterization | None = None) -> None:
        super().__init__(config, inner)
        self._spec: dcf.DataSpec | None = None
        if inner is not None and "labels" in inner.drives:
            raise dcf.UsageError(
                "haba makes several images of each basis that the parameterization on its left stores, and "
                f"{type(inner).__name__} learns one label for each: put it to the right of haba"
            )

    # --- size ------------------------------------------------------------------------------------

    @property
    def spec(self) -> dcf.DataSpec:
        """What its images look like."""
        if self._spec is None:
            raise RuntimeError("Haba was used before allocate")
        return self._spec

    def sizes(self, spec: dcf.DataSpec) -> Sizes:
        """Shapes of the hallucinators.

        Raises:
            UsageError: When the kernel is larger than an image.
        """
        config, (channels, height, width) = self.config, spec.shape
        if config.kernel > min(height, width):
            raise dcf.UsageError(
                f"haba: kernel={config.kernel} does not fit into images of {height} x {width}; "
                f"expected at most {min(height, width)}"
            )
        middle = channels if config.middle == "auto" else config.middle
        return Sizes(
            config.styles, self._basis_spec(spec).channels, middle, channels, config.kernel, height, width
        )  # fmt: skip

    def _basis_spec(self, spec: dcf.DataSpec) -> dcf.DataSpec:
        """What a basis looks like; one of a single channel is in no value space of the data."""
        if self.config.basis == "full":
            return spec
        return replace(spec, channels=1, space=dcf.ValueSpace.unit(1))

    def plan(self, spec: dcf.DataSpec, floats: int) -> int:
        """How many bases a class fit into a budget, beside the hallucinators.

        Raises:
            BudgetError: When not even one fits, or what is on the left refuses to store bases of this size.
        """
        if self.inner is not None:
            self.inner.plan(self._basis_spec(spec), _ENDLESS)
        return super().plan(spec, floats)

    def allocate(self, spec: dcf.DataSpec, item_class: Tensor) -> None:
        """Create bases and hallucinators, zero; with a left one, that creates the bases."""
        self.set_layout(spec, item_class)
        self._spec, basis = spec, self._basis_spec(spec)
        sizes = self.sizes(spec)
        if self.inner is None:
            self.register_parameter("bases", nn.Parameter(torch.zeros(len(item_class), *basis.shape)))
            self.latent_names = ("bases",)
        else:
            self.inner.allocate(basis, self.inner_classes(item_class))
        for name, tensor in zip(NAMES, sizes.zeros(), strict=True):
            self.register_parameter(name, nn.Parameter(tensor))

    # --- views -----------------------------------------------------------------------------------

    @property
    def basis_class(self) -> Tensor:
        """`(bases,)` class of each."""
        return self.item_class if self.inner is None else self.inner.view_class

    @property
    def view_class(self) -> Tensor:
        """`(bases S,)` class of each image, those of a basis one after the other."""
        return self.basis_class.repeat_interleave(self.config.styles)

    def styles(self) -> Styles:
        """The stored tensors of the hallucinators."""
        return Styles(*(getattr(self, name) for name in NAMES))

    def images(self, index: Tensor) -> Tensor:
        """What hallucinators make of bases.

        Args:
            index: `(N,)` view numbers.

        Returns:
            `(N, C, H, W)` in the dataset's value space.
        """
        basis, style = index // self.config.styles, index % self.config.styles
        bases = self.bases[basis] if self.inner is None else self.inner.images(basis)
        return hallucinate(bases, Styles(*(tensor[style] for tensor in self.styles())))

    # --- epochs ----------------------------------------------------------------------------------

    @property
    def epoch_length(self) -> int:
        """The number of bases, not of images."""
        return len(self.basis_class) if self.inner is None else self.inner.epoch_length

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Every basis once, each in the version of a random hallucinator: `(bases,)` indices."""
        order = self._order(generator) if self.inner is None else self.inner.epoch(generator)
        return self._shown(order, torch.randint(self.config.styles, order.shape, generator=generator))

    def inner_epoch(self, generator: torch.Generator, batch: int) -> Tensor:
        """Every basis once, all of a mini-batch in the version of one random hallucinator: `(bases,)` indices."""
        order = self._order(generator) if self.inner is None else self.inner.inner_epoch(generator, batch)
        drawn = torch.randint(self.config.styles, (-(-len(order) // batch),), generator=generator)
        return self._shown(order, drawn.repeat_interleave(batch)[: len(order)])

    def _order(self, generator: torch.Generator) -> Tensor:
        return torch.randperm(len(self.basis_class), generator=generator)

    def _shown(self, order: Tensor, style: Tensor) -> Tensor:
        return (order.cpu() * self.config.styles + style).to(self.item_class.device)

    # --- starting values -------------------------------------------------------------------------

    @torch.no_grad()
    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Start bases from real images, of the S that are given for each basis the first one; hallucinators from noise.

        A basis of a single channel starts from the mean over the channels.
        """
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        bases = images[:: self.config.styles]
        if self.config.basis == "single":
            bases = bases.mean(1, keepdim=True)
        if self.inner is None:
            self.bases.copy_(bases)
        else:
            self.inner.absorb(bases, draw)
        begin = as_layers if self.config.init == "layers" else around_identity
        for stored, start in zip(self.styles(), begin(self.sizes(self.spec), draw), strict=True):
            stored.copy_(start)

    # --- learning --------------------------------------------------------------------------------

    def param_groups(self) -> list[dcf.ParamGroup]:
        """`bases` and `hallucinators`, both with the run's step size; what a left one calls `images` are the bases."""
        if self.inner is None:
            groups = [dcf.ParamGroup("bases", [self.bases])]
        else:
            groups = [
                replace(group, name="bases") if group.name == "images" else group for group in self.inner.param_groups()
            ]
        return [*groups, dcf.ParamGroup("hallucinators", list(self.styles()))]

    def aux(self) -> list[dcf.AuxiliaryObjective]:
        """The adversary, unless it is left out, beside the objectives of the left one."""
        return [*super().aux(), *([Adversary(self)] if self.config.adversarial else [])]
