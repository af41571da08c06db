"""Dataset condensation with gradient matching (Zhao, Mopuri and Bilen, ICLR 2021, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch

import dcf
from dcf.matching import class_gradients, freeze_batch_norms, gradient_distance, loops
from dcf_dc.options import DCConfig

__all__ = ["DC"]

#: Images a class from which a row holds -> (matching steps a network, epochs of training between two of them).
#: The released table has 1, 10, 20, 30, 40 and 50; between two of them the smaller one's row is used, except that
#: any size above 1 trains its networks.
LOOPS = {1: (1, 1), 2: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class DC(dcf.Matcher):
    """Match the gradients of real and synthetic images, class by class.

    The loss is the sum over classes of the distance between the gradients of the mean cross-entropy of a real
    batch and of all synthetic images of the class. Between two matching steps the network is trained on the
    synthetic set; it is never trained after the last one.
    """

    Config = DCConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    shards: ClassVar[bool] = True
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(iterations=1000, lr=0.1, momentum=0.5, init="noise")

    def schedule(self, images_per_class: int) -> tuple[int, int]:
        """Matching steps a network and epochs between them, for a set of this size."""
        return loops(LOOPS, images_per_class, self.config.match_steps, self.config.net_epochs)

    def updates(self, ctx: dcf.Context) -> int:
        """Matching steps a network."""
        return self.schedule(ctx.images_per_class)[0]

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """One network: match, train, match, ..."""
        steps, epochs = self.schedule(ctx.images_per_class)
        net = ctx.network()
        for step in range(steps):
            yield from self.match(ctx, net, step)
            if step < steps - 1:
                net.train()
                ctx.train(net, epochs, self.config.lr_net, self.config.batch_train, step)

    def match(self, ctx: dcf.Context, net: dcf.NetworkState, step: int) -> Iterator[dcf.Step]:
        """One matching step: a loss for each chunk of classes, and one update after the last.

        Classes are disjoint in the synthetic set, so accumulating over chunks equals the joint sum, and only one
        chunk's graph is alive at a time.
        """
        freeze_batch_norms(ctx, net, self.config.bn_images, self.config.bn, step)
        for chunk in ctx.chunks():
            yield dcf.Step(self.loss(ctx, net, chunk.classes, step).sum(), update=chunk.last)

    def loss(self, ctx: dcf.Context, net: dcf.NetworkState, classes: torch.Tensor, step: int) -> torch.Tensor:
        """`(c,)` distances of the classes of a chunk."""
        real, syn = ctx.real(classes, self.config.batch_real, "match", step), ctx.synthetic(classes)
        real, syn = ctx.siamese(classes, real, syn, step)
        wanted = class_gradients(net, real, ctx.labels(classes, real.shape[1]))
        found = class_gradients(net, syn, ctx.synthetic_labels(classes), create_graph=True)
        return gradient_distance(found, wanted, self.config.metric)
