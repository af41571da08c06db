"""The formulas: product and its gradients, the best approximation, and the statistics of the noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf_lowrank.factors import balanced_svd, noise_factors, rank_decode, variance_corrected


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SIZES = st.tuples(*[st.integers(1, high) for high in (3, 3, 7, 7, 5)])


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(0, 100))
def test_product_and_its_gradients(sizes, seed):
    n, c, h, w, r = sizes
    a, b, upstream = draw(n, c, h, r, seed=seed), draw(n, c, r, w, seed=seed + 1), draw(n, c, h, w, seed=seed + 2)
    a.requires_grad_()
    b.requires_grad_()
    images = rank_decode(a, b)
    assert torch.allclose(images, torch.einsum("ncik,nckj->ncij", a, b), rtol=1e-12, atol=1e-12)
    da, db = torch.autograd.grad(images, [a, b], upstream)
    assert torch.allclose(da, torch.einsum("ncij,nckj->ncik", upstream, b), rtol=1e-12, atol=1e-12)
    assert torch.allclose(db, torch.einsum("ncik,ncij->nckj", a, upstream), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(0, 100))
def test_truncation_is_the_best_of_its_rank(sizes, seed):
    n, c, h, w, r = sizes
    r = min(r, h, w)
    images = draw(n, c, h, w, seed=seed)
    a, b = balanced_svd(images, r)
    assert (a.shape, b.shape) == ((n, c, h, r), (n, c, r, w))
    error = (rank_decode(a, b) - images).square().sum((-2, -1)).sqrt()
    for i in np.ndindex(n, c):
        singular = np.linalg.svd(images[i].numpy(), compute_uv=False)
        assert float(error[i]) == pytest.approx(np.sqrt((singular[r:] ** 2).sum()), abs=1e-10)


def test_full_rank_gives_the_images_back():
    for shape in [(2, 3, 6, 9), (2, 1, 9, 6), (1, 1, 1, 5)]:
        images = draw(*shape)
        assert torch.allclose(rank_decode(*balanced_svd(images, min(shape[2:]))), images, atol=1e-12)


def test_factors_are_balanced_and_their_sign_is_settled():
    images = draw(3, 2, 7, 5)
    a, b = balanced_svd(images, 3)
    assert torch.allclose(a.mT @ a, b @ b.mT, atol=1e-12)
    assert bool((a.gather(-2, a.abs().argmax(-2, keepdim=True)) > 0).all())
    # The same matrix up to the sign that a decomposition is free to choose.
    again = balanced_svd(-images, 3)
    assert torch.allclose(again[0], a, atol=1e-12)
    assert torch.allclose(again[1], -b, atol=1e-12)


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)])
def test_directions_without_energy_can_still_be_learned(images):
    a, b = (factor.requires_grad_() for factor in balanced_svd(images, 3))
    assert torch.allclose(rank_decode(a, b), images, atol=1e-6)
    upstream = draw(1, 1, 6, 6, dtype=torch.float32)
    _, db = torch.autograd.grad(rank_decode(a, b), [a, b], upstream)
    assert float(db.abs().amax(-1).min()) > 0.1


def test_rank_beyond_the_sides_is_refused():
    with pytest.raises(dcf.BudgetError, match="have no rank 5; expected at most 4"):
        balanced_svd(torch.zeros(1, 1, 4, 6), 5)


@pytest.mark.parametrize("r", [1, 2, 4, 8])
def test_noise_has_the_published_spread_and_the_corrected_one_is_as_asked(r):
    shapes = [(400, 3, 32, r), (400, 3, r, 32)]
    a, b = noise_factors(shapes, torch.Generator().manual_seed(r))
    assert (a.shape, b.shape) == tuple(map(torch.Size, shapes))
    assert a.std().item() == pytest.approx(1, rel=0.01)
    images = rank_decode(a, b)
    assert images.mean().item() == pytest.approx(0, abs=0.02)
    assert images.std().item() / r**0.5 == pytest.approx(1, rel=0.01)
    for sigma in (0.25, 1.25):
        left, right = variance_corrected(a, b, sigma)
        assert rank_decode(left, right).std().item() == pytest.approx(sigma, rel=0.01)
        assert left.std().item() == pytest.approx(right.std().item(), rel=0.01)


def test_noise_depends_on_its_generator_alone():
    first, again = (noise_factors([(2, 3), (3, 2)], torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(map(torch.equal, first, again))
