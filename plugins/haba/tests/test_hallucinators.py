"""Hallucinators against slow loops and PyTorch's own layers: values, gradients, starts and costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcf_haba.hallucinators import Sizes, Styles, around_identity, as_layers, hallucinate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_styles(sizes, seed=0):
    draw = generator(seed)
    return Styles(*(torch.randn(t.shape, generator=draw, dtype=torch.float64) for t in sizes.zeros()))


def slow(basis, styles, n):
    """One image by loops over positions, with no convolution."""
    weight, bias, scale, shift, back, out_bias = (t[n] for t in styles)
    middle, channels, k = weight.shape[0], weight.shape[1], weight.shape[2]
    _, height, width = basis.shape
    image = out_bias[:, None, None].expand(-1, height, width).clone()
    for y in range(height - k + 1):
        for x in range(width - k + 1):
            for m in range(middle):
                value = bias[m] + sum((basis[c, y : y + k, x : x + k] * weight[m, c]).sum() for c in range(channels))
                styled = value * scale[m, y, x] + shift[m, y, x]
                image[:, y : y + k, x : x + k] = image[:, y : y + k, x : x + k] + styled * back[m]
    return image


SIZES = st.tuples(*[st.integers(1, high) for high in (3, 3, 4, 3, 3)], st.integers(3, 5), st.integers(3, 6))


@settings(deadline=None, max_examples=10)
@given(SIZES, st.integers(0, 100))
def test_images_and_gradients_equal_a_loop(sizes, seed):
    sizes = Sizes(*sizes)
    styles = Styles(*(t.requires_grad_() for t in random_styles(sizes, seed)))
    shape = (sizes.styles, sizes.basis, sizes.height, sizes.width)
    bases = torch.randn(shape, generator=generator(seed), dtype=torch.float64).requires_grad_()
    images = hallucinate(bases, styles)
    wanted = torch.stack([slow(bases[n], styles, n) for n in range(sizes.styles)])
    assert images.shape == (sizes.styles, sizes.image, sizes.height, sizes.width)
    assert torch.allclose(images, wanted, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(images.shape, generator=generator(seed + 1), dtype=torch.float64)
    learned = [bases, *styles]
    found, expected = (torch.autograd.grad(x, learned, upstream) for x in (images, wanted))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(found, expected, strict=True))


def test_no_bases_make_no_images():
    assert hallucinate(torch.zeros(0, 3, 8, 8), Styles(*(t[:0] for t in Sizes(2, 3, 3, 1, 3, 8, 8).zeros()))).shape == (
        *(0, 1, 8, 8),
    )


@pytest.mark.parametrize(
    ("sizes", "floats"),
    [((5, 3, 3, 3, 3, 32, 32), 27_840), ((1, 3, 3, 3, 3, 32, 32), 5568), ((1, 1, 3, 3, 3, 32, 32), 5514)],
)
def test_costs_are_the_published_ones(sizes, floats):
    assert sum(t.numel() for t in Sizes(*sizes).zeros()) == floats


@pytest.mark.parametrize(("basis", "middle", "image", "kernel"), [(3, 3, 3, 3), (1, 4, 3, 5), (3, 2, 1, 2)])
def test_published_start_is_that_of_pytorchs_layers(basis, middle, image, kernel):
    ours = as_layers(Sizes(400, basis, middle, image, kernel, 8, 8), generator())
    torch.manual_seed(0)
    for name, layer in (
        ("encoder", nn.Conv2d(basis, middle, kernel)),
        ("decoder", nn.ConvTranspose2d(middle, image, kernel)),
    ):
        for part in ("weight", "bias"):
            fan = layer.weight.shape[1] * kernel**2
            values = getattr(ours, f"{name}_{part}")
            assert values.shape[1:] == getattr(layer, part).shape
            assert float(values.abs().max()) == pytest.approx(fan**-0.5, rel=0.02)
            assert float(values.mean()) == pytest.approx(0, abs=0.1 * fan**-0.5)
            assert float(getattr(layer, part).detach().abs().max()) <= fan**-0.5
    assert bool((ours.scale == 1).all())
    assert bool((ours.shift == 0).all())


@pytest.mark.parametrize(("middle", "kernel"), [(3, 3), (5, 2), (3, 5)])
def test_identity_shows_a_basis_inside_its_frame(middle, kernel):
    bases = torch.randn(4, 3, 16, 16, generator=generator())
    images = hallucinate(bases, around_identity(Sizes(4, 3, middle, 3, kernel, 16, 16), generator(1)))
    inside = slice(kernel // 2, 16 - kernel // 2)
    off = (images - bases)[..., inside, inside]
    assert float(off.square().mean()) < 0.25 * float(bases.square().mean())
    assert float((off[0] - off[1]).square().mean()) > 1e-4  # and each a little differently
