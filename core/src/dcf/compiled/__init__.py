"""Compiled kernels: the parts of a run that take the time, made ahead for a network and a size of batch.

A kernel computes convolutions in bf16 where the processor multiplies bf16 (AMX, AVX512_BF16), everything else in fp32,
and fuses what lies between them. Where synthetic images are differentiated, the convolutions of the forward pass
are in fp32, too; with `--precision strict`, and on processors without bf16, everything is. Kernels are for
gradients and embeddings of real and synthetic images, for training and testing, and for steps of unrolled training.
Every function here returns None where no kernel is to be had, and the caller computes the plain way:

* on a GPU, or on a processor without AVX2;
* where compiling takes longer than it saves: that is decided by counting operations, never by the clock, so that a run
  that is resumed decides the same;
* for networks that have state, draw random numbers, or do not compile; this is said once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dcf.compiled._kernels import Kind, has_kernel, kernel_for, seconds_spent
from dcf.compiled._rules import activations, multiplications, processor, worthwhile
from dcf.networks.base import NetworkState

__all__ = [
    "LossGradients",
    "Products",
    "Usage",
    "activations",
    "allowed",
    "classify",
    "embed",
    "expected",
    "gradient_products",
    "loss_gradients",
    "matched_gradients",
    "multiplications",
    "noticed",
    "products_are_rounded",
    "recorded_gradients",
    "seconds_spent",
    "weight_gradients",
]

log = logging.getLogger(__name__)

_ALLOWED: ContextVar[Literal["default", "strict"] | None] = ContextVar("allowed", default=None)
_TIMES: ContextVar[int] = ContextVar("times", default=1)
_USAGE: ContextVar[tuple[Usage, ...]] = ContextVar("usage", default=())


@dataclass
class Usage:
    """Whether a kernel with bf16 in it computed anything: what was computed then is not what fp32 gives."""

    kernels: bool = False


class LossGradients(NamedTuple):
    """Mean cross-entropy of a batch, its logits `(N, K)`, and its gradient, one tensor for each weight; constants."""

    loss: Tensor
    logits: Tensor
    gradients: list[Tensor]


class Products(NamedTuple):
    """What a cotangent c of the gradient g of a batch's loss comes to.

    Attributes:
        gradients: g, one tensor for each weight.
        weights: The gradient of `<c, g>` in each weight (the product of the Hessian and c).
        images: That in the images, `(N, C, H, W)`.
        labels: That in the labels, `(N, K)`; None where they are class indices.
    """

    gradients: list[Tensor]
    weights: list[Tensor]
    images: Tensor
    labels: Tensor | None


@contextmanager
def allowed(precision: Literal["default", "strict"], device: torch.device) -> Iterator[None]:
    """Allow kernels within the context, where precision and device do.

    Args:
        precision: Of the run.
        device: Where it computes.
    """
    token = _ALLOWED.set(precision if device.type == "cpu" else None)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


@contextmanager
def expected(times: int) -> Iterator[None]:
    """Say how often what happens within the context happens in all, such as the iterations of a run; these multiply."""
    token = _TIMES.set(_TIMES.get() * max(1, times))
    try:
        yield
    finally:
        _TIMES.reset(token)


@contextmanager
def noticed(usage: Usage | None = None) -> Iterator[Usage]:
    """Notice whether kernels compute anything within the context.

    Args:
        usage: What is told so, once and for good; a new one by default.
    """
    usage = Usage() if usage is None else usage
    token = _USAGE.set((*_USAGE.get(), usage))
    try:
        yield usage
    finally:
        _USAGE.reset(token)


def embed(net: NetworkState, images: Tensor, calls: int = 1) -> Tensor | None:
    """Embeddings `(N, F)` of images `(N, C, H, W)`; None where they are to be computed the plain way.

    Constants where gradients are off; differentiable in the images, and in these alone, where they require gradients.

    Args:
        net: The network at its present weights.
        images: In the dataset's value space.
        calls: How often the caller asks in what `expected` counts.
    """
    graph = torch.is_grad_enabled()
    kind = Kind.FEATURES if graph else Kind.EMBED
    if (graph and not images.requires_grad) or not _wanted(kind, net, images, calls):
        return None
    found = _computed(kind, net, [images if graph else images.detach()], net.parameters())
    return None if found is None else found[0]


def classify(net: NetworkState, images: Tensor, size: int, calls: int = 1) -> Tensor | None:
    """Logits `(N, K)` of images `(N, C, H, W)`, constants; None where they are to be computed the plain way.

    Args:
        net: The network at its present weights.
        images: In the dataset's value space, at most `size` of them.
        size: Images that the kernel is made for; fewer are filled up, so that the last of a split need no other one.
        calls: How often the caller asks in what `expected` counts.
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return None
    # Counted as if the last batch of a split were as large as the others, so that all of them decide alike.
    if not _wanted(Kind.CLASSIFY, net, images[:1].expand(size, -1, -1, -1), calls):
        return None
    missing = size - len(images)
    full = images if not missing else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
    found = _computed(Kind.CLASSIFY, net, [full.detach()], net.parameters())
    return None if found is None else found[0][: len(images)]


