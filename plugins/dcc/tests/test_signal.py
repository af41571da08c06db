"""Why classes are averaged first: under one background that all images share, what the losses still know of classes.

Each test lays a faint digit over a background, standardises the channels, and compares 64 real images a class with 10
others, once with right classes and once with every class taken for the next. The gap between the two is what a loss
knows about classes; it is averaged over random networks that were never trained. Nothing is condensed.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcf.data import load
from dcf.matching import class_gradients, gradient_distance
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.testing import fake_spec
from dcf_dcc.contrast import joint_distance
from dcf_dcc.signal import class_signal

ROOT = Path(os.environ.get("DCF_DATA", ""))
CLASSES, REAL, OTHERS = 5, 64, 10


def network(shape, seed, width=32):
    return ConvNetFactory(ConvNetConfig(width=width)).create(fake_spec(CLASSES, shape), seed)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def gaps(images, networks):
    """What the class-wise and the contrastive loss know about classes, on average."""
    images = (images - images.mean((0, 1, 3, 4), keepdim=True)) / images.std((0, 1, 3, 4), keepdim=True)
    found = [
        class_signal(network(tuple(images.shape[2:]), seed), images[:, :REAL], images[:, REAL:])
        for seed in range(networks)
    ]
    return [fmean(pair[loss].gap for pair in found) for loss in (0, 1)]


def kept(digits, background, networks, signal=0.03):
    """Share of the gap at full signal that is left at a faint one: of the class-wise and of the contrastive loss."""
    full, faint = (gaps(strength * digits + background, networks) for strength in (1.0, signal))
    return [after / before for before, after in zip(full, faint, strict=True)]


def pixels_of(split, index):
    return split.store.take(index.flatten()).float() / split.levels


def some_digits(data):
    """`(5, 74, 1, H, W)` pixels in [0, 1]."""
    index = data.train.sample(REAL + OTHERS, seeded(0))[:CLASSES]
    return pixels_of(data.train, index).view(*index.shape, *data.spec.shape)


@pytest.fixture(scope="module")
def small_digits():
    """The 8 x 8 digits, enlarged to 16 x 16 and coloured grey."""
    return some_digits(load("digits")).repeat_interleave(2, 3).repeat_interleave(2, 4).expand(-1, -1, 3, -1, -1)


def textures(n):
    """`(n, 3, 16, 16)` smooth random pictures."""
    coarse = torch.rand(n, 3, 8, 8, generator=seeded(0))
    return F.interpolate(coarse, size=(16, 16), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.mark.slow
def test_under_one_background_the_contrastive_loss_keeps_three_times_as_much(small_digits):
    class_wise, contrastive = kept(small_digits, textures(1)[0], networks=15)
    assert contrastive >= 3 * class_wise
    assert class_wise < 0.1


@pytest.mark.slow
def test_under_a_pool_of_backgrounds_both_lose_alike(small_digits):
    pool = textures(30)[torch.randint(0, 30, small_digits.shape[:2], generator=seeded(5))]
    class_wise, contrastive = kept(small_digits, pool, networks=15)
    assert contrastive < 2 * class_wise
    assert max(class_wise, contrastive) < 0.25


def test_signal_is_that_of_the_losses():
    images = torch.randn(CLASSES, 6, 1, 8, 8, generator=seeded(0))
    net = network((1, 8, 8), 0, width=4)
    labels = torch.arange(CLASSES)[:, None]
    real = class_gradients(net, images[:, :4], labels.expand(-1, 4))
    apart, joint = class_signal(net, images[:, :4], images[:, 4:])
    for name, order in (("correct", [0, 1, 2, 3, 4]), ("swapped", [1, 2, 3, 4, 0])):
        syn = class_gradients(net, images[order, 4:], labels.expand(-1, 2))
        assert getattr(apart, name) == pytest.approx(float(gradient_distance(syn, real).sum()), rel=1e-5)
        means = [[g.mean(0) for g in side] for side in (syn, real)]
        assert getattr(joint, name) == pytest.approx(float(joint_distance(*means)), rel=1e-5)
    assert apart.gap == apart.swapped - apart.correct


# --- real data ------------------------------------------------------------------------------------------------------


def real_data(test):
    """Only where there is MNIST."""
    missing = pytest.mark.skipif(not (ROOT / "MNIST").is_dir(), reason="DCF_DATA names no folder with MNIST")
    return pytest.mark.data(pytest.mark.slow(missing(test)))


def photographs(every):
    """`(n, 3, 32, 32)` pixels of every so manyth training image of CIFAR-10, in the order of the archive."""
    archive = ROOT / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip("DCF_DATA has no cifar10-jpeg.tar.xz")
    found, seen = [], 0
    with tarfile.open(archive) as files:
        for member in files:
            if member.isfile() and member.name.startswith("train/"):
                if seen % every == every // 2:
                    found.append(np.asarray(Image.open(files.extractfile(member)).convert("RGB")))
                seen += 1
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def large_digits():
    """MNIST on 32 x 32 pixels, coloured grey."""
    data = load(f'mnist:root="{ROOT}",download=false')
    return F.pad(some_digits(data), (2, 2, 2, 2)).expand(-1, -1, 3, -1, -1)


@real_data
def test_under_one_photograph_the_contrastive_loss_keeps_three_times_as_much_of_mnist(large_digits):
    shares = [kept(large_digits, photograph, networks=5) for photograph in photographs(every=12500)]
    class_wise, contrastive = (fmean(column) for column in zip(*shares, strict=True))
    assert contrastive >= 3 * class_wise
    assert all(joint > 1.5 * apart for apart, joint in shares)  # it depends on the photograph how much


@real_data
def test_under_a_pool_of_photographs_the_contrastive_loss_has_no_such_lead(large_digits):
    pool = photographs(every=1700)
    which = torch.randint(0, len(pool), large_digits.shape[:2], generator=seeded(5))
    class_wise, contrastive = kept(large_digits, pool[which], networks=5, signal=0.3)
    assert contrastive == pytest.approx(class_wise, rel=0.4)
    assert max(class_wise, contrastive) < 0.7
