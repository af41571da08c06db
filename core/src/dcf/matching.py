"""What gradient and distribution matching share: per-class gradients, distances, class means, loop counts.

All functions work on a chunk of c classes at once; how a chunk is computed (one call under `vmap`, or class after
class) is decided here, by what measures fastest on the device, and does not change results beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

from dcf import compiled
from dcf.context import Context
from dcf.errors import UsageError
from dcf.networks.base import NetworkState
from dcf.training import cross_entropy
from dcf.types import Metric

__all__ = [
    "Metric",
    "Strategy",
    "batch_gradients",
    "batch_norm_statistics",
    "choose_strategy",
    "class_embedding_means",
    "class_gradients",
    "classes_at_a_time",
    "freeze_batch_norms",
    "gradient_distance",
    "loops",
]

Strategy = Literal["auto", "loop", "vmap"]

#: Images that go through a network in one forward pass on a CPU, as long as classes are independent of each other.
CPU_IMAGES = 256

#: Bytes kept for the way back for each value that a convolution yields: its own, and what two layers make of it.
_BYTES_A_VALUE: Final = 12

#: Added to the product of norms, outside the roots; it makes the distances depend on scale, as published.
EPSILON = 1e-6


def class_gradients(
    net: NetworkState,
    images: Tensor,
    labels: Tensor,
    create_graph: bool = False,
    strategy: Strategy = "auto",
) -> list[Tensor]:
    """Gradients of each class's mean cross-entropy with respect to the weights.

    Args:
        net: The network at its present weights.
        images: `(c, B, C, H, W)`, c classes with B images each, in the dataset's value space.
        labels: `(c, B)` class indices, or `(c, B, K)` probabilities.
        create_graph: Whether the result shall be differentiable with respect to `images` and `labels`; once, where a
            kernel computes it, and not in the weights.
        strategy: How to compute a chunk; "auto" picks for the device and size.

    Returns:
        One tensor for each weight, `(c, *weight.shape)`, in order of `net.params`. The cross-entropy is averaged
        over B. Without `create_graph` the result is detached.
    """
    chosen = choose_strategy(images) if strategy == "auto" else strategy
    compute = _vmapped if chosen == "vmap" else _looped
    if create_graph:
        return compute(net, images, labels, create_graph)
    size = classes_at_a_time(net, images) if chosen == "vmap" else len(images)
    pairs = zip(torch.split(images, size), torch.split(labels, size), strict=True)
    parts = [compute(net, x, y, create_graph) for x, y in pairs]
    return [torch.cat(each).detach() for each in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]


def classes_at_a_time(net: NetworkState, images: Tensor) -> int:
    """How many classes of images that are not learned are worked on in one call, such that a GPU has room for them.

    Args:
        net: The network.
        images: `(c, B, C, H, W)`.

    Returns:
        From 1 to c: as many as keep a quarter of the memory of the GPU for the way back, by count, and about equally
        many in each call; all of them on a CPU.
    """
    if not images.is_cuda:
        return len(images)
    room = torch.cuda.get_device_properties(images.device).total_memory // 4
    shape = (images.shape[2], images.shape[3], images.shape[4])
    each = images.shape[1] * compiled.activations(net, shape) * _BYTES_A_VALUE
    calls = math.ceil(len(images) / max(1, room // max(1, each)))
    return math.ceil(len(images) / calls)


def choose_strategy(images: Tensor) -> Strategy:
    """What measured fastest: one call on a GPU, class after class on a CPU (see docs/performance.md)."""
    return "vmap" if images.is_cuda else "loop"


def _looped(net: NetworkState, images: Tensor, labels: Tensor, create_graph: bool) -> list[Tensor]:
    pairs = zip(images, labels, strict=True)
    each = (batch_gradients(net, x, y, create_graph, calls=len(images)) for x, y in pairs)
    if create_graph:
        return [torch.stack(parts) for parts in zip(*each, strict=True)]
    # Not kept one by one: they would lie scattered in what a class has freed, where the next one finds no room then.
    stacked = [w.new_empty((len(images), *w.shape)) for w in net.parameters()]
    for i, found in enumerate(each):
        for all_classes, gradient in zip(stacked, found, strict=True):
            all_classes[i] = gradient.detach()
    return stacked


def batch_gradients(
    net: NetworkState, images: Tensor, labels: Tensor, create_graph: bool = False, calls: int = 1
) -> list[Tensor]:
    """The gradient of a batch's mean cross-entropy with respect to the weights.

    Args:
        net: The network at its present weights.
        images: `(N, C, H, W)`.
        labels: `(N,)` class indices, or `(N, K)` probabilities.
        create_graph: As in `class_gradients`.
        calls: How often the caller asks for such a batch in an iteration.

    Returns:
        One tensor for each weight, in order of `net.params`; the cross-entropy is averaged over N.
    """
    if create_graph:
        found = compiled.matched_gradients(net, images, labels, calls)
    else:
        kernel = compiled.loss_gradients(net, images, labels, calls)
        found = None if kernel is None else kernel.gradients
    if found is not None:
        return found
    loss = cross_entropy(net(images), labels)
    return list(torch.autograd.grad(loss, net.parameters(), create_graph=create_graph, materialize_grads=True))


def _vmapped(net: NetworkState, images: Tensor, labels: Tensor, create_graph: bool) -> list[Tensor]:
    kernel = compiled.class_gradients(net, images, labels, create_graph)
    if kernel is not None:
        return kernel

    def loss(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(net(x, params), y)

    gradient: Callable[..., dict[str, Tensor]] = vmap(grad(loss), in_dims=(None, 0, 0))
    # The weights themselves take no gradient here; without this their graph would be recorded too.
    params = {k: p.detach() for k, p in net.params.items()}
    with torch.set_grad_enabled(create_graph):
        return list(gradient(params, images, labels).values())


def gradient_distance(syn: Sequence[Tensor], real: Sequence[Tensor], metric: Metric = "ours") -> Tensor:
    """Distance of two lists of gradients, for each class of a chunk.

    Args:
        syn: Tensors `(c, *weight.shape)`, differentiable.
        real: Tensors of the same shapes, constant.
        metric: "ours": for every weight of two or more axes, the sum over its rows (first axis) of one minus their
            cosine, summed over weights; weights of one axis count nothing (Zhao et al., ICLR 2021, eq. 10 and the
            released code). "mse": squared norm of the difference of everything (a sum). "cos": one minus the cosine
            of everything as one vector.

    Returns:
        `(c,)` distances, summed as said, not averaged over anything.

    Raises:
        UsageError: For an unknown metric.
    """
    if metric == "ours":
        return _rowwise_cosine(syn, real)
    flat_syn = torch.cat([g.flatten(1) for g in syn], 1)  # (c, P)
    flat_real = torch.cat([g.flatten(1) for g in real], 1)
    if metric == "mse":
        return (flat_syn - flat_real).square().sum(1)
    if metric == "cos":
        return _one_minus_cosine(flat_syn, flat_real)
    raise UsageError(f"expected the gradient distance 'ours', 'mse' or 'cos', got '{metric}'")


def _rowwise_cosine(syn: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    total = syn[0].new_zeros(len(syn[0]))
    for a, b in zip(syn, real, strict=True):
        if a.ndim > 2:  # class axis apart: weights of two or more axes
            total = total + _one_minus_cosine(a.flatten(2), b.flatten(2)).sum(1)
    return total


def _one_minus_cosine(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine along the last axis, with `EPSILON` added to the product of the norms."""
    norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    distance: Tensor = 1 - (a * b).sum(-1) / (norms + EPSILON)
    return distance