def loss_gradients(net: NetworkState, images: Tensor, labels: Tensor, calls: int = 1) -> LossGradients | None:
    """Loss, logits and gradients of a batch at the network's weights; None: compute them the plain way.

    Args:
        net: The network at its present weights.
        images: `(N, C, H, W)`; treated as constants.
        labels: `(N,)` class indices or `(N, K)` probabilities; likewise.
        calls: How often the caller asks in what `expected` counts.
    """
    if not _wanted(Kind.GRADIENT, net, images, calls):
        return None
    found = _computed(Kind.GRADIENT, net, [images.detach(), labels.detach()], net.parameters())
    return None if found is None else LossGradients(found[0], found[1], found[2:])


def matched_gradients(net: NetworkState, images: Tensor, labels: Tensor, calls: int = 1) -> list[Tensor] | None:
    """The gradient of a batch's mean cross-entropy, differentiable in images and labels; None: the plain way.

    Args:
        net: The network at its present weights, which are constants here.
        images: `(N, C, H, W)`, which must require gradients.
        labels: `(N,)` class indices or `(N, K)` probabilities.
        calls: How often the caller asks in what `expected` counts.

    Returns:
        One tensor for each weight, in order of `net.params`; differentiable once.
    """
    if not (torch.is_grad_enabled() and images.requires_grad) or not _wanted(Kind.MATCHED, net, images, calls):
        return None
    return _computed(Kind.MATCHED, net, [images, labels], net.parameters())


def recorded_gradients(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, labels: Tensor, calls: int = 1
) -> list[Tensor] | None:
    """As `matched_gradients`, at weights that are given, and differentiable in these, too; None: the plain way.

    Args:
        net: The network.
        weights: One for each weight, in order of `net.params`, all of which require gradients.
        images: `(N, C, H, W)`.
        labels: `(N,)` class indices or `(N, K)` probabilities.
        calls: How often the caller asks in what `expected` counts.
    """
    if not torch.is_grad_enabled() or not _wanted(Kind.RECORDED, net, images, calls):
        return None
    return _computed(Kind.RECORDED, net, [images, labels], weights)


def weight_gradients(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, labels: Tensor, calls: int = 1
) -> list[Tensor] | None:
    """The gradients of a step of unrolled training, at weights that are given, in order of `net.params`.

    As `loss_gradients`, but with a forward pass that agrees with that of `gradient_products`.
    """
    if not _wanted(Kind.STEP, net, images, calls):
        return None
    found = _computed(Kind.STEP, net, [images.detach(), labels.detach()], weights)
    return None if found is None else found[2:]


def gradient_products(
    net: NetworkState,
    weights: Sequence[Tensor],
    images: Tensor,
    labels: Tensor,
    cotangent: Sequence[Tensor],
    calls: int = 1,
) -> Products | None:
    """The gradient g of a batch's loss at given weights, and the derivatives of `<c, g>`; None: the plain way.

    Args:
        net: The network.
        weights: One for each weight, in order of `net.params`.
        images: `(N, C, H, W)`.
        labels: `(N,)` class indices or `(N, K)` probabilities.
        cotangent: c, one tensor for each weight.
        calls: How often the caller asks in what `expected` counts.
    """
    if not _wanted(Kind.PRODUCTS, net, images, calls):
        return None
    found = _computed(Kind.PRODUCTS, net, [images.detach(), labels.detach(), *cotangent], weights)
    if found is None:
        return None
    n = len(weights)
    soft = labels.is_floating_point()
    return Products(found[:n], found[n : 2 * n], found[2 * n], found[2 * n + 1] if soft else None)


def products_are_rounded(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, labels: Tensor, calls: int = 1
) -> bool:
    """Whether `gradient_products` of such a batch is computed by a kernel in bf16, which is made now.

    Args:
        net: The network.
        weights: One for each weight, in order of `net.params`.
        images: `(N, C, H, W)`; its values do not matter.
        labels: `(N,)` class indices or `(N, K)` probabilities; likewise.
        calls: How often the caller will ask in what `expected` counts.
    """
    if not _wanted(Kind.PRODUCTS, net, images, calls) or _in_fp32():
        return False
    data = [images.detach(), labels.detach(), *(w.detach() for w in weights)]
    return has_kernel(Kind.PRODUCTS, Kind.PRODUCTS.rounded(strict=False), net, data, weights)


def _computed(
    kind: Kind, net: NetworkState, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor] | None:
    rounded = kind.rounded(_in_fp32())
    found = kernel_for(kind, rounded, net, inputs, weights)
    if found is not None and rounded != "none":
        for usage in _USAGE.get():
            usage.kernels = True
    return found


def _wanted(kind: Kind, net: NetworkState, images: Tensor, calls: int) -> bool:
    precision = _ALLOWED.get()
    if precision is None or images.dtype != torch.float32:
        return False
    if not worthwhile(kind, net, images, calls * _TIMES.get(), _in_fp32()):
        return False
    found = processor()
    if found == "other" or (found == "fp32" and precision == "default"):
        _tell_of_processor("computing the plain way, in fp32" if found == "other" else "kernels compute in fp32")
    return found != "other"


def _in_fp32() -> bool:
    return _ALLOWED.get() == "strict" or processor() == "fp32"


@functools.cache
def _tell_of_processor(instead: str) -> None:
    """Say once for a process why what is slow is not faster."""
    log.info("this processor does not multiply bf16 (AMX, AVX512_BF16): %s", instead)
