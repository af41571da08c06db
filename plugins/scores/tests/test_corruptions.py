"""Corruptions: images stay images, harm grows with severity, and each does what it is called."""

from __future__ import annotations

import pytest
import torch

from dcf.data import load
from dcf_scores.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    images = data.spec.space.decode(data.test.images(torch.arange(40))).clamp(0, 1)
    return torch.nn.functional.interpolate(images, size=(32, 32), mode="bilinear")


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_harm_grows_with_severity_and_images_stay_images(kind, digits):
    harm = []
    for severity in range(1, 6):
        changed = corrupt(digits, kind, severity, draw())
        assert changed.shape == digits.shape
        assert changed.dtype == torch.float32
        assert float(changed.min()) >= 0
        assert float(changed.max()) <= 1
        harm.append(float((changed - digits).square().mean()))
    assert harm == sorted(harm)
    assert harm[0] > 0
    assert harm[-1] > 1.5 * harm[0]


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 24), (4, 8, 8), (1, 1, 5)])
def test_any_shape_is_taken_and_draws_decide(kind, shape):
    images = torch.rand(6, *shape, generator=draw(1))
    first, again = (corrupt(images, kind, 3, draw()) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(corrupt(images[:2], kind, 3, draw()), first[:2]) or "noise" in kind
    assert torch.equal(corrupt(images, kind, 3, draw(5)), first) == ("noise" not in kind)


def test_severities_are_five_each():
    assert set(SEVERITIES) == set(CORRUPTIONS)
    assert all(len(values) == 5 for values in SEVERITIES.values())


def test_noises_have_their_size():
    grey = torch.full((50, 1, 32, 32), 0.5)
    assert float(corrupt(grey, "gaussian-noise", 5, draw()).std()) == pytest.approx(0.10, rel=0.02)
    assert float(corrupt(grey, "shot-noise", 5, draw()).std()) == pytest.approx((0.5 / 50) ** 0.5, rel=0.02)
    salt = corrupt(grey, "impulse-noise", 5, draw())
    assert float((salt != 0.5).float().mean()) == pytest.approx(0.07, abs=0.004)
    assert float((salt == 1).float().mean()) == pytest.approx(0.035, abs=0.003)


def test_blur_is_a_gaussian_that_keeps_the_sum():
    dot = torch.zeros(1, 1, 33, 33)
    dot[..., 16, 16] = 1
    seen = corrupt(dot, "blur", 4, draw())[0, 0]
    sigma = 1.0 * 33 / 32
    place = torch.arange(33) - 16.0
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    assert float((seen.sum(0) * place.square()).sum()) == pytest.approx(sigma**2, rel=0.05)
    assert torch.allclose(seen, seen.T, atol=1e-6)


def test_contrast_keeps_the_mean_and_brightness_moves_it():
    images = torch.rand(4, 3, 8, 8, generator=draw()) * 0.4 + 0.2
    faint, bright = (corrupt(images, kind, 2, draw()) for kind in ("contrast", "brightness"))
    assert torch.allclose(faint.mean((2, 3)), images.mean((2, 3)), atol=1e-6)
    assert torch.allclose(faint.std((2, 3)), images.std((2, 3)) / 2, atol=1e-6)
    assert torch.allclose(bright, images + 0.1)


def test_pixelation_makes_blocks():
    blocks = corrupt(torch.rand(1, 1, 8, 8, generator=draw()), "pixelate", 3, draw())
    corners = blocks[..., ::2, ::2]
    assert torch.equal(blocks, corners.repeat_interleave(2, -1).repeat_interleave(2, -2))
    assert len(corners.unique()) == 16
