"""The digits that come with the package."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from dcf.data.base import pixel_statistics
from dcf.data.digits import LEVELS, SPACE, Digits


def test_digits_are_scikit_learns_pixel_by_pixel():
    data, source = Digits().load(), load_digits()
    stored = torch.cat([data.train.store.pixels, data.test.store.pixels])
    labels = torch.cat([data.train.labels, data.test.labels])
    rank = np.array([np.sum(source.target[:i] == c) for i, c in enumerate(source.target)])
    order = np.concatenate([np.flatnonzero(rank % 5 != 4), np.flatnonzero(rank % 5 == 4)])
    assert np.array_equal(stored.squeeze(1).numpy(), source.images[order])
    assert np.array_equal(labels.numpy(), source.target[order])


def test_digits_pixels_are_exact():
    data = Digits().load()
    index = torch.arange(20)
    pixels = data.spec.space.decode(data.train.images(index).double())
    assert torch.allclose(pixels * 16, data.train.store.pixels[:20].double(), atol=1e-5)


def test_digits_split_is_stratified_and_fixed():
    data = Digits().load()
    assert (len(data.train), len(data.test)) == (1442, 355)
    share = data.test.counts / (data.train.counts + data.test.counts)
    assert ((share > 0.19) & (share < 0.21)).all()
    assert data.checksum == "3a3d0786dd5ca558a3060b4d7b5d26100c63f71f9deb3f71701bb4275403da16"


def test_digits_constants_are_those_of_train():
    mean, std = pixel_statistics(Digits().load().train.store, LEVELS)
    assert (round(mean[0], 4), round(std[0], 4)) == (SPACE.mean[0], SPACE.std[0])


def test_digits_say_what_they_are():
    data = Digits().load()
    assert data.id == "digits"
    assert data.spec.classes == tuple("0123456789")
    assert data.spec.shape == (1, 8, 8)
    assert "CC BY 4.0" in data.source
    assert data.hints
