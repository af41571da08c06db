"""The mathematics of both methods: train on the set, then see how well the trained network does on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

import dcf
from dcf.training import cross_entropy
from dcf.unroll import Mode, unroll

__all__ = ["Logits", "real_loss", "train_on"]

#: `(images, weights) -> logits`.
Logits: TypeAlias = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def train_on(
    logits: Logits,
    start: Mapping[str, Tensor],
    images: dcf.Batch,
    steps: Sequence[Tensor],
    lrs: Tensor,
    *,
    momentum: float = 0.0,
    mode: Mode = "adjoint",
    keep: int | Literal["cpu"] = 1,
    augment: Callable[[dcf.Batch, int], dcf.Batch] | None = None,
) -> dict[str, Tensor]:
    """Weights after training on the set: step s is one of SGD on the mean cross-entropy of the images `steps[s]`.

    Sources: Wang et al., 2018, algorithm 1; Deng and Russakovsky, NeurIPS 2022, section 3.2 (with momentum).

    Args:
        logits: The network.
        start: Weights to begin with.
        images: `x` of `(N, C, H, W)` and `y` of `(N,)` or `(N, K)`; what receives gradients does.
        steps: T times `(B,)` positions in `images`.
        lrs: `(T,)` step sizes, which may receive gradients.
        momentum: `v <- momentum v + g`, `w <- w - lr v`, from `v = 0`.
        mode: How it is differentiated; see `dcf.unroll.unroll`.
        keep: See there.
        augment: From a batch and the number of its step to the augmented batch; pure.

    Returns:
        Weights by name.
    """

    def loss(weights: Mapping[str, Tensor], s: int) -> Tensor:
        batch = dcf.Batch(images.x[steps[s]], images.y[steps[s]])
        if augment is not None:
            batch = augment(batch, s)
        return cross_entropy(logits(batch.x, weights), batch.y)

    learned = [t for t in (images.x, images.y) if t.requires_grad]
    return unroll(loss, start, lrs, learned, momentum=momentum, mode=mode, keep=keep)


def real_loss(logits: Logits, weights: Mapping[str, Tensor], real: dcf.Batch) -> tuple[Tensor, Tensor]:
    """What the set is judged by: the trained network on real images.

    Args:
        logits: The network.
        weights: After training.
        real: `x` of `(N, C, H, W)`, `y` of `(N,)` class indices.

    Returns:
        The cross-entropy averaged over the images, and the fraction that is right, detached.
    """
    answers = logits(real.x, weights)
    right = (answers.detach().argmax(1) == real.y).float().mean()
    return cross_entropy(answers, real.y), right
