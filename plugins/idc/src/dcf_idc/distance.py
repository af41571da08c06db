"""What is compared: gradients or block outputs of real and synthetic images of a class (Kim et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import dcf
from dcf.matching import class_gradients, classes_at_a_time
from dcf_idc.options import Distance

__all__ = ["block_means", "feature_loss", "gradient_loss", "point_distance", "weights_compared"]

#: Added to the product of norms, as published.
EPSILON = 1e-6


def point_distance(x: Tensor, y: Tensor, metric: Distance) -> Tensor:
    """Distance of one tensor of each class of a chunk from another.

    Args:
        x: `(c, R, ...)`: of each class, R rows and anything after.
        y: Of the same shape.
        metric: "mse": squared differences, summed over all entries, in spite of its name; "l1": absolute ones,
            summed; "l1_mean": absolute ones, averaged within each row and summed over rows; "cos": one minus the
            cosine of each row, with 1e-6 added to the product of the norms, summed over rows. Rows of a tensor
            `(c, R)` are single numbers.

    Returns:
        `(c,)`.
    """
    a, b = (t.reshape(t.shape[0], t.shape[1], -1) for t in (x, y))
    if metric == "mse":
        return (a - b).square().sum((1, 2))
    if metric == "l1":
        return (a - b).abs().sum((1, 2))
    if metric == "l1_mean":
        return (a - b).abs().mean(2).sum(1)
    norms = torch.linalg.vector_norm(a, dim=2) * torch.linalg.vector_norm(b, dim=2)
    cosine: Tensor = (a * b).sum(2) / (norms + EPSILON)
    return (1 - cosine).sum(1)


def weights_compared(net: dcf.NetworkState, bias: bool, fc: bool) -> list[int]:
    """Numbers of the weights whose gradients are compared: those of convolutions, and others where asked for.

    Args:
        net: The network.
        bias: Those of one axis, too: biases, scales and shifts of norms.
        fc: Those of two axes, too: linear layers.

    Raises:
        UsageError: When there are none.
    """
    skipped = {axes for axes, wanted in ((1, bias), (2, fc)) if not wanted}
    found = [number for number, weight in enumerate(net.parameters()) if weight.ndim not in skipped]
    if not found:
        raise dcf.UsageError(
            f"idc: {net.module.label} has no convolution whose gradient could be compared; compare those of its other "
            "weights: --set matcher.fc=true"
        )
    return found


def gradient_loss(
    net: dcf.NetworkState, real: dcf.Batch, syn: dcf.Batch, metric: Distance, bias: bool = False, fc: bool = False
) -> Tensor:
    """Distance of the gradients of the mean cross-entropy, summed over weights, for each class of a chunk.

    Args:
        net: The network.
        real: `x` of `(c, B, C, H, W)` and `y` of `(c, B)` or `(c, B, K)`; held constant.
        syn: `x` of `(c, I, C, H, W)` and labels likewise.
        metric: See `point_distance`; rows are outputs of a layer.
        bias: See `weights_compared`.
        fc: Likewise.

    Returns:
        `(c,)`, differentiable in the synthetic images and labels.
    """
    numbers = weights_compared(net, bias, fc)
    constant = class_gradients(net, real.x, real.y)
    moving = class_gradients(net, syn.x, syn.y, create_graph=True)
    return torch.stack([point_distance(constant[i], moving[i], metric) for i in numbers]).sum(0)


def feature_loss(net: dcf.NetworkState, real: Tensor, syn: Tensor, metric: Distance, blocks: Sequence[int]) -> Tensor:
    """Distance of the mean outputs of blocks, summed over blocks, for each class of a chunk.

    Args:
        net: The network.
        real: `(c, B, C, H, W)`; held constant.
        syn: `(c, I, C, H, W)`.
        metric: See `point_distance`; rows are channels.
        blocks: Numbers of the blocks, from 0; -1 is the last.

    Returns:
        `(c,)`, differentiable in the synthetic images.

    Raises:
        UsageError: When the network has no such block.
    """
    with torch.no_grad():
        constant = block_means(net, real, blocks)
    moving = block_means(net, syn, blocks)
    return torch.stack([point_distance(a, b, metric) for a, b in zip(constant, moving, strict=True)]).sum(0)


def block_means(net: dcf.NetworkState, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Outputs of blocks, averaged over the images of each class.

    Args:
        net: The network; batch norms, if any, see one class at a time.
        images: `(c, B, C, H, W)`.
        blocks: Numbers of the blocks.

    Returns:
        `(c, ...)` for each block.

    Raises:
        UsageError: When the network has no such block.
    """
    # On a GPU as many at once as there is room for: it has more to do then, and less is launched.
    size = classes_at_a_time(net, images) if images.is_cuda and not net.batch_norms else 1
    parts = []
    for some in torch.split(images, size):
        outputs = _blocks(net, some.flatten(0, 1), blocks)
        parts.append([output.unflatten(0, some.shape[:2]).mean(1) for output in outputs])
    return [torch.cat(means) for means in zip(*parts, strict=True)]


def _blocks(net: dcf.NetworkState, images: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    found = net.blocks(images)
    if max(blocks) >= len(found):
        raise dcf.UsageError(
            f"idc: {net.module.label} has {len(found)} blocks, numbered from 0; expected idx_from and idx_to below "
            f"{len(found)}, got {max(blocks)}"
        )
    return [found[number] for number in blocks]
