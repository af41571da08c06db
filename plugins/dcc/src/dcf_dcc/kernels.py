"""Empirical tangent kernels of networks: what they are, how far two are apart, which images they are taken on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, vmap

import dcf

__all__ = ["epochs_of_kernels", "kernel_distance", "mean_velocity", "probe", "tangent_kernel", "velocities"]


def probe(labels: Tensor, num_classes: int, n: int, generator: torch.Generator) -> Tensor:
    """Random image numbers, as equally many of each class as n and the classes allow.

    Args:
        labels: `(N,)` class indices.
        num_classes: K.
        n: Images wanted; the first `n % K` classes have one more than the others.
        generator: CPU generator; used once a class, in order.

    Returns:
        `(m,)` numbers on the CPU, class-major; m < n only where a class has too few.
    """
    labels = labels.cpu()
    chosen = []
    for c in range(num_classes):
        members = torch.nonzero(labels == c).flatten()
        wanted = n // num_classes + (c < n % num_classes)
        chosen.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(chosen)


def tangent_kernel(
    net: dcf.NetworkState, images: Tensor, mode: Literal["sum", "trace"] = "sum", batch: int = 32
) -> Tensor:
    """The empirical neural tangent kernel of a network on some images, with its layers in evaluation mode.

    With J_k(x) the gradient of logit k of image x in all weights (standard parametrisation, as trained):
    "trace" is `sum_k <J_k(x_i), J_k(x_j)>`, the trace over classes of the exact kernel; "sum" is
    `<sum_k J_k(x_i), sum_k J_k(x_j)>`, the kernel of the sum of logits, which costs a K-th.

    Args:
        net: The network; left as it is.
        images: `(n, C, H, W)`.
        mode: "sum" or "trace".
        batch: Images whose gradients are computed at once; does not change the result beyond rounding.

    Returns:
        `(n, n)` float64, symmetric and positive semi-definite up to rounding. Gradients are computed in the
        network's precision and multiplied in float64.
    """
    with _eval_mode(net), torch.no_grad():
        if mode == "sum":
            return _gram(net, images, lambda logits: logits.sum(), batch)
        return torch.stack([_gram(net, images, _logit(k), batch) for k in range(_classes(net, images))]).sum(0)


def _classes(net: dcf.NetworkState, images: Tensor) -> int:
    return int(net(images[:1]).shape[1])


def _logit(k: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[k]


def _gram(net: dcf.NetworkState, images: Tensor, output: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """`(n, n)` inner products of the gradients of `output(logits)` of each image."""

    def value(params: Mapping[str, Tensor], image: Tensor) -> Tensor:
        return output(net(image[None], params)[0])

    params = {k: p.detach() for k, p in net.params.items()}
    rows: dict[str, Tensor] = vmap(grad(value), in_dims=(None, 0), chunk_size=batch)(params, images)
    total = torch.zeros(len(images), len(images), dtype=torch.float64, device=images.device)
    for weight in rows.values():
        flat = weight.flatten(1).double()
        total += flat @ flat.T
    return total


@contextmanager
def _eval_mode(net: dcf.NetworkState) -> Iterator[None]:
    modes = [(module, module.training) for module in net.module.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """One minus the cosine of two kernels as vectors (Fort et al., NeurIPS 2020).

    Args:
        a: `(n, n)`.
        b: `(n, n)`.

    Returns:
        In [0, 1] for positive semi-definite kernels; 0 for equal ones, whatever their scale. A kernel that is zero
        has the distance 1 from every other.
    """
    norms = torch.linalg.matrix_norm(a) * torch.linalg.matrix_norm(b)
    cosine = (a * b).sum() / norms.clamp(min=torch.finfo(a.dtype).tiny)
    return max(0.0, 1.0 - float(cosine))


def epochs_of_kernels(total: int, every: int, until: int) -> list[int]:
    """After which numbers of epochs kernels are taken: 0, `every`, 2 `every`, ..., and the last one.

    Args:
        total: Epochs of the training.
        every: Epochs between two.
        until: Last epoch of interest; beyond `total` it is `total`.

    Example:
        >>> epochs_of_kernels(100, 2, 5)
        [0, 2, 4, 5]
    """
    last = min(total, until)
    return [*range(0, last, every), last]


def velocities(distances: Sequence[float], epochs: Sequence[int]) -> list[float]:
    """Kernel velocities: the distance of two kernels in a row over the epochs between them.

    Args:
        distances: Of kernel t and kernel t + 1.
        epochs: When the kernels were taken; one more than distances.
    """
    return [s / (later - before) for s, (before, later) in zip(distances, itertools.pairwise(epochs), strict=True)]


def mean_velocity(distances: Sequence[float], epochs: Sequence[int]) -> float:
    """The velocity averaged over time: the sum of the distances over all epochs between the first and the last."""
    return sum(distances) / (epochs[-1] - epochs[0])
