"""Training the networks that are matched, on the real data."""

from __future__ import annotations

import torch
from torch import Tensor

import dcf
from dcf.data import Split
from dcf.seeding import generator
from dcf.sending import send
from dcf.training import Schedule, random_augmentation, sgd, train
from dcf_idc.options import IDCConfig

__all__ = ["Trainee", "first_images"]


class Trainee:
    """A network and the optimiser that it keeps from one training to the next, so that momentum is not lost.

    Args:
        ctx: The run.
        net: The network.
        config: Step size, momentum, weight decay, images a step.
        augmenter: Applied with values for each image.
        stream: Name of the network's random draws.
        seed: Of the draws; the run's by default.
    """

    def __init__(
        self,
        ctx: dcf.Context,
        net: dcf.NetworkState,
        config: IDCConfig,
        augmenter: dcf.Augmenter,
        *stream: str | int,
        seed: int | None = None,
    ) -> None:
        self.split, self.spec = ctx.data.train, ctx.spec
        self.net = net
        self.config = config
        self.augmenter = augmenter
        self.stream = stream
        self.seed = ctx.seed if seed is None else seed
        self.optimizer = sgd(net, config.momentum_net, config.decay_net)

    def epochs(self, count: int) -> None:
        """Train on all images, `count` times."""
        for epoch in range(count):
            self._train(len(self.split), "epoch", epoch)

    def images(self, least: int, step: int) -> None:
        """Train on random images, as many batches as hold `least` of them; on all images once where there are fewer.

        Args:
            least: Images, 0 for no training.
            step: Number of the matching step.
        """
        if least:
            self._train(least, "step", step)

    def _train(self, least: int, *stream: str | int) -> None:
        order = first_images(self.split, least, self.config.batch_train, generator(self.seed, *self.stream, *stream))
        draws = generator(self.seed, *self.stream, "augment", *stream)
        train(
            self.net,
            lambda index: dcf.Batch(self.split.images(index), self.split.labels[index]),
            lambda _: order,
            Schedule.constant(self.config.lr_net, 1),
            batch=self.config.batch_train,
            augmentation=random_augmentation(self.augmenter, self.spec.shape, draws, self.spec.num_classes),
            optimizer=self.optimizer,
        )


def first_images(split: Split, least: int, batch: int, draw: torch.Generator) -> Tensor:
    """The images that a pass over the data in random order meets until it has seen `least` in whole batches.

    Args:
        split: The data.
        least: Images.
        batch: Images a step.
        draw: A CPU generator.

    Returns:
        `(n,)` numbers, n a multiple of `batch` unless these are all images.
    """
    return send(torch.randperm(len(split), generator=draw)[: -(-least // batch) * batch], split.device)
