"""Attacks: they stay in the box, move along the gradient of pixels, and do harm."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dcf.space import ValueSpace
from dcf_scores.attacks import fgsm, pgd

SPACE = ValueSpace((0.4, 0.5, 0.6), (0.2, 0.01, 0.3))
EPS = 8 / 255


def problem(seed=0):
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(3 * 16, 4, generator=draw)

    def model(pixels):
        return SPACE.encode(pixels).tanh().flatten(1) @ weights

    pixels = torch.rand(20, 3, 4, 4, generator=draw)
    return model, pixels, torch.randint(4, (20,), generator=draw)


def attacked(name, model, pixels, labels, eps=EPS, steps=10, step=EPS / 4):
    if name == "fgsm":
        return fgsm(model, pixels, labels, eps)
    return pgd(model, pixels, labels, eps, steps, step, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_images_stay_within_the_box_and_are_images(name):
    model, pixels, labels = problem()
    moved = attacked(name, model, pixels, labels)
    assert float((moved - pixels).abs().max()) <= EPS + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    assert not moved.requires_grad


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_attacks_raise_the_loss(name):
    model, pixels, labels = problem()
    before, after = (F.cross_entropy(model(x), labels) for x in (pixels, attacked(name, model, pixels, labels)))
    assert after > before


def test_many_small_steps_do_more_harm_than_one():
    model, pixels, labels = problem()
    one, many = (F.cross_entropy(model(attacked(n, model, pixels, labels)), labels) for n in ("fgsm", "pgd"))
    assert many > one


def test_one_step_is_along_the_sign_of_the_gradient_in_pixels():
    model, pixels, labels = problem()
    pixels = pixels.double().clamp(0.1, 0.9)
    leaf = pixels.clone()
    moved = fgsm(lambda x: model(x.float()).double(), pixels, labels, EPS)
    for place in [(0, 0, 1, 2), (3, 1, 0, 0), (7, 2, 3, 3)]:
        losses = []
        for sign in (1, -1):
            probe = leaf.clone()
            probe[place] += sign * 1e-3
            losses.append(float(F.cross_entropy(model(probe.float()), labels, reduction="sum")))
        if abs(losses[0] - losses[1]) > 1e-3:
            assert float((moved - pixels)[place]) == pytest.approx(EPS if losses[0] > losses[1] else -EPS)


def test_no_room_no_harm():
    model, pixels, labels = problem()
    for name in ("fgsm", "pgd"):
        assert torch.allclose(attacked(name, model, pixels, labels, eps=0.0, step=0.1), pixels)


def test_starts_are_drawn():
    model, pixels, labels = problem()
    starts = [pgd(model, pixels, labels, EPS, 1, 1e-9, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
