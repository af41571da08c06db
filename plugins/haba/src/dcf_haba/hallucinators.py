"""Hallucinators: what turns a basis into an image, how much it stores, and what it begins with."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NAMES", "Sizes", "Styles", "around_identity", "as_layers", "hallucinate"]


class Styles(NamedTuple):
    """The stored tensors of S hallucinators, each with first axis S.

    Attributes:
        encoder_weight: `(S, M, B, k, k)` of the convolution, from the B channels of a basis to M.
        encoder_bias: `(S, M)`.
        scale: `(S, M, H-k+1, W-k+1)`, what every position is multiplied by.
        shift: `(S, M, H-k+1, W-k+1)`, what is added then.
        decoder_weight: `(S, M, C, k, k)` of the transposed convolution, from M channels to those of an image.
        decoder_bias: `(S, C)`.
    """

    encoder_weight: Tensor
    encoder_bias: Tensor
    scale: Tensor
    shift: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor


#: What the stored tensors are called, in order.
NAMES: Final = Styles._fields


class Sizes(NamedTuple):
    """What decides the shapes of hallucinators.

    Attributes:
        styles: S.
        basis: Channels B of a basis.
        middle: Channels M between the two convolutions.
        image: Channels C of an image.
        kernel: Side k of both kernels.
        height: Rows H of a basis, and of an image.
        width: Columns W.
    """

    styles: int
    basis: int
    middle: int
    image: int
    kernel: int
    height: int
    width: int

    def zeros(self) -> Styles:
        """Tensors of these shapes, zero."""
        s, b, m, c, k, height, width = self
        inside = (s, m, height - k + 1, width - k + 1)
        shapes = ((s, m, b, k, k), (s, m), inside, inside, (s, m, c, k, k), (s, c))
        return Styles(*map(torch.zeros, shapes))


def hallucinate(bases: Tensor, styles: Styles) -> Tensor:
    """Image n is what hallucinator n makes of basis n (Liu et al., NeurIPS 2022, section 3.2).

    A convolution without padding, times a scale and plus a shift of each position and channel, and a transposed
    convolution back to the size of the basis. Nothing in it is non-linear, so an image is an affine function of its
    basis.

    Args:
        bases: `(N, B, H, W)`, of any value.
        styles: The hallucinator of each basis: tensors with first axis N.

    Returns:
        `(N, C, H, W)`, in the value space of what was learned; no clamp.
    """
    n, k = len(bases), styles.encoder_weight.shape[-1]
    if not n:
        return bases.new_zeros(0, styles.decoder_bias.shape[1], *bases.shape[2:])
    # One group a basis: each is convolved with kernels of its own, in one call.
    encoded = F.conv2d(
        bases.reshape(1, -1, *bases.shape[2:]), styles.encoder_weight.reshape(-1, bases.shape[1], k, k),
        styles.encoder_bias.flatten(), groups=n,
    )  # fmt: skip
    styled = encoded.view_as(styles.scale) * styles.scale + styles.shift
    decoded = F.conv_transpose2d(
        styled.reshape(1, -1, *styled.shape[2:]), styles.decoder_weight.flatten(0, 1), styles.decoder_bias.flatten(),
        groups=n,
    )  # fmt: skip
    return decoded.reshape(n, -1, *decoded.shape[2:])


def as_layers(sizes: Sizes, generator: torch.Generator) -> Styles:
    """The published start: convolutions as PyTorch begins them, scales of 1, shifts of 0.

    Weights and biases of a convolution are uniform in +- 1 / sqrt(n), with n = B k^2 for the first. For the
    transposed one PyTorch counts n = C k^2, its outputs, and so is it here.

    Args:
        sizes: Of the tensors.
        generator: The only source of randomness, on the CPU.
    """
    empty, area = sizes.zeros(), sizes.kernel**2
    inward, outward = (sizes.basis * area) ** -0.5, (sizes.image * area) ** -0.5

    def uniform(like: Tensor, bound: float) -> Tensor:
        return (2 * torch.rand(like.shape, generator=generator) - 1) * bound

    return Styles(
        uniform(empty.encoder_weight, inward), uniform(empty.encoder_bias, inward), torch.ones_like(empty.scale),
        empty.shift, uniform(empty.decoder_weight, outward), uniform(empty.decoder_bias, outward),
    )  # fmt: skip


def around_identity(sizes: Sizes, generator: torch.Generator) -> Styles:
    """Ours: each hallucinator shows a basis nearly as it is, and each a little differently.

    The middle of both kernels passes every channel on, to the next one in turn where their numbers differ; around it
    is a tenth of the noise of `as_layers`. The outermost `k // 2` rows and columns of an image come from the noise
    alone, since a convolution without padding has no place for them.

    Args:
        sizes: Of the tensors.
        generator: The only source of randomness, on the CPU.
    """
    noisy, centre = as_layers(sizes, generator), sizes.kernel // 2
    kernels = [0.1 * noisy.encoder_weight, 0.1 * noisy.decoder_weight]
    for channel in range(sizes.middle):
        kernels[0][:, channel, channel % sizes.basis, centre, centre] += 1
    for channel in range(sizes.image):
        kernels[1][:, channel % sizes.middle, channel, centre, centre] += 1
    return noisy._replace(
        encoder_weight=kernels[0], encoder_bias=0.1 * noisy.encoder_bias,
        decoder_weight=kernels[1], decoder_bias=0.1 * noisy.decoder_bias,
    )  # fmt: skip
