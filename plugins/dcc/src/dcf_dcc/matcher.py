"""Dataset condensation with contrastive signals (Lee et al., ICML 2022)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

import dcf
from dcf.context import Chunk
from dcf.matching import class_gradients, freeze_batch_norms, gradient_distance, loops
from dcf_dcc.contrast import contrastive, joint_distance, mean_gradient_parts, pull
from dcf_dcc.options import DCCConfig

__all__ = ["DCC"]

log = logging.getLogger(__name__)

#: Summands of a gradient that is an average over classes, each one tensor for each weight.
Parts = list[list[Tensor]]

#: Images a class from which a row holds -> (matching steps a network, epochs of training between two of them).
#: The released table has 1, 10, 20, 30, 40 and 50. Unlike that of gradient matching, it trains networks at 1, too.
LOOPS = {1: (10, 5), 2: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class DCC(dcf.Matcher):
    """Match the gradients of real and synthetic images averaged over classes, so that classes contrast.

    The loss is the distance between two gradients, each the mean over classes of the gradient of a class's mean
    cross-entropy. During a warm-up it is the sum over classes of the distances of each class's own gradients.
    Between two matching steps the network is trained on the synthetic set; it is never trained after the last one.
    """

    Config = DCCConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    shards: ClassVar[bool] = True
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=1000, lr=0.1, momentum=0.5, init="random", iterations_small=30
    )

    def schedule(self, images_per_class: int) -> tuple[int, int]:
        """Matching steps a network and epochs between them, for a set of this size."""
        return loops(LOOPS, images_per_class, self.config.match_steps, self.config.net_epochs)

    def updates(self, ctx: dcf.Context) -> int:
        """Matching steps a network."""
        return self.schedule(ctx.images_per_class)[0]

    def warmup(self, iterations: int) -> int:
        """Networks that begin class-wise, in a run of this many iterations."""
        return iterations // 4 if self.config.outer_warmup == "auto" else int(self.config.outer_warmup)

    def prepare(self, ctx: dcf.Context) -> None:
        """Say so when no step of the run would be contrastive."""
        steps, _ = self.schedule(ctx.images_per_class)
        last = ctx.iterations - 1
        if last >= 0 and not contrastive(last, steps - 1, self.warmup(ctx.iterations), self.config.inner_warmup):
            log.warning(
                "dcc: all %d iterations lie within the warm-up (outer_warmup=%d, inner_warmup=%d of %d steps), so only "
                "the class-wise loss is used; for the contrastive one take --matcher dcc:outer_warmup=auto or more "
                "--iterations",
                ctx.iterations, self.warmup(ctx.iterations), self.config.inner_warmup, steps,
            )  # fmt: skip

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """One network: match, train, match, ..."""
        steps, epochs = self.schedule(ctx.images_per_class)
        outer_warmup = self.warmup(ctx.iterations)
        net = ctx.network()
        for step in range(steps):
            freeze_batch_norms(ctx, net, self.config.bn_images, self.config.bn, step)
            joint = contrastive(it, step, outer_warmup, self.config.inner_warmup)
            yield from (self.contrast if joint else self.class_wise)(ctx, net, step)
            if step < steps - 1:
                net.train()
                ctx.train(net, epochs, self.config.lr_net, self.config.batch_train, step)

    # --- class-wise ------------------------------------------------------------------------------

    def class_wise(self, ctx: dcf.Context, net: dcf.NetworkState, step: int) -> Iterator[dcf.Step]:
        """A matching step of the warm-up: a loss for each chunk of classes, and one update after the last.

        Both distances are logged; the contrastive one costs next to nothing here.
        """
        losses, means = [], []
        for chunk, share in _shares(ctx):
            wanted, found = self.gradients(ctx, net, chunk, step, create_graph=True)
            loss = gradient_distance(found, wanted, self.config.metric).sum()
            losses.append(loss.detach())
            means.append([[[g.detach().mean(0) * share for g in side]] for side in (wanted, found)])
            yield dcf.Step(loss, update=chunk.last, log=self.logged(ctx, losses, means) if chunk.last else {})

    def logged(self, ctx: dcf.Context, losses: list[Tensor], means: Sequence[Sequence[Parts]]) -> dict[str, Tensor]:
        """Both distances of a class-wise step, from what its chunks had."""
        with torch.no_grad():
            wanted, found = (ctx.sum_over_processes(_joined(side)) for side in zip(*means, strict=True))
            joint = joint_distance(found, wanted, self.config.metric)
        return {"class_wise": ctx.sum_over_processes([[loss] for loss in losses])[0], "contrastive": joint}

    def gradients(
        self, ctx: dcf.Context, net: dcf.NetworkState, chunk: Chunk, step: int, create_graph: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients `(c, *weight.shape)` of the real and of the synthetic images of each class of a chunk."""
        real, syn = self.images(ctx, chunk, step)
        wanted = class_gradients(net, real, ctx.labels(chunk.classes, real.shape[1]))
        labels = ctx.synthetic_labels(chunk.classes)
        return wanted, class_gradients(net, syn, labels, create_graph=create_graph)

    def images(self, ctx: dcf.Context, chunk: Chunk, step: int) -> tuple[Tensor, Tensor]:
        """Real `(c, B, C, H, W)` and synthetic `(c, I, C, H, W)` images, augmented with one draw a class."""
        real, syn = ctx.real(chunk.classes, self.config.batch_real, "match", step), ctx.synthetic(chunk.classes)
        return ctx.siamese(chunk.classes, real, syn, step)

    # --- contrastive -----------------------------------------------------------------------------

    def contrast(self, ctx: dcf.Context, net: dcf.NetworkState, step: int) -> Iterator[dcf.Step]:
        """A contrastive matching step: one loss for all classes together, and one update.

        The loss is differentiated chunk after chunk (see `dcf_dcc.contrast.pull`), so that only one chunk's graph is
        alive at a time, and each process needs that of its own classes only.
        """
        shares, metric = _shares(ctx), self.config.metric
        logs, whole = self.monitored(ctx, net, step), len(shares) == 1
        means = [self.means(ctx, net, chunk, share, step, create_graph=whole) for chunk, share in shares]
        wanted, found = (ctx.sum_over_processes(_joined(side)) for side in zip(*means, strict=True))
        loss, towards = pull(found, wanted, metric)
        for (chunk, share), (_, parts) in zip(shares, means, strict=True):
            if not whole:
                _, syn = self.images(ctx, chunk, step)
                parts = mean_gradient_parts(net, syn, ctx.synthetic_labels(chunk.classes), share, create_graph=True)
            products = [(v * g).sum() for part in parts for v, g in zip(towards, part, strict=True)]
            change = torch.stack(products).sum()
            value = loss * share + (change - change.detach())
            yield dcf.Step(value, update=chunk.last, log={"contrastive": loss, **logs} if chunk.last else {})

    def means(
        self, ctx: dcf.Context, net: dcf.NetworkState, chunk: Chunk, share: float, step: int, create_graph: bool
    ) -> tuple[Parts, Parts]:
        """A chunk's parts of the class-averaged gradient of the real images, and of that of the synthetic ones."""
        real, syn = self.images(ctx, chunk, step)
        wanted = mean_gradient_parts(net, real, ctx.labels(chunk.classes, real.shape[1]), share)
        labels = ctx.synthetic_labels(chunk.classes)
        return wanted, mean_gradient_parts(net, syn, labels, share, create_graph)

    def monitored(self, ctx: dcf.Context, net: dcf.NetworkState, step: int) -> dict[str, Tensor]:
        """The class-wise distance for the metrics, in those iterations that have it."""
        every = self.config.monitor_every
        if not every or ctx.it % every:
            return {}
        parts = [self.gradients(ctx, net, chunk, step, create_graph=False) for chunk in ctx.chunks()]
        with torch.no_grad():
            sums = [gradient_distance(found, wanted, self.config.metric).sum() for wanted, found in parts]
        return {"class_wise": ctx.sum_over_processes([[one] for one in sums])[0]}


def _shares(ctx: dcf.Context) -> list[tuple[Chunk, float]]:
    """Each chunk of this process with its share of all classes that have images."""
    classes = ctx.classes_with_images
    return [(chunk, len(chunk.classes) / classes) for chunk in ctx.chunks()]


def _joined(parts: Sequence[Parts]) -> Parts:
    """The parts of several chunks, in order."""
    return [part for several in parts for part in several]
