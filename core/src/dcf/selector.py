"""Selectors: which images the synthetic set starts from, and what a coreset keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dcf.config import Config as BaseConfig

if TYPE_CHECKING:
    from dcf.data.real import RealData

__all__ = ["Noise", "Random", "Selector"]


class Selector:
    """Base of selectors.

    Most pick real images and implement `indices`; a generator of artificial images overrides `images` instead.

    Attributes:
        record: What the file and every report shall say about how the images were chosen, such as the network whose
            features were compared, how it was trained, and a hash of it. Set by `indices` or `images`; JSON-ready,
            a function of the arguments alone, empty where the options say everything.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    #: Whether the images are real ones, so that the selection is a coreset.
    real: ClassVar[bool] = True

    def __init__(self, config: BaseConfig | None = None) -> None:
        self.config: Any = config if config is not None else self.Config()
        self.record: Mapping[str, Any] = {}

    def indices(self, data: RealData, view_class: Tensor, generator: torch.Generator) -> Tensor:
        """Pick one training image for each view.

        Args:
            data: The real data.
            view_class: `(views,)` class wanted at each place.
            generator: The only source of randomness.

        Returns:
            `(views,)` indices into `data.train`, of images of those classes.
        """
        raise NotImplementedError

    def images(self, data: RealData, view_class: Tensor, generator: torch.Generator) -> Tensor:
        """`(views, C, H, W)` images in the dataset's value space, one for each view."""
        return data.train.images(self.indices(data, view_class, generator))


class Random(Selector):
    """Real images of each class, uniformly without replacement; a class that runs out starts again."""

    def indices(self, data: RealData, view_class: Tensor, generator: torch.Generator) -> Tensor:
        """Pick uniformly within each class."""
        most = int(torch.bincount(view_class, minlength=1).max()) if len(view_class) else 0
        table = data.train.sample(max(most, 1), generator)
        return table[view_class, _rank_within_class(view_class)]


class Noise(Selector):
    """Standard normal values in the dataset's value space (Zhao et al., ICLR 2021, initialisation)."""

    real: ClassVar[bool] = False

    def images(self, data: RealData, view_class: Tensor, generator: torch.Generator) -> Tensor:
        """Draw every value independently."""
        noise = torch.randn(len(view_class), *data.spec.shape, generator=generator)
        return noise.to(data.train.device)


def _rank_within_class(view_class: Tensor) -> Tensor:
    """`(views,)`: how many earlier views have the same class."""
    order = torch.argsort(view_class, stable=True)
    ordered = view_class[order]
    first = torch.searchsorted(ordered, ordered)
    rank = torch.empty_like(view_class)
    rank[order] = torch.arange(len(view_class), device=view_class.device) - first
    return rank
