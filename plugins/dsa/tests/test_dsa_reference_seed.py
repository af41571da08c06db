"""Recorded results of the published code for given seeds."""

import pytest
import torch

import dcf
from dcf_dsa.augment import DIGIT_STRATEGY, DSA
from dcf_dsa.reference_seed import draws_from_reference_seed

RGB = (3, 32, 32)


def filler(shape, w, p):
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float64) * w + p).sin().float().view(shape)


def replay(images, seed, **options):
    augmenter = DSA(DSA.Config(**options))
    values, _ = draws_from_reference_seed(seed, tuple(images.shape[1:]), augmenter.config)
    return augmenter.apply(dcf.Batch(images, torch.zeros(len(images), dtype=torch.long)), values).x


def chosen(seed, config):
    first = draws_from_reference_seed(seed, RGB, config).values[0][0]
    return "color" if first == "brightness" else first


def test_choice_of_operation_of_ten_seeds():
    full = ["cutout", "crop", "color", "scale", "scale", "rotate", "cutout", "flip", "flip", "scale"]
    digits = ["rotate", "color", "scale", "crop", "color", "crop", "color", "color", "scale", "color"]
    assert [chosen(s, None) for s in range(10)] == full
    assert [chosen(s, DSA.Config(ops=DIGIT_STRATEGY)) for s in range(10)] == digits


@pytest.mark.parametrize(
    ("op", "seed", "total", "absolute"),
    [
        ("color", 0, 1678.4772, 2418.8510),
        ("color", 7, 697.2539, 4182.7928),
        ("crop", 0, 85.4426, 3414.6033),
        ("crop", 7, -131.1114, 3133.7714),
        ("cutout", 0, 74.4564, 3237.4819),
        ("cutout", 7, 75.5746, 3174.8837),
        ("scale", 0, 83.7154, 3260.1504),
        ("scale", 7, 95.1001, 3412.2719),
        ("rotate", 0, 36.1589, 3627.7148),
        ("rotate", 7, 70.8517, 3750.9073),
    ],
)
def test_sums_of_one_operation(op, seed, total, absolute):
    images = filler((2, *RGB), 0.013, 0)
    assert images.double().sum().item() == pytest.approx(95.5887, rel=1e-4)
    result = replay(images, seed, ops=op).double()
    # Single precision in another order of summation: some thousand terms of size one.
    assert result.sum().item() == pytest.approx(total, rel=1e-4, abs=5e-3)
    assert result.abs().sum().item() == pytest.approx(absolute, rel=1e-4)


@pytest.mark.parametrize(("seed", "mirrored"), [(2, True), (0, False), (7, False)])
def test_flip(seed, mirrored):
    images = filler((2, *RGB), 0.013, 0)
    assert torch.equal(replay(images, seed, ops="flip"), images.flip(3) if mirrored else images)


def test_all_operations_in_order():
    images = filler((2, *RGB), 0.013, 0)
    config = DSA.Config(mode="multi")
    assert draws_from_reference_seed(7, RGB, config).next_seed == 18
    result = replay(images, 7, mode="multi").double()
    assert result.sum().item() == pytest.approx(16.9711, rel=1e-4, abs=5e-3)


def value_of(op, seed):
    return draws_from_reference_seed(seed, RGB, DSA.Config(ops=op)).values[0][1]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("seed", "shift", "rows", "columns"), [(0, [0, -4], (0, 32), (4, 32)), (7, [-4, -3], (4, 32), (3, 32))]
)
def test_crop_shift(seed, shift, rows, columns, count):
    assert value_of("crop", seed).tolist() == [shift]
    expected = torch.zeros(32, 32)
    expected[slice(*rows), slice(*columns)] = 1
    assert torch.equal(replay(torch.ones(count, *RGB), seed, ops="crop"), expected.expand(count, *RGB))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("seed", "centre", "rows", "columns", "area"),
    [(0, [22, 3], (14, 30), (0, 11), 176), (7, [21, 4], (13, 29), (0, 12), 192)],
)
def test_cutout_box(seed, centre, rows, columns, area, count):
    assert value_of("cutout", seed).tolist() == [centre]
    expected = torch.ones(32, 32)
    expected[slice(*rows), slice(*columns)] = 0
    assert (expected == 0).sum() == area
    assert torch.equal(replay(torch.ones(count, *RGB), seed, ops="cutout"), expected.expand(count, *RGB))


def test_scale_and_rotate_values():
    assert value_of("scale", 0).tolist()[0] == pytest.approx([1.111132, 1.058722], rel=1e-6)
    assert value_of("rotate", 0).rad2deg().item() == pytest.approx(7.7289, rel=1e-4)


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draws_from_reference_seed(3, RGB, DSA.Config(mode="multi"))
    assert torch.equal(torch.get_rng_state(), before)
