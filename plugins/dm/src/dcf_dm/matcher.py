"""Dataset condensation with distribution matching (Zhao and Bilen, WACV 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

import dcf
from dcf.matching import class_embedding_means
from dcf_dm.options import DMConfig

__all__ = ["DM", "mean_distance"]


def mean_distance(real: torch.Tensor, synthetic: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distance of class means (Zhao and Bilen, WACV 2023, eq. 4).

    Args:
        real: `(c, F)` mean embeddings of real images, constant.
        synthetic: `(c, F)` mean embeddings of synthetic images.

    Returns:
        `(c,)`, summed over features, not averaged over anything.
    """
    return (real - synthetic).square().sum(1)


class DM(dcf.Matcher):
    """Match the mean embedding of each class in freshly initialised networks that are never trained.

    The loss is summed over features and classes. A network without batch norms treats classes alone, chunk by
    chunk; one with batch norms sees all classes as one batch, real and synthetic apart, in training mode.
    """

    Config = DMConfig

    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    classwise: ClassVar[bool] = True
    shards: ClassVar[bool] = True
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(iterations=20000, lr=1.0, momentum=0.5, init="random")

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """One network, one update."""
        net = ctx.network()
        if net.batch_norms:  # every process computes the whole sum
            yield dcf.Step(self.loss(ctx, net, ctx.all_classes().classes).sum() / ctx.processes)
            return
        for chunk in ctx.chunks():
            yield dcf.Step(self.loss(ctx, net, chunk.classes).sum(), update=chunk.last)

    def loss(self, ctx: dcf.Context, net: dcf.NetworkState, classes: torch.Tensor) -> torch.Tensor:
        """`(c,)` distances of the classes of a chunk."""
        real, syn = ctx.real(classes, self.config.batch_real, "match"), ctx.synthetic(classes)
        real, syn = ctx.siamese(classes, real, syn)
        with torch.no_grad():
            wanted = class_embedding_means(net, real)
        return mean_distance(wanted, class_embedding_means(net, syn))
