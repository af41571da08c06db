"""What kernels compute, in the plain way: functions of data and weights, for a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional as F

from dcf.compiled._rules import Kind, busy
from dcf.networks.base import NetworkState

__all__ = ["FUNCTIONS", "Kernel"]

#: From data and weights to the results.
Kernel = Callable[..., tuple[Tensor, ...]]


def _embedding(net: NetworkState, data: int) -> Kernel:
    return _forward(net, embed=True)


def _logits(net: NetworkState, data: int) -> Kernel:
    return _forward(net, embed=False)


def _features(net: NetworkState, data: int) -> Kernel:
    return _forward(net, embed=True, graph=True)


def _forward(net: NetworkState, embed: bool, graph: bool = False) -> Kernel:
    def forward(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(graph):
            return (net(x, dict(zip(net.params, weights, strict=True)), embed=embed),)

    return forward


def _gradient(net: NetworkState, data: int) -> Kernel:
    def gradient(x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            logits = net(x, dict(zip(net.params, weights, strict=True)))
            loss = F.cross_entropy(logits, y)
            found = torch.autograd.grad(loss, weights, materialize_grads=True)
        return (loss, logits, *found)

    return gradient


def _matched(net: NetworkState, data: int) -> Kernel:
    def matched(x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        leaves = [w if w.requires_grad else w.detach().requires_grad_() for w in weights]
        with torch.enable_grad():
            loss = F.cross_entropy(net(x, dict(zip(net.params, leaves, strict=True))), y)
            return tuple(torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True))

    return matched


def _products(net: NetworkState, data: int) -> Kernel:
    def products(x: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        cotangent, weights = rest[: data - 2], rest[data - 2 :]
        soft = (y,) if y.is_floating_point() else ()
        with torch.enable_grad():
            loss = F.cross_entropy(net(x, dict(zip(net.params, weights, strict=True))), y)
            gradient = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
            # What does not depend on the weights, as of a layer that is not used, has no gradient to go on from.
            pairs = [(g, c) for g, c in zip(gradient, cotangent, strict=True) if g.requires_grad]
            learned, given = zip(*pairs, strict=True)
            found = torch.autograd.grad(learned, (*weights, x, *soft), given, materialize_grads=True)
        return (*gradient, *found)

    return products


def _of_classes(net: NetworkState, graph: bool) -> Kernel:
    def gradients(x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        def loss(params: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(net(images, params), labels)

        # The weights themselves take no gradient here; without this their graph would be recorded, too.
        params = {name: w.detach() for name, w in zip(net.params, weights, strict=True)}
        with torch.set_grad_enabled(graph):
            found, _ = vmap(grad_and_value(loss), in_dims=(None, 0, 0))(params, x, y)
        return tuple(found.values())

    return gradients


def _class_gradients(net: NetworkState, data: int) -> Kernel:
    """Under `vmap` gradients of weights become grouped convolutions, which large batches do better without.

    Class after class is no slower to launch in a captured kernel, and only one class's maps are there at a time.
    """
    together, alone = _of_classes(net, graph=False), _gradient(net, data)

    def gradients(x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        if not busy(net, tuple(x.shape[2:]), x.shape[1]):
            return together(x, y, *weights)
        each = [alone(images, labels, *weights)[2:] for images, labels in zip(x, y, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))

    return gradients


def _matched_classes(net: NetworkState, data: int) -> Kernel:
    return _of_classes(net, graph=True)


def _stack_gradient(net: NetworkState, data: int) -> Kernel:
    def gradient(x: Tensor, y: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        def loss(params: dict[str, Tensor], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            logits = net(images, params)
            return F.cross_entropy(logits, labels), logits

        params = {name: w.detach() for name, w in zip(net.params, weights, strict=True)}
        with torch.no_grad():
            found, (losses, logits) = vmap(grad_and_value(loss, has_aux=True))(params, x, y)
        return (losses, logits, *found.values())

    return gradient


def _stack_logits(net: NetworkState, data: int) -> Kernel:
    def logits(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        def one(params: dict[str, Tensor]) -> Tensor:
            return net(x, params)

        with torch.no_grad():
            return (vmap(one)(dict(zip(net.params, weights, strict=True))),)

    return logits


#: By kind, from a network and the number of tensors that are data to the function.
FUNCTIONS: Final[dict[Kind, Callable[[NetworkState, int], Any]]] = {
    Kind.EMBED: _embedding,
    Kind.CLASSIFY: _logits,
    Kind.FEATURES: _features,
    Kind.GRADIENT: _gradient,
    Kind.MATCHED: _matched,
    Kind.RECORDED: _matched,
    Kind.STEP: _gradient,
    Kind.PRODUCTS: _products,
    Kind.CLASS_GRADIENT: _class_gradients,
    Kind.CLASS_MATCHED: _matched_classes,
    Kind.STACK_GRADIENT: _stack_gradient,
    Kind.STACK_CLASSIFY: _stack_logits,
}
