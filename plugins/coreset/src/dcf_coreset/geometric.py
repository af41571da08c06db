"""Selectors that compare the images of a class by their features: `herding`, `k-center`, `k-means`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcf.data import RealData
from dcf_coreset.network import plan_of, trained_network
from dcf_coreset.options import FeatureConfig, KCenterConfig
from dcf_coreset.ordering import herding_order, k_center_order, k_means_order
from dcf_coreset.selection import Coreset, Ranking, record_of

__all__ = ["Geometric", "Herding", "KCenter", "KMeans"]


class Geometric(Coreset):
    """Base: an order of one class's images that follows from their features."""

    Config = FeatureConfig

    def order(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`(count,)` rows of `features` `(n, F)`, in the order taken."""
        raise NotImplementedError

    def prepare(self, data: RealData, generator: torch.Generator) -> tuple[Ranking, dict[str, Any]]:
        """Rank by features, which are those of one class at a time."""
        if self.config.features == "raw":
            return (lambda m, k: self.order(data.train.images(m).flatten(1), k, generator)), {"source": "raw"}
        plan = plan_of(self.config, len(data.train))
        net = trained_network(data, plan)
        told = record_of(plan, [net.sha256], [net.accuracy])
        return (lambda m, k: self.order(net.embed(data.train, m), k, generator)), told


class Herding(Geometric):
    """Greedily keep the mean of the chosen images at the mean of the class; uses no randomness of the run."""

    def order(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `herding_order`."""
        return herding_order(features, count)


class KCenter(Geometric):
    """Farthest-first: each image is the one farthest from those chosen before."""

    Config = KCenterConfig

    def order(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `k_center_order`."""
        if self.config.start == "random":
            first = torch.randint(len(features), (1,), generator=generator)
        else:
            first = herding_order(features, 1)
        return k_center_order(features, count, first)


class KMeans(Geometric):
    """The image nearest to the centre of each of as many clusters as images are wanted."""

    def order(self, features: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """See `k_means_order`."""
        return k_means_order(features, count, int(torch.randint(2**31, (1,), generator=generator)))
