"""The mathematics of the contrastive loss: class-averaged gradients, their distance, and how classes couple."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dcf
from dcf.matching import Metric, batch_gradients, class_gradients, gradient_distance

__all__ = ["class_coupling", "contrastive", "joint_distance", "mean_gradient", "mean_gradient_parts", "passes", "pull"]

#: Images that go through a network in one forward pass on a CPU; more are slower there.
CPU_IMAGES = 256

#: Pixels that go through a network in one forward pass elsewhere: 4096 images of 32 x 32.
DEVICE_PIXELS = 4096 * 32 * 32


def contrastive(it: int, step: int, outer_warmup: int, inner_warmup: int) -> bool:
    """Whether a matching step uses the contrastive loss (Lee et al., ICML 2022, bi-level warm-up).

    Args:
        it: Number of the network, from 0.
        step: Number of the matching step on this network, from 0.
        outer_warmup: Networks that begin class-wise.
        inner_warmup: Class-wise steps of each of these.

    Example:
        >>> contrastive(0, 9, 250, 10), contrastive(0, 10, 250, 10), contrastive(250, 0, 250, 10)
        (False, True, True)
    """
    return it >= outer_warmup or step >= inner_warmup


def passes(images: Tensor) -> int:
    """How many of `(N, C, H, W)` images make one forward pass."""
    if images.device.type == "cpu":
        return CPU_IMAGES
    return max(1, DEVICE_PIXELS // (images.shape[-2] * images.shape[-1]))


def mean_gradient(
    net: dcf.NetworkState, images: Tensor, labels: Tensor, share: float = 1.0, create_graph: bool = False
) -> list[Tensor]:
    """The mean over classes of the gradients of each class's mean cross-entropy.

    As every class has as many images, this is the gradient of the mean cross-entropy of all of them, so no class
    needs a gradient of its own. It is exact for networks whose output for an image does not depend on the others
    of its batch; batch norms must be frozen.

    Args:
        net: The network at its present weights.
        images: `(c, B, C, H, W)`, c classes with B images each.
        labels: `(c, B)` class indices, or `(c, B, K)` probabilities.
        share: Factor of the result: the share of these c classes among all, where the mean is gathered in parts.
        create_graph: Whether the result shall be differentiable with respect to `images` and `labels`.

    Returns:
        One tensor for each weight, in order of `net.params`; constant without `create_graph`.

    Raises:
        ValueError: When there is no image.
    """
    if not images.shape[0] * images.shape[1]:
        raise ValueError(f"expected at least one image, got shape {tuple(images.shape)}")
    x, y = images.flatten(0, 1), labels.flatten(0, 1)
    total, size = [torch.zeros_like(w) for w in net.parameters()], passes(x)
    for part, truth in zip(torch.split(x, size), torch.split(y, size), strict=True):
        factor, found = share * len(part) / len(x), batch_gradients(net, part, truth, create_graph)
        total = [a + factor * b for a, b in zip(total, found, strict=True)]
    return total


def mean_gradient_parts(
    net: dcf.NetworkState, images: Tensor, labels: Tensor, share: float, create_graph: bool = False
) -> list[list[Tensor]]:
    """What `mean_gradient` is the sum of: on a CPU one part for each class, elsewhere one for all of them.

    A CPU takes no more images at a time than one class has, so apart costs nothing there, and then the sum over all
    classes does not depend on how they are divided into chunks and among processes.

    Args:
        net: As for `mean_gradient`, like all that follow.
        images: `(c, B, C, H, W)`.
        labels: `(c, B)` or `(c, B, K)`.
        share: Of these c classes among all.
        create_graph: Whether the parts shall be differentiable.

    Returns:
        Lists of one tensor for each weight, in order of the classes.
    """
    if images.device.type != "cpu":
        return [mean_gradient(net, images, labels, share, create_graph)]
    each = share / len(images)
    gradients = class_gradients(net, images, labels, create_graph)
    return [[g[c] * each for g in gradients] for c in range(len(images))]


def joint_distance(syn: Sequence[Tensor], real: Sequence[Tensor], metric: Metric = "ours") -> Tensor:
    """The contrastive loss: the distance of two gradients that are means over classes (Lee et al., ICML 2022).

    Args:
        syn: One tensor for each weight, differentiable.
        real: Tensors of the same shapes, constant.
        metric: See `dcf.matching.gradient_distance`.

    Returns:
        Scalar, not averaged over anything.
    """
    return gradient_distance([g[None] for g in syn], [g[None] for g in real], metric)[0]


def pull(syn: Sequence[Tensor], real: Sequence[Tensor], metric: Metric = "ours") -> tuple[Tensor, list[Tensor]]:
    """The contrastive loss, and its gradient with respect to the synthetic gradient.

    With v that gradient and G the synthetic gradient, a sum of parts G_p, the loss changes with the images of part p
    as `<v, G_p>` does, v held constant. So the graph of one part at a time is enough.

    Args:
        syn: One tensor for each weight; its graph, if any, is not used.
        real: Tensors of the same shapes, constant.
        metric: See `dcf.matching.gradient_distance`.

    Returns:
        Scalar loss and one tensor for each weight, all constant.
    """
    leaves = [g.detach().requires_grad_() for g in syn]
    loss = joint_distance(leaves, real, metric)
    return loss.detach(), list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def class_coupling(syn: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """How strongly the gradients of synthetic classes are tied to those of every real class.

    For synthetic class i and real class c, the sum over weights of two or more axes, and over their rows (first
    axis), of the absolute inner product of the rows; then divided by the sum over c (an analysis function of the
    released code, there for class 0 only and never called).

    Args:
        syn: Gradients `(i, *weight.shape)` of synthetic classes.
        real: Gradients `(c, *weight.shape)` of real classes.

    Returns:
        `(i, c)`, in [0, 1], rows sum to 1; a row is zero where every inner product is.
    """
    total = syn[0].new_zeros(len(syn[0]), len(real[0]))
    for a, b in zip(syn, real, strict=True):
        if a.ndim > 2:  # class axis apart: weights of two or more axes
            total = total + torch.einsum("irk,crk->icr", a.flatten(2), b.flatten(2)).abs().sum(2)
    return total / total.sum(1, keepdim=True).clamp(min=torch.finfo(total.dtype).tiny)
