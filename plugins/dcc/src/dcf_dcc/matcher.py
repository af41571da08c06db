"""Dataset condensation with contrastive signals (Lee et al., ICML 2022)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

import dcf
from dcf.context import Chunk
from dcf.matching import class_gradients, freeze_batch_norms, gradient_distance, loops
from dcf_dcc.contrast import contrastive, joint_distance, mean_gradient, pull
from dcf_dcc.options import DCCConfig

__all__ = ["DCC"]

log = logging.getLogger(__name__)

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
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=1000, lr=0.1, momentum=0.5, init="random", iterations_small=40
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
        chunks = list(ctx.chunks())
        losses, means = [], []
        for chunk, share in _shares(chunks):
            wanted, found = self.gradients(ctx, net, chunk, step, create_graph=True)
            loss = gradient_distance(found, wanted, self.config.metric).sum()
            losses.append(loss.detach())
            means.append([[g.detach().mean(0) * share for g in side] for side in (wanted, found)])
            yield dcf.Step(loss, update=chunk.last, log=self.logged(losses, means) if chunk.last else {})

    def logged(self, losses: list[Tensor], means: list[list[list[Tensor]]]) -> dict[str, Tensor]:
        """Both distances of a class-wise step, from what its chunks had."""
        with torch.no_grad():
            wanted, found = (_sum(side) for side in zip(*means, strict=True))
            joint = joint_distance(found, wanted, self.config.metric)
        return {"class_wise": torch.stack(losses).sum(), "contrastive": joint}

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

        Where the classes make several chunks, the loss is differentiated chunk after chunk (see
        `dcf_dcc.contrast.pull`), so that only one chunk's graph is alive at a time.
        """
        chunks, metric = list(ctx.chunks()), self.config.metric
        logs = self.monitored(ctx, net, chunks, step)
        only = len(chunks) == 1
        means = [self.means(ctx, net, chunk, share, step, create_graph=only) for chunk, share in _shares(chunks)]
        wanted, found = (_sum(side) for side in zip(*means, strict=True))
        if only:
            loss = joint_distance(found, wanted, metric)
            yield dcf.Step(loss, log={"contrastive": loss.detach(), **logs})
            return
        loss, towards = pull(found, wanted, metric)
        for chunk, share in _shares(chunks):
            _, syn = self.images(ctx, chunk, step)
            part = mean_gradient(net, syn, ctx.synthetic_labels(chunk.classes), share, create_graph=True)
            change = torch.stack([(v * g).sum() for v, g in zip(towards, part, strict=True)]).sum()
            value = loss / len(chunks) + (change - change.detach())
            yield dcf.Step(value, update=chunk.last, log={"contrastive": loss, **logs} if chunk.last else {})

    def means(
        self, ctx: dcf.Context, net: dcf.NetworkState, chunk: Chunk, share: float, step: int, create_graph: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """A chunk's part in the class-averaged gradient of the real images, and in that of the synthetic ones."""
        real, syn = self.images(ctx, chunk, step)
        wanted = mean_gradient(net, real, ctx.labels(chunk.classes, real.shape[1]), share)
        return wanted, mean_gradient(net, syn, ctx.synthetic_labels(chunk.classes), share, create_graph)

    def monitored(self, ctx: dcf.Context, net: dcf.NetworkState, chunks: list[Chunk], step: int) -> dict[str, Tensor]:
        """The class-wise distance for the metrics, in those iterations that have it."""
        every = self.config.monitor_every
        if not every or ctx.it % every:
            return {}
        parts = [self.gradients(ctx, net, chunk, step, create_graph=False) for chunk in chunks]
        with torch.no_grad():
            sums = [gradient_distance(found, wanted, self.config.metric).sum() for wanted, found in parts]
        return {"class_wise": torch.stack(sums).sum()}


def _shares(chunks: list[Chunk]) -> list[tuple[Chunk, float]]:
    """Each chunk with its share of all classes."""
    classes = sum(len(chunk.classes) for chunk in chunks)
    return [(chunk, len(chunk.classes) / classes) for chunk in chunks]


def _sum(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Lists of gradients added up, weight by weight."""
    return [functools.reduce(torch.add, same) for same in zip(*parts, strict=True)]
