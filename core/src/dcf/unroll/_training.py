"""Unrolled training on a set of images: what matchers that differentiate through training share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from dcf import compiled
from dcf.networks.base import NetworkState
from dcf.training import cross_entropy
from dcf.types import Batch, UnrollChoice, UnrollMode
from dcf.unroll._steps import StepProducts

__all__ = ["train_on"]

#: Bytes of the graph of all steps up to which it is kept where nothing is won by computing each step twice.
_KEPT: Final = 1 << 30
#: Bytes that a graph keeps for each value that a convolution yields: of the layers after it, and for two derivatives.
_BYTES_A_VALUE: Final = 24


def train_on(
    logits: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    start: Mapping[str, Tensor],
    data: Batch,
    steps: Sequence[Tensor],
    lrs: Tensor,
    *,
    momentum: float = 0.0,
    mode: UnrollChoice = "adjoint",
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
        mode: Likewise; "auto": "full" where the graph of all steps is counted to take 1 GB at most and kernels do
            not make up for computing each step twice, else "adjoint"; to be differentiated once.
        keep: Likewise.
        augment: From a batch and the number of its step to the augmented batch. Its draws must be fixed beforehand,
            since a step is computed more than once.
    """
    from dcf.unroll import unroll

    x, y = data

    def batch_of(s: int) -> Batch:
        batch = Batch(x[steps[s]], y[steps[s]])
        return batch if augment is None else augment(batch, s)

    def loss(weights: Mapping[str, Tensor], s: int) -> Tensor:
        batch = batch_of(s)
        return cross_entropy(logits(batch.x, weights), batch.y)

    net = getattr(logits, "net", None)
    kernel = None if net is None else _NetworkSteps(net, batch_of, len(steps))
    if mode == "full":
        kernel = None  # what is asked for by name can be differentiated twice, and kernels cannot
    elif mode == "auto":
        mode = "adjoint" if net is None or not steps else _quickest(net, list(start.values()), data, steps)
    if net is not None and steps and x.is_cuda and mode not in ("full", "checkpoint"):
        _made_ahead(net, list(start.values()), data, steps)
    learned = [tensor for tensor in (x, y) if tensor.requires_grad]
    return unroll(loss, start, lrs, learned, momentum=momentum, mode=mode, keep=keep, kernel=kernel)


def _quickest(net: NetworkState, weights: Sequence[Tensor], data: Batch, steps: Sequence[Tensor]) -> UnrollMode:
    images = sum(len(step) for step in steps)
    shape = tuple(int(n) for n in data.x.shape[1:])
    if images * compiled.activations(net, shape) * _BYTES_A_VALUE > _KEPT:
        return "adjoint"
    return "adjoint" if _made_ahead(net, weights, data, steps) else "full"


def _made_ahead(net: NetworkState, weights: Sequence[Tensor], data: Batch, steps: Sequence[Tensor]) -> bool:
    """Whether products are computed by a kernel that makes up for it; made here and not on the way back.

    Autograd goes back over a GPU's part of a graph in a thread of its own, where nothing should be captured.
    """
    x, y = (t.detach()[steps[0]] for t in data)
    return compiled.recomputing_pays(net, weights, x, y, len(steps))


@dataclass(frozen=True)
class _NetworkSteps:
    """Compiled derivatives of the steps of a network, where they are to be had; see `dcf.compiled`.

    Attributes:
        net: The network.
        batch: From the number of a step to its batch, differentiable.
        count: Steps.
    """

    net: NetworkState
    batch: Callable[[int], Batch]
    count: int

    def gradient(self, weights: Sequence[Tensor], s: int) -> list[Tensor] | None:
        """See `dcf.unroll.StepKernel`."""
        with torch.no_grad():
            batch = self.batch(s)
        return compiled.weight_gradients(self.net, weights, batch.x, batch.y, self.count)

    def recorded(self, weights: Sequence[Tensor], s: int) -> list[Tensor] | None:
        """See `dcf.unroll.StepKernel`."""
        batch = self.batch(s)
        return compiled.recorded_gradients(self.net, weights, batch.x, batch.y, self.count)

    def products(
        self, weights: Sequence[Tensor], s: int, cotangent: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> StepProducts | None:
        """See `dcf.unroll.StepKernel`."""
        batch = self.batch(s)
        found = compiled.gradient_products(self.net, weights, batch.x, batch.y, cotangent, self.count)
        if found is None:
            return None
        pairs = [(t, g) for t, g in ((batch.x, found.images), (batch.y, found.labels)) if t.requires_grad]
        to_inputs: list[Tensor | None] = [None] * len(inputs)
        if pairs and inputs:
            outputs, factors = zip(*pairs, strict=True)
            to_inputs = list(torch.autograd.grad(outputs, inputs, factors, allow_unused=True))
        return found.gradients, list(found.weights), to_inputs
