"""The augmentation of DC's evaluation, beside slow loops and SciPy."""

import math

import pytest
import torch

import dcf
from dcf.evaluation.protocol import load_protocol
from dcf_dc.augment import DCEvaluationAugment, cropped, rotated, scaled


def some_images(n=4, channels=2, height=9, width=9):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def augmenter(**options):
    return DCEvaluationAugment(DCEvaluationAugment.Config(**options))


def test_cropping_moves_by_whole_pixels_and_fills_with_the_mean_colour():
    images = some_images()
    offsets = torch.tensor([[0, 0], [-4, 3], [2, -1], [3, 3]])
    expected = images.mean((0, 2, 3)).view(1, -1, 1, 1).expand_as(images).clone()
    for n, (down, right) in enumerate(offsets.tolist()):
        for i in range(9):
            for j in range(9):
                if 0 <= i + down < 9 and 0 <= j + right < 9:
                    expected[n, :, i, j] = images[n, :, i + down, j + right]
    assert torch.equal(cropped(images, offsets), expected)


@pytest.mark.parametrize("side", [7, 8, 9, 10, 12])
def test_scaling_resizes_and_keeps_the_middle(side):
    images = some_images(n=1)
    made = scaled(images, torch.tensor([[side, 9]]))
    resized = torch.stack([images[:, :, math.floor((i + 0.5) * 9 / side)] for i in range(side)], 2)
    canvas = torch.zeros(1, 2, max(side, 9), 9, dtype=torch.float64)
    top = (canvas.shape[2] - side) // 2
    canvas[:, :, top : top + side] = resized
    first = (canvas.shape[2] - 9) // 2
    assert torch.equal(made, canvas[:, :, first : first + 9])


def test_height_and_width_are_scaled_apart():
    images = some_images(n=1)
    sides = torch.tensor([[7, 12]])
    one_by_one = scaled(scaled(images, torch.tensor([[7, 9]])), torch.tensor([[9, 12]]))
    assert torch.equal(scaled(images, sides), one_by_one)


def test_a_quarter_turn_is_exact_and_anticlockwise():
    images = some_images()
    assert torch.allclose(rotated(images, torch.full((4,), 90)), images.rot90(1, (2, 3)), atol=1e-9)
    assert torch.allclose(rotated(images, torch.zeros(4)), images, atol=1e-12)


@pytest.mark.parametrize("degrees", [-45, -17, 8, 44])
def test_a_turn_is_that_of_a_cubic_spline(degrees):
    ndimage = pytest.importorskip("scipy.ndimage")
    axis = torch.linspace(-2, 2, 28, dtype=torch.float64)
    image = torch.exp(-((axis[:, None] - 0.3) ** 2) - 2 * (axis[None] + 0.4) ** 2)  # smooth, so that splines agree
    made = rotated(image[None, None], torch.tensor([degrees]))[0, 0]
    spline = ndimage.rotate(image.numpy(), degrees, order=3, reshape=False, cval=float(image.mean()))
    inside = (axis[:, None] ** 2 + axis[None] ** 2) < 1.8**2
    error = (made - torch.as_tensor(spline)).abs()[inside]
    assert float(error.max()) < 0.02  # two kernels of cubics; others turn too far
    other = rotated(image[None, None], torch.tensor([degrees + 5]))[0, 0]
    assert float((other - torch.as_tensor(spline)).abs()[inside].mean()) > 3 * float(error.mean())


def test_corners_that_come_from_outside_have_the_mean_of_all():
    images = some_images(height=28, width=28)
    made = rotated(images, torch.full((4,), 44))
    assert torch.allclose(made[:, :, 0, 0], images.mean())


def test_each_image_has_an_operation_of_its_own():
    images = some_images(n=300, channels=1)
    config = {"noise": 0.5, "ops": ("crop", "scale", "rotate", "noise")}
    values = augmenter(**config).draw(300, (1, 9, 9), torch.Generator().manual_seed(1), shared=False)
    counts = values["op"].bincount(minlength=4)
    assert counts.min() > 50
    together = augmenter(**config).apply(dcf.Batch(images, torch.zeros(300).long()), values).x
    for number, op in enumerate(config["ops"]):
        alone = augmenter(**{**config, "ops": (op,)}).apply(
            dcf.Batch(images, torch.zeros(300).long()), {"op": torch.zeros(300).long(), op: values[op]}
        )
        mine = values["op"] == number
        assert torch.equal(together[mine], alone.x[mine])


def test_values_have_the_published_ranges():
    values = augmenter(ops=("crop", "scale", "rotate")).draw(4000, (1, 28, 28), torch.Generator().manual_seed(1), False)
    assert sorted(set(values["crop"].flatten().tolist())) == list(range(-4, 4))  # one way farther than the other
    assert sorted(set(values["scale"].flatten().tolist())) == list(range(22, 34))
    assert (int(values["rotate"].min()), int(values["rotate"].max())) == (-45, 44)


def test_it_is_not_for_matching():
    with pytest.raises(dcf.UsageError, match=r"--set protocol.augment=dc-eval"):
        augmenter().draw(1, (1, 9, 9), torch.Generator(), shared=True)
    with pytest.raises(dcf.UsageError, match=r"--augment dc-eval\+dc-eval .* one by one"):
        dcf.condense(matcher="dc", augment="dc-eval+dc-eval", data="digits", iterations=1, evaluate=False)


def test_the_protocol_augments_digits_of_mnist_alone():
    new, old = load_protocol("vico-dc@2"), load_protocol("vico-dc@1")
    assert load_protocol("vico-dc").id == "vico-dc@2"
    assert (new.augment_spec("dsa", "mnist:root=x"), new.augment_spec("dsa", "cifar10")) == ("dc-eval", "none")
    assert old.augment_spec("dsa", "mnist") == "none"
