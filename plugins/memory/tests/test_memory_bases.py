"""The formulas: mixing and enlarging against slow loops, the best bases against other ways to them, and the noise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcf_memory.bases import addresses_of, basis_size, best_bases, enlarge, recall, xavier


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(side, down):
    """Bilinear weights of one axis, `(side, ceil(side / down))`, from the position of each pixel's centre."""
    small = math.ceil(side / down)
    table = torch.zeros(side, small, dtype=torch.float64)
    for i in range(side):
        place = max(0.0, (i + 0.5) / down - 0.5)
        left = min(int(place), small - 1)
        table[i, left] += 1 - (place - left)
        table[i, min(left + 1, small - 1)] += place - left
    return table


SIZES = st.tuples(*[st.integers(1, high) for high in (3, 4, 3, 9, 9, 4)])


@settings(deadline=None, max_examples=12)
@given(SIZES, st.integers(0, 100))
def test_recall_and_its_gradients_equal_a_loop(sizes, seed):
    n, k, c, height, width, down = sizes
    h, w = basis_size((height, width), down)
    addresses, bases = draw(n, k, seed=seed).requires_grad_(), draw(k, c, h, w, seed=seed + 1).requires_grad_()
    upstream = draw(n, c, height, width, seed=seed + 2)
    rows, columns = weights(height, down), weights(width, down)
    images = recall(addresses, bases, down, (height, width))
    found = torch.autograd.grad(images, [addresses, bases], upstream)
    loop = torch.zeros(n, c, height, width, dtype=torch.float64)
    wanted = [torch.zeros_like(addresses), torch.zeros_like(bases)]
    with torch.no_grad():
        for i in range(n):
            for j in range(k):
                for channel in range(c):
                    plane = rows @ bases[j, channel] @ columns.T
                    loop[i, channel] += addresses[i, j] * plane
                    wanted[0][i, j] += (upstream[i, channel] * plane).sum()
                    wanted[1][j, channel] += addresses[i, j] * (rows.T @ upstream[i, channel] @ columns)
    assert torch.allclose(images, loop, rtol=1e-12, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("down", [2, 3, 5])
def test_where_the_factor_does_not_divide_only_the_far_edge_is_cut(down):
    canvases = draw(2, 3, 4, 6)
    whole = enlarge(canvases, down, (4 * down, 6 * down))
    assert whole.shape == (2, 3, 4 * down, 6 * down)
    height, width = 4 * down - 1, 6 * down - (down - 1)
    assert basis_size((height, width), down) == (4, 6)
    assert torch.equal(enlarge(canvases, down, (height, width)), whole[:, :, :height, :width])


@settings(deadline=None, max_examples=25)
@given(SIZES, st.integers(1, 6), st.integers(0, 100))
def test_no_bases_come_closer_to_the_images(sizes, items, seed):
    _, count, c, height, width, down = sizes
    images = draw(items, c, height, width, seed=seed)
    bases = best_bases(images, count, down)
    enlarged = enlarge(bases, down, (height, width))
    lost = (recall(addresses_of(images, enlarged), bases, down, (height, width)) - images).square().sum()
    # What no small canvas can show, and what the rank leaves out of the rest.
    shown = torch.kron(torch.eye(c), torch.kron(weights(height, down), weights(width, down))).double()
    inside = images.flatten(1) @ torch.linalg.qr(shown).Q
    outside = images.square().sum() - inside.square().sum()
    assert float(lost) == pytest.approx(float(outside + torch.linalg.svdvals(inside)[count:].square().sum()), abs=1e-8)


def test_as_many_bases_as_directions_give_small_images_back():
    bases, addresses = draw(4, 3, 5, 4), draw(9, 4)
    images = recall(addresses, bases, 2, (9, 8))
    found = best_bases(images, 4, 2)
    again = recall(addresses_of(images, enlarge(found, 2, (9, 8))), found, 2, (9, 8))
    assert torch.allclose(again, images, atol=1e-10)
    assert best_bases(images, 10, 2).shape == (4, 3, 5, 4)


def test_bases_and_addresses_share_the_energy_and_signs_are_settled():
    images = draw(20, 2, 8, 8)
    bases = best_bases(images, 3, 2)
    enlarged = enlarge(bases, 2, (8, 8))
    addresses = addresses_of(images, enlarged)
    assert torch.allclose(addresses.T @ addresses, enlarged.flatten(1) @ enlarged.flatten(1).T, atol=1e-10)
    energy = addresses.square().sum(0)
    assert bool((energy[:-1] >= energy[1:]).all())
    assert torch.allclose(best_bases(-images, 3, 2), bases, atol=1e-10)


@pytest.mark.parametrize("images", [torch.zeros(3, 1, 6, 6), torch.ones(3, 1, 6, 6)])
def test_images_without_directions_need_no_bases(images):
    found = best_bases(images, 4, 2)
    assert len(found) == int(images.sum() > 0)
    again = recall(addresses_of(images, enlarge(found, 2, (6, 6))), found, 2, (6, 6))
    assert torch.allclose(again, images, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(16, 768), (1150, 16)])
def test_xavier_is_that_of_pytorch(rows, columns):
    ours = xavier(rows, columns, torch.Generator().manual_seed(0))
    theirs = nn.init.xavier_uniform_(torch.empty(rows, columns), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ours, theirs, atol=1e-7)
    assert float(ours.abs().max()) == pytest.approx((6 / (rows + columns)) ** 0.5, rel=0.01)
