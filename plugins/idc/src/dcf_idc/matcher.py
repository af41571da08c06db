"""Matching with networks that learn from the real data meanwhile (Kim et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

import dcf
from dcf.context import Chunk
from dcf.seeding import generator
from dcf.sending import send
from dcf.session import make_augmenter
from dcf_idc.distance import feature_loss, gradient_loss
from dcf_idc.options import IDCConfig
from dcf_idc.pool import pretrained
from dcf_idc.training import Trainee

__all__ = ["IDC", "portions"]


class IDC(dcf.Matcher):
    """Match gradients, or mean features, of the real and the synthetic images of a class.

    In each iteration a new network is matched again and again. Between two matching steps it is trained on the real
    data, with strong augmentation: on the synthetic set, gradients would soon vanish and tell nothing (section 3). The
    set moves after every class.
    """

    Config = IDCConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    classwise: ClassVar[bool] = True
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=2000, lr=5e-3, momentum=0.5, init="random", iterations_small=20
    )
    advice: ClassVar[str] = (
        "lower the step size (--lr) or that of the networks (--set matcher.lr_net=0.001), or clip the gradients "
        "(--clip), and start again"
    )

    def __init__(self, config: IDCConfig | None = None) -> None:
        super().__init__(config)
        # An update after every class is serial; processes can share what is matched before one of all classes.
        self.shards = self.config.classes_per_update == "all"
        self.pool: list[Mapping[str, Tensor]] = []
        self._augmenter: dcf.Augmenter | None = None

    # --- the run -----------------------------------------------------------------------------------

    def lr_factor(self, ctx: dcf.Context) -> float:
        """Ipc / 10 times the area of an image over that for which the step size is meant."""
        if not self.config.rescale:
            return 1.0
        return ctx.images_per_class / 10 * ctx.spec.height * ctx.spec.width / self.config.base_size**2

    def prepare(self, ctx: dcf.Context) -> None:
        """Train the networks that are to be matched, where asked for and not kept already."""
        self.pool = pretrained(ctx, self.config, self.augmenter(ctx))

    def rehearse(self, ctx: dcf.Context) -> None:
        """Nothing: networks that are trained cost an iteration as much as any."""

    def updates(self, ctx: dcf.Context) -> int:
        """Updates of the set in one iteration."""
        wanted = self.config.classes_per_update
        return int(self.config.inner_loop) * (1 if wanted == "all" else -(-ctx.spec.num_classes // int(wanted)))

    def augmenter(self, ctx: dcf.Context) -> dcf.Augmenter:
        """What the networks are trained with."""
        if self._augmenter is None:
            text = self.config.train_augment
            self._augmenter = ctx.augmenter if text == "same" else make_augmenter(text, "train_augment")
        return self._augmenter

    # --- an iteration --------------------------------------------------------------------------------

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """One network, and `inner_loop` updates of each class."""
        config, net = self.config, self.network(ctx, it)
        trainee = Trainee(ctx, net, config, self.augmenter(ctx), "real training", it)
        trainee.epochs(config.early)
        for step in range(config.inner_loop):
            for classes, update in portions(ctx.chunks(), config.classes_per_update, ctx.part):
                yield dcf.Step(self.loss(ctx, net, classes, step), update=update)
            if step < config.inner_loop - 1:  # what is trained after the last one would be thrown away
                trainee.images(config.n_data, step)

    def network(self, ctx: dcf.Context, it: int) -> dcf.NetworkState:
        """The network of an iteration: freshly initialised, or one of those that were trained before."""
        net = ctx.network()
        if self.pool:
            number = int(torch.randint(len(self.pool), (), generator=generator(ctx.seed, "pretrained", it)))
            net.load({name: send(tensor, ctx.device) for name, tensor in self.pool[number].items()})
        net.train()
        return net

    def loss(self, ctx: dcf.Context, net: dcf.NetworkState, classes: Tensor, step: int) -> Tensor:
        """What an update minimises, summed over classes.

        Args:
            ctx: The run.
            net: The network.
            classes: `(c,)`.
            step: Number of the matching step.
        """
        config = self.config
        real = ctx.real(classes, config.batch_real, "match", step)
        images, labels = self.synthetic(ctx, classes, step)
        real, images = ctx.siamese(classes, real, images, "match", step)
        if config.match == "feat":
            return feature_loss(net, real, images, config.metric, self.blocks).sum()
        theirs = dcf.Batch(real, ctx.labels(classes, real.shape[1]))
        return gradient_loss(net, theirs, dcf.Batch(images, labels), config.metric, config.bias, config.fc).sum()

    def synthetic(self, ctx: dcf.Context, classes: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Synthetic images of classes and their labels; where a class has too many, random ones.

        Returns:
            `(c, I, C, H, W)`, and `(c, I)` or `(c, I, K)`.
        """
        images, labels, most = ctx.synthetic(classes), ctx.synthetic_labels(classes), self.config.batch_syn
        count = images.shape[1]
        if count <= most:
            return images, labels
        draws = [generator(ctx.seed, "synthetic", ctx.it, step, c) for c in ctx.numbers(classes)]
        chosen = send(torch.stack([torch.randperm(count, generator=draw)[:most] for draw in draws]), images.device)
        row = torch.arange(len(classes), device=images.device)[:, None]
        return images[row, chosen], labels[row, chosen]

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks whose outputs are compared."""
        first, last = self.config.idx_from, self.config.idx_to
        if first == "last":
            return [-1]
        return list(range(int(first), int(first if last == "none" else last) + 1))


def portions(
    chunks: Iterable[Chunk],
    every: int | str,
    cut: Callable[[Tensor, slice], Tensor] = lambda classes, part: classes[part],
) -> Iterator[tuple[Tensor, bool]]:
    """The classes of chunks, cut where the set is to be updated.

    Args:
        chunks: Classes that fit into memory together.
        every: Classes between two updates, or "all".
        cut: Takes some of the classes of a chunk.

    Yields:
        Classes, and whether the set is updated after them; always after the last ones.
    """
    done = 0
    for chunk in chunks:
        rest = chunk.classes
        while len(rest):
            room = len(rest) if every == "all" else int(every) - done % int(every)
            part, rest = cut(rest, slice(room)), cut(rest, slice(room, None))
            done += len(part)
            full = every != "all" and done % int(every) == 0
            yield part, full or (chunk.last and not len(rest))
