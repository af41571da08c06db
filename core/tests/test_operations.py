"""Every augmenting operation against a slow loop over pixels, and its derivative."""

import math

import pytest
import torch

import dcf
from dcf.operations.images import (
    OPERATIONS,
    apply_op,
    brightness,
    crop,
    cutout,
    cutout_side,
    flip,
    rotate,
    saturation,
    scale,
)

VALUES = {
    "brightness": torch.tensor([0.3, -0.5, 0.0, 0.2]),
    "saturation": torch.tensor([0.0, 1.0, 1.9, 0.4]),
    "contrast": torch.tensor([0.5, 1.0, 1.49, 0.8]),
    "crop": torch.tensor([[1, -2], [0, 0], [-1, 3], [9, 0]]),
    "cutout": torch.tensor([[0, 0], [3, 6], [8, 2], [4, 9]]),
    "flip": torch.tensor([1, 0, 0, 1]),
    "scale": torch.tensor([[0.85, 1.2], [1.0, 1.0], [1.1, 0.9], [1.3, 1.3]]),
    "rotate": torch.tensor([0.2, 0.0, -0.26, 1.0]),
}
SHAPES = [(4, 3, 8, 8), (4, 1, 7, 7), (4, 2, 6, 9)]


def images_of(shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def pixel(image, channel, row, column):
    _, height, width = image.shape
    return float(image[channel, row, column]) if 0 <= row < height and 0 <= column < width else 0.0


def bilinear(image, channel, x, y):
    """Sample at normalised (x, y), where pixel centres lie at (2 i + 1) / n - 1 and all outside is zero."""
    _, height, width = image.shape
    row, column = ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            total += (1 - abs(row - i)) * (1 - abs(column - j)) * pixel(image, channel, i, j)
    return total


def in_box(position, centre, size, ratio):
    side = int(size * ratio + 0.5)
    return position in {min(max(centre - side // 2 + i, 0), size - 1) for i in range(side)}


def one_pixel(op, image, value, c, i, j, ratio=0.5):
    """The output pixel (c, i, j) of one image, written from the definition."""
    channels, height, width = image.shape
    x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
    p = value.tolist()
    match op:
        case "brightness":
            return float(image[c, i, j]) + p
        case "saturation":
            m = sum(float(image[k, i, j]) for k in range(channels)) / channels
            return m + (float(image[c, i, j]) - m) * p
        case "contrast":
            m = sum(image.flatten().tolist()) / image.numel()
            return m + (float(image[c, i, j]) - m) * p
        case "crop":
            return pixel(image, c, i + p[0], j + p[1])
        case "cutout":
            hidden = in_box(i, p[0], height, ratio) and in_box(j, p[1], width, ratio)
            return 0.0 if hidden else float(image[c, i, j])
        case "flip":
            return float(image[c, i, width - 1 - j if p else j])
        case "scale":
            return bilinear(image, c, p[0] * x, p[1] * y)
        case "rotate":
            return bilinear(image, c, x * math.cos(p) - y * math.sin(p), x * math.sin(p) + y * math.cos(p))


def slow(op, images, values, ratio=0.5):
    rows = values.double() if values.is_floating_point() else values
    n, channels, height, width = images.shape
    result = torch.empty_like(images)
    for k in range(n):
        value = rows[k * len(rows) // n]
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    result[k, c, i, j] = one_pixel(op, images[k], value, c, i, j, ratio)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPERATIONS)
def test_operation_equals_the_loop_over_pixels(op, shape):
    images = images_of(shape)
    kept = images.clone()
    torch.testing.assert_close(apply_op(images, op, VALUES[op]), slow(op, images, VALUES[op]), rtol=0, atol=1e-12)
    assert torch.equal(images, kept)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.7, 1.0])
def test_cutout_of_any_ratio_equals_the_loop(ratio):
    images = images_of((4, 1, 7, 9))
    assert torch.equal(cutout(images, VALUES["cutout"], ratio), slow("cutout", images, VALUES["cutout"], ratio))


@pytest.mark.parametrize("op", OPERATIONS)
def test_a_row_serves_a_block_of_images(op):
    images = images_of((12, 3, 8, 8), torch.float32)
    spread = VALUES[op].repeat_interleave(3, dim=0)
    assert torch.equal(apply_op(images, op, VALUES[op]), apply_op(images, op, spread))
    for count in (1, 2, 10, 256):
        batch = images_of((count, 3, 8, 8), torch.float32)
        row = VALUES[op][:1]
        assert torch.equal(apply_op(batch, op, row), apply_op(batch, op, row.expand(count, *row.shape[1:])))


@pytest.mark.parametrize("op", OPERATIONS)
def test_operation_is_differentiable_in_the_pixels(op):
    images = images_of((4, 2, 4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: apply_op(x, op, VALUES[op]), images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", OPERATIONS)
def test_operation_keeps_shape_and_dtype_of_any_layout(op, dtype):
    images = images_of((4, 3, 8, 8), torch.float32)
    wide = apply_op(images, op, VALUES[op])
    narrow = apply_op(images.to(dtype).to(memory_format=torch.channels_last), op, VALUES[op])
    assert narrow.dtype is dtype
    tolerance = {torch.bfloat16: 0.08, torch.float16: 0.01}.get(dtype, 1e-5)
    torch.testing.assert_close(narrow.float(), wide, rtol=0, atol=tolerance)


def test_saturation_of_grey_images_is_exactly_nothing():
    images = images_of((4, 1, 8, 8), torch.float32)
    assert torch.equal(saturation(images, VALUES["saturation"]), images)


def test_brightness_is_not_clamped():
    assert brightness(torch.full((1, 1, 2, 2), 0.9), torch.tensor([0.5])).max() > 1


def test_cutout_passes_no_gradient_into_the_box():
    images = images_of((2, 3, 8, 8)).requires_grad_()
    cutout(images, torch.tensor([[4, 5]])).sum().backward()
    box = torch.zeros(8, 8, dtype=torch.bool)
    box[2:6, 3:7] = True
    assert torch.equal(images.grad == 0, box.expand(2, 3, 8, 8))


def test_crop_moves_the_picture_and_fills_with_zero():
    image = torch.arange(1.0, 10).view(1, 1, 3, 3)
    moved = crop(image, torch.tensor([[1, -1]]))
    assert moved[0, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]


def test_scale_above_one_shrinks_along_the_named_axis():
    image = torch.ones(1, 1, 8, 8)
    shrunk = scale(image, torch.tensor([[2.0, 1.0]]))[0, 0]
    assert shrunk[:, :2].abs().max() == 0
    assert shrunk[:, 2:6].min() > 0.99


def test_rotate_turns_anticlockwise():
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 4] = 1
    turned = rotate(image, torch.tensor([math.pi / 2]))
    assert turned[0, 0].argmax() == 0 * 5 + 2


def test_flip_mirrors_left_and_right():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert flip(image, torch.tensor([1]))[0, 0].tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize(("size", "side"), [(28, 14), (32, 16), (64, 32), (7, 4)])
def test_cutout_side_rounds_half_up(size, side):
    assert cutout_side(size, 0.5) == side


@pytest.mark.parametrize(
    ("op", "values", "message"),
    [
        ("shear", torch.zeros(1), "expected one of the operations brightness, .*, got 'shear'"),
        ("flip", torch.zeros(3), "expected rows of values that divide 4 images, got 3"),
        ("flip", torch.zeros(0), "got 0"),
    ],
)
def test_wrong_values_are_refused(op, values, message):
    with pytest.raises(dcf.UsageError, match=message):
        apply_op(images_of((4, 3, 8, 8)), op, values)