def class_embedding_means(net: NetworkState, images: Tensor) -> Tensor:
    """Mean embedding of each class.

    Args:
        net: The network; its batch norms, if any, see all classes of the chunk as one batch.
        images: `(c, B, C, H, W)`.

    Returns:
        `(c, F)`, averaged over B; differentiable in the images, in a compiled kernel in nothing else.
    """
    if net.batch_norms:
        return _embedding_means(net, images)
    # One forward pass of thousands of images is slower on a CPU than many of some: see docs/performance.md.
    on_cpu = images.device.type == "cpu"
    together = max(1, CPU_IMAGES // images.shape[1]) if on_cpu else classes_at_a_time(net, images)
    return torch.cat([_embedding_means(net, part) for part in torch.split(images, together)])


def _embedding_means(net: NetworkState, images: Tensor) -> Tensor:
    classes, count = images.shape[:2]
    flat = images.flatten(0, 1)
    found = compiled.embed(net, flat)
    return (net.embed(flat) if found is None else found).reshape(classes, count, -1).mean(1)


def batch_norm_statistics(net: NetworkState, images: Tensor, mode: Literal["reference", "exact"] = "reference") -> None:
    """Let batch norms take their statistics from real images, then freeze them.

    Args:
        net: A network with batch norms; without any this does nothing.
        images: `(N, C, H, W)` real images of all classes.
        mode: "reference": one forward pass in training mode moves the running statistics by their momentum, as the
            released code does; "exact": the running statistics become those of `images`.
    """
    layers = net.batch_norms
    if not layers:
        return
    net.train()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0 if mode == "exact" else layer.momentum
    with torch.no_grad():
        net(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.freeze_batch_norms()


def freeze_batch_norms(
    ctx: Context, net: NetworkState, images: int, mode: Literal["reference", "exact"], step: int
) -> None:
    """Let batch norms, if any, take their statistics from random real images of all classes, then freeze them.

    Args:
        ctx: What the images are drawn from; the draw is named `("bn", step)`.
        net: The network; without batch norms nothing is drawn and nothing is done.
        images: Real images of each class.
        mode: As in `batch_norm_statistics`.
        step: Number of the matching step within the iteration.
    """
    if net.batch_norms:
        every = torch.arange(ctx.spec.num_classes, device=ctx.device)
        batch_norm_statistics(net, ctx.real(every, images, "bn", step).flatten(0, 1), mode)


def loops(
    table: Mapping[int, tuple[int, int]],
    images_per_class: int,
    steps: int | Literal["auto"] = "auto",
    epochs: int | Literal["auto"] = "auto",
) -> tuple[int, int]:
    """Matching steps a network, and epochs of training on the synthetic set between two of them.

    Args:
        table: Images a class from which a row holds, to the two numbers of the row. A set that is smaller than the
            first row says takes the first row.
        images_per_class: Size of the set in plain images a class.
        steps: Matching steps; "auto" takes the table's.
        epochs: Epochs; "auto" takes the table's.

    Example:
        >>> table = {1: (1, 1), 2: (10, 50), 20: (20, 25)}
        >>> loops(table, 10), loops(table, 10, steps=3)
        ((10, 50), (3, 50))
    """
    row = table[max(k for k in table if k <= max(min(table), images_per_class))]
    return row[0] if steps == "auto" else steps, row[1] if epochs == "auto" else epochs
