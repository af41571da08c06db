"""Kernels: the parts of a run that take the time, made ahead for a network and a size of batch.

On a CPU a kernel is compiled, and what lies between convolutions is fused. Most convolutions of 3x3 take a sixth of
the multiplications, in fp32. Where the processor has matrix units for bf16 (AMX), convolutions are in bf16, but for
those of forward passes that synthetic images are differentiated through. With `--precision strict` everything is in
fp32, and all sums are taken as they are defined. On a GPU it is a CUDA graph: all its operations are launched as one.
Convolutions and the maps between them are in bf16 there, but for those that synthetic images are differentiated
through.

Kernels are for gradients and embeddings of real and synthetic images, for training and testing, and for steps of
unrolled training. Every function here returns None where no kernel is to be had, and the caller computes the plain way:

* on a processor without AVX2;
* where making one takes longer than it saves: that is decided by counting operations, on a GPU calls, never by the
  clock, so that a run that is resumed decides the same;
* for networks that have state, draw random numbers, or cannot be compiled or captured; this is said once.
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

from dcf.compiled._kernels import Kind, forget_captured, has_kernel, kernel_for, seconds_spent
from dcf.compiled._lower import Rounded
from dcf.compiled._rules import activations, arithmetic, busy, multiplications, worthwhile
from dcf.networks.base import NetworkState

__all__ = [
    "LossGradients",
    "Products",
    "Usage",
    "activations",
    "allowed",
    "arithmetic",
    "busy",
    "class_gradients",
    "classify",
    "embed",
    "expected",
    "gradient_products",
    "loss_gradients",
    "matched_gradients",
    "multiplications",
    "noticed",
    "recomputing_pays",
    "recorded_gradients",
    "seconds_spent",
    "stacked_gradients",
    "stacked_logits",
    "weight_gradients",
]

log = logging.getLogger(__name__)

#: Precision and kind of device.
_ALLOWED: ContextVar[tuple[Literal["default", "strict"], str] | None] = ContextVar("allowed", default=None)
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
    token = _ALLOWED.set((precision, device.type))
    try:
        yield
    finally:
        _ALLOWED.reset(token)
        if device.type != "cpu" and _ALLOWED.get() is None:
            forget_captured()


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
    found = _computed(Kind.CLASSIFY, net, [_filled_up(images, size)], net.parameters())
    return None if found is None else found[0][: len(images)]


def _filled_up(images: Tensor, size: int) -> Tensor:
    missing = size - len(images)
    full = images if not missing else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
    return full.detach()


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


def recomputing_pays(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, labels: Tensor, calls: int = 1
) -> bool:
    """Whether `gradient_products` of such a batch makes up for computing its step again; its kernel is made now.

    On a CPU if it is in bf16 or in tiles. On a GPU always: `recorded_gradients` computes a step again there, too.

    Args:
        net: The network.
        weights: One for each weight, in order of `net.params`.
        images: `(N, C, H, W)`; its values do not matter.
        labels: `(N,)` class indices or `(N, K)` probabilities; likewise.
        calls: How often the caller will ask in what `expected` counts.
    """
    kind, rounded = Kind.PRODUCTS, _rounded(Kind.PRODUCTS, images.device)
    saves = images.is_cuda or rounded in ("derivatives", "tiled")
    if not _wanted(kind, net, images, calls) or not saves:
        return False
    data = [images.detach(), labels.detach(), *(w.detach() for w in weights)]
    return has_kernel(kind, rounded, net, data, weights)


def class_gradients(
    net: NetworkState, images: Tensor, labels: Tensor, create_graph: bool, calls: int = 1
) -> list[Tensor] | None:
    """The gradient of each class's mean cross-entropy, all classes in one call; None: the plain way.

    On a GPU only. Differentiable in images and labels, once, with `create_graph`, and constants otherwise.

    Args:
        net: The network at its present weights, which are constants here.
        images: `(c, B, C, H, W)`; with `create_graph` they must require gradients.
        labels: `(c, B)` class indices or `(c, B, K)` probabilities.
        create_graph: As said.
        calls: How often the caller asks in what `expected` counts.

    Returns:
        One tensor `(c, *weight.shape)` for each weight, in order of `net.params`.
    """
    kind = Kind.CLASS_MATCHED if create_graph else Kind.CLASS_GRADIENT
    if (create_graph and not images.requires_grad) or not _wanted(kind, net, images[0], calls):
        return None
    data = [images, labels] if create_graph else [images.detach(), labels.detach()]
    return _computed(kind, net, data, net.parameters())


def stacked_gradients(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, labels: Tensor, calls: int = 1
) -> LossGradients | None:
    """As `loss_gradients`, of n networks of one architecture at once, each on its own batch; None: the plain way.

    On a GPU only.

    Args:
        net: One of the networks.
        weights: `(n, *weight.shape)` for each weight, in order of `net.params`.
        images: `(n, B, C, H, W)`; treated as constants.
        labels: `(n, B)` class indices or `(n, B, K)` probabilities; likewise.
        calls: How often the caller asks in what `expected` counts.

    Returns:
        Loss `(n,)`, logits `(n, B, K)`, and gradients of the shapes of `weights`.
    """
    if not _wanted(Kind.STACK_GRADIENT, net, images[0], calls):
        return None
    found = _computed(Kind.STACK_GRADIENT, net, [images.detach(), labels.detach()], weights)
    return None if found is None else LossGradients(found[0], found[1], found[2:])


def stacked_logits(
    net: NetworkState, weights: Sequence[Tensor], images: Tensor, size: int, calls: int = 1
) -> Tensor | None:
    """Logits `(n, N, K)` of n networks of one architecture for the same images, constants; None: the plain way.

    On a GPU only.

    Args:
        net: One of the networks.
        weights: `(n, *weight.shape)` for each weight, in order of `net.params`.
        images: `(N, C, H, W)`, at most `size` of them.
        size: As of `classify`.
        calls: How often the caller asks in what `expected` counts.
    """
    if not _wanted(Kind.STACK_CLASSIFY, net, images, calls):
        return None
    found = _computed(Kind.STACK_CLASSIFY, net, [_filled_up(images, size)], weights)
    return None if found is None else found[0][:, : len(images)]


def _computed(
    kind: Kind, net: NetworkState, inputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor] | None:
    rounded = _rounded(kind, inputs[0].device)
    found = kernel_for(kind, rounded, net, inputs, weights)
    if found is not None and rounded in ("all", "derivatives"):
        for usage in _USAGE.get():
            usage.kernels = True
    return found


def _wanted(kind: Kind, net: NetworkState, images: Tensor, calls: int) -> bool:
    precision, place = _ALLOWED.get() or (None, "")
    if precision is None or images.dtype != torch.float32 or images.device.type != place:
        return False
    if not worthwhile(kind, net, images, calls * _TIMES.get(), precision == "strict"):
        return False
    found = arithmetic(images.device)
    if images.device.type == "cpu" and (found == "other" or (found == "fp32" and precision == "default")):
        _tell_of_processor("computing the plain way" if found == "other" else "kernels compute in fp32")
    return found != "other"


def _rounded(kind: Kind, device: torch.device) -> Rounded:
    strict = _ALLOWED.get() == ("strict", device.type)
    return "none" if strict else kind.rounded(device, arithmetic(device))


@functools.cache
def _tell_of_processor(instead: str) -> None:
    """Say once for a process what is not used where a processor has it."""
    log.info("this processor has no matrix units for bf16 (AMX): %s", instead)
