"""Unrolled training on a set of images: what matchers that differentiate through training share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from dcf.training import cross_entropy
from dcf.types import Batch

if TYPE_CHECKING:
    from dcf.unroll import Mode

__all__ = ["train_on"]


def train_on(
    logits: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    start: Mapping[str, Tensor],
    data: Batch,
    steps: Sequence[Tensor],
    lrs: Tensor,
    *,
    momentum: float = 0.0,
    mode: Mode = "adjoint",
    keep: int | Literal["cpu"] = 1,
    augment: Callable[[Batch, int], Batch] | None = None,
) -> dict[str, Tensor]:
    """Weights after training on images: step s is one of SGD on the mean cross-entropy of the images `steps[s]`.

    Differentiable in images, labels and step sizes, as far as these require gradients.

    Args:
        logits: The network, such as `stateless(net)`: `(images, weights) -> logits`.
        start: Weights to begin with, by name.
        data: `(N, C, H, W)` images, and `(N,)` class indices or `(N, K)` probabilities.
        steps: T times `(B,)` positions in `data`.
        lrs: `(T,)` step sizes.
        momentum: As in `unroll`.
        mode: Likewise.
        keep: Likewise.
        augment: From a batch and the number of its step to the augmented batch. Its draws must be fixed beforehand,
            since a step is computed more than once.
    """
    from dcf.unroll import unroll

    x, y = data

    def loss(weights: Mapping[str, Tensor], s: int) -> Tensor:
        batch = Batch(x[steps[s]], y[steps[s]])
        if augment is not None:
            batch = augment(batch, s)
        return cross_entropy(logits(batch.x, weights), batch.y)

    learned = [tensor for tensor in (x, y) if tensor.requires_grad]
    return unroll(loss, start, lrs, learned, momentum=momentum, mode=mode, keep=keep)
