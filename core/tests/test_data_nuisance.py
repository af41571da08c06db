"""A dataset under texture that tells nothing about the class."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcf.build import check
from dcf.data import load
from dcf.data.check import check as examine
from dcf.data.nuisance import Nuisance, blend, common_shape, fit_background, fit_base
from dcf.errors import ConfigError, DataError
from dcf.space import ValueSpace

ROOT = Path(os.environ.get("DCF_DATA", ""))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with 12 random colour images of 9x12 pixels in two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("photos")
    for i in range(12):
        place = root / ("ab"[i % 2])
        place.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(place / f"{i:02}.png")
    return f'folder:path="{root}",split=0,cache=false'


def made(photos, **options):
    return Nuisance(Nuisance.Config(base="digits", background=photos, **options)).load()


def all_pixels(split):
    """What rests, which is pixels and not normalised values."""
    return split.store.take(slice(None))


# --- what a pixel is --------------------------------------------------------------------------------------------


def test_fixed_is_signal_times_base_plus_one_background(photos):
    data, base, texture = made(photos, signal=0.02), load("digits"), load(photos)
    images = base.train.store.take(slice(None)).numpy() / 16
    seen = all_pixels(data.train).numpy()
    assert seen.dtype == np.float32
    assert seen.shape == (len(base.train), 3, 9, 12)
    # The background is what stands in the margin; one photo has it.
    stored = texture.train.store.take(slice(None)).numpy() / 255
    which = [i for i in range(12) if np.allclose(stored[i, :, 8], seen[0, :, 8], atol=1e-6)]
    assert len(which) == 1
    for i in (0, 1, 700):
        expected = stored[which[0]].copy()
        for channel in range(3):
            for row in range(8):
                for column in range(8):
                    expected[channel, row, column + 2] += 0.02 * images[i, 0, row, column]
        assert np.allclose(seen[i], expected, atol=1e-6)
    assert torch.equal(data.train.labels, base.train.labels)
    assert torch.equal(all_pixels(data.test)[0, :, 8], all_pixels(data.train)[0, :, 8])


def test_a_signal_below_one_step_of_8_bits_stays(photos):
    data = made(photos, signal=0.001)
    spread = all_pixels(data.train)[:, :, :8, 2:10].amax(0) - all_pixels(data.train)[:, :, :8, 2:10].amin(0)
    assert 0.0009 < float(spread.max()) < 1 / 255
    assert len(all_pixels(data.train)[:, 0, 4, 5].unique()) > 10


def test_pool_draws_a_background_for_each_image_whatever_its_class(photos):
    data = made(photos, mode="pool", pool=5, signal=0.5)
    corner = all_pixels(data.train)[:, :, 8, 0]
    kinds, which = corner.unique(dim=0, return_inverse=True)
    assert len(kinds) == 5
    test_kinds = all_pixels(data.test)[:, :, 8, 0].unique(dim=0)
    assert torch.equal(test_kinds, kinds)
    # Each class sees each background about equally often: chi-square of the 10 x 5 table, 36 degrees of freedom.
    table = torch.zeros(10, 5).index_put_((data.train.labels, which), torch.ones(len(which)), accumulate=True)
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    assert float(((table - expected) ** 2 / expected).sum()) < 80


def test_the_fixed_background_is_the_first_of_every_pool(photos):
    fixed = all_pixels(made(photos, signal=0.5).train)[0, :, 8, 0]
    small, large = (made(photos, mode="pool", pool=p, signal=0.5) for p in (2, 4))
    corners = [all_pixels(d.train)[:, :, 8, 0].unique(dim=0).tolist() for d in (small, large)]
    assert fixed.tolist() in corners[0]
    assert all(corner in corners[1] for corner in corners[0])


def test_seed_chooses_backgrounds(photos):
    sums = [made(photos, signal=0.5, seed=seed).checksum for seed in (0, 0, 1, 2)]
    assert sums[0] == sums[1]
    assert len(set(sums)) > 1


def test_without_weight_nothing_of_the_background_is_left(photos):
    data = made(photos, signal=1.0, weight=0.0)
    assert float(all_pixels(data.train)[:, :, 8].abs().max()) == 0
    assert float(all_pixels(data.train).max()) == 1
    half = made(photos, signal=0.02, weight=0.5)
    full = made(photos, signal=0.02)
    assert torch.allclose(all_pixels(half.train)[0, :, 8] * 2, all_pixels(full.train)[0, :, 8])


def test_value_space_is_that_of_the_blended_images(photos):
    data = made(photos)
    x = data.train.images(torch.arange(len(data.train)))
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3)
    assert torch.allclose(x.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-3)
    assert torch.allclose(data.spec.space.decode(x), all_pixels(data.train), atol=1e-5)
    assert made(photos, norm="unit").spec.space == ValueSpace.unit(3)
    assert made(photos, mean=(0.5,) * 3, std=(0.25,) * 3).spec.space == ValueSpace((0.5,) * 3, (0.25,) * 3)


# --- bringing both to one shape ---------------------------------------------------------------------------------


def test_common_shape_is_the_larger_of_each():
    assert common_shape((1, 28, 28), (3, 32, 32)) == (3, 32, 32)
    assert common_shape((3, 40, 20), (3, 32, 32)) == (3, 40, 32)
    assert common_shape((3, 8, 8), (1, 8, 8)) == (3, 8, 8)
    with pytest.raises(DataError, match="base of nuisance has 4 channels, the background 3"):
        common_shape((4, 8, 8), (3, 8, 8))


def test_base_is_centred_on_black():
    image = torch.arange(1.0, 7).view(1, 1, 2, 3)
    fitted = fit_base(image, (2, 5, 4))
    assert fitted.shape == (1, 2, 5, 4)
    assert torch.equal(fitted[0, 1, 1:3, :3], image[0, 0])
    assert float(fitted.sum()) == 2 * float(image.sum())
    assert torch.equal(fit_base(torch.ones(1, 1, 28, 28), (1, 32, 32))[0, 0, 2:30, 2:30], torch.ones(28, 28))


def test_background_is_stretched_only_where_it_is_smaller():
    image = torch.rand(2, 1, 4, 4)
    assert torch.equal(fit_background(image, (3, 4, 4)), image.expand(-1, 3, -1, -1))
    larger = fit_background(image, (1, 8, 8))
    assert larger.shape == (2, 1, 8, 8)
    # Bilinear with pixel centres: 3/4 and 1/4 of the neighbours.
    assert torch.allclose(larger[:, :, 0, 1], 0.75 * image[:, :, 0, 0] + 0.25 * image[:, :, 0, 1])


def test_blend_is_a_sum():
    images, textures = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    assert torch.allclose(blend(images, textures, 0.3), 0.3 * images + textures)


def test_larger_base_stretches_the_background():
    data = Nuisance(Nuisance.Config(base="digits", background="digits", signal=0.5)).load()
    assert data.spec.shape == (1, 8, 8)


# --- spec, id, errors -------------------------------------------------------------------------------------------


def test_id_names_both_and_leaves_places_out():
    config = Nuisance.Config(base="mnist:root=/x,download=false", background="cifar10:root=/y", signal=0.1)
    assert Nuisance(config).id == "nuisance:base=(mnist),background=(cifar10),signal=0.1"
    nested = Nuisance.Config(base="subset:base=(mnist:root=/x),classes=[0,1]", mode="pool", pool=7)
    expected = "nuisance:base=(subset:base=(mnist),classes=[0,1]),background=(cifar10),mode=pool,pool=7"
    assert Nuisance(nested).id == expected
    assert str(check("dataset", expected)) == expected


def test_origin_and_hints(photos):
    data = made(photos)
    assert data.source.startswith(load("digits").source)
    assert "backgrounds: images in" in data.source
    assert data.hints == load("digits").hints


def test_errors_say_which_of_the_two(photos):
    with pytest.raises(DataError, match="base of nuisance: mnist is not in"):
        load("nuisance:base=(mnist:root=/nowhere,download=false)")
    with pytest.raises(DataError, match="background of nuisance: folder '/nowhere'"):
        load("nuisance:base=(digits),background=(folder:path=/nowhere)")
    with pytest.raises(DataError, match="background of nuisance: a pool of 40 images, but there are 12"):
        made(photos, mode="pool", pool=40)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("signal=0", "float > 0 and <= 1"),
        ("signal=1.5", "float > 0 and <= 1"),
        ("weight=-1", "float >= 0 and <= 1"),
        ("mode=none", "'fixed' | 'pool'"),
        ("pool=3", "pool means nothing with mode=fixed"),
        ("mode=pool,pool=0", "int >= 1"),
        ("mean=[0.5]", "as many values in std as in mean"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(ConfigError) as error:
        check("dataset", f"nuisance:base=(digits),{options}")
    assert said in str(error.value)


def test_data_check_looks_at_it(photos):
    result = examine(Nuisance(Nuisance.Config(base="digits", background=photos)))
    assert result.ok
    assert result.train == 1442
    assert result.sizes == {"9x12": 1797}


@pytest.mark.data
@pytest.mark.skipif(not (ROOT / "MNIST").is_dir(), reason="DCF_DATA names no folder with MNIST")
def test_real_digits(photos):
    kept = f'subset:base=(mnist:root="{ROOT}",download=false),classes=[0,1,2,3,4],per_class=100,test_per_class=80'
    data = Nuisance(Nuisance.Config(base=kept, background=photos, signal=0.02)).load()
    assert data.spec.shape == (3, 28, 28)
    assert (len(data.train), len(data.test)) == (500, 400)
