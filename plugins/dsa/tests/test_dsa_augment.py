"""The augmenter: draws, what is shared, and the call for all classes."""

import math

import pytest
import torch

import dcf
from dcf.operations.apply import apply_draws
from dcf.operations.images import apply_op
from dcf_dsa.augment import DIGIT_STRATEGY, DSA, FULL_STRATEGY

RGB = (3, 16, 16)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(*shape):
    return torch.randn(shape, generator=generator(1))


def labelled(images):
    return dcf.Batch(images, torch.arange(len(images)))


def draw_many(op, count=4000, shape=(3, 32, 32), **options):
    """Values of one operation for `count` images."""
    family = "color" if op in ("brightness", "saturation", "contrast") else op
    values = DSA(DSA.Config(ops=[family], **options)).draw(count, shape, generator(), shared=False)
    return dict(values)[op]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["single", "multi"])
def test_shared_draw_acts_alike_on_batches_of_any_size(mode, seed):
    augmenter = DSA(DSA.Config(mode=mode))
    values = augmenter.draw(5, RGB, generator(seed), shared=True)
    image = images_of(1, *RGB)
    alone = augmenter.apply(labelled(image), values).x
    for count in (1, 2, 10, 256):
        result = augmenter.apply(labelled(image.repeat(count, 1, 1, 1)), values)
        assert torch.equal(result.x, alone.repeat(count, 1, 1, 1))
        assert torch.equal(result.y, torch.arange(count))


def test_shared_draw_does_not_depend_on_the_batch_size():
    augmenter = DSA(DSA.Config(mode="multi"))
    one, many = (augmenter.draw(n, RGB, generator(), shared=True) for n in (1, 256))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, many, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_single_draw_has_one_operation_a_batch_and_values_by_image(seed):
    values = DSA().draw(64, RGB, generator(seed), shared=False)
    names = [op for op, _ in values]
    assert names == ["brightness", "saturation", "contrast"] or len(names) == 1
    for _, rows in values:
        assert len(rows) == 64
        assert len(rows.unique(dim=0)) > 1


def test_multi_draw_applies_all_operations_in_order():
    names = [op for op, _ in DSA(DSA.Config(mode="multi")).draw(1, RGB, generator(), shared=True)]
    assert names == ["brightness", "saturation", "contrast", "crop", "cutout", "flip", "scale", "rotate"]


def test_single_draw_chooses_evenly():
    source = generator()
    augmenter = DSA(DSA.Config(ops=["crop", "cutout", "flip", "scale"]))
    names = [augmenter.draw(1, RGB, source, shared=True)[0][0] for _ in range(2000)]
    assert all(abs(names.count(op) - 500) < 100 for op in ("crop", "cutout", "flip", "scale"))


def test_draw_is_determined_by_its_generator_and_plain_data():
    augmenter = DSA(DSA.Config(mode="multi"))
    before = torch.get_rng_state()
    one, same, other = (augmenter.draw(8, RGB, generator(s), shared=False) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))
    assert all(isinstance(op, str) and rows.device.type == "cpu" for op, rows in one)


@pytest.mark.parametrize(
    ("op", "low", "high"),
    [
        ("brightness", -0.5, 0.5),
        ("saturation", 0.0, 2.0),
        ("contrast", 0.5, 1.5),
        ("scale", 1 / 1.2, 1.2),
        ("rotate", -math.pi / 12, math.pi / 12),
    ],
)
def test_continuous_values_are_uniform_over_their_range(op, low, high):
    position = (draw_many(op).double() - low) / (high - low)
    assert position.min() > -1e-6
    assert position.max() < 1 + 1e-6
    ordered = position.flatten().sort().values
    assert all(abs(ordered[int(q * len(ordered))] - q) < 0.03 for q in (0.25, 0.5, 0.75))
    assert ordered[0] < 0.03
    assert ordered[-1] > 0.97


@pytest.mark.parametrize(("size", "limit"), [(28, 4), (32, 4), (64, 8)])
def test_crop_takes_every_shift_up_to_both_limits(size, limit):
    values = draw_many("crop", shape=(1, size, size))
    assert values.unique().tolist() == list(range(-limit, limit + 1))
    assert len(values.unique(dim=0)) == (2 * limit + 1) ** 2


@pytest.mark.parametrize(("size", "last"), [(32, 32), (6, 5), (28, 28)])
def test_cutout_centre_may_be_the_size_only_if_the_box_is_even(size, last):
    values = draw_many("cutout", shape=(1, size, size))
    assert values.unique().tolist() == list(range(last + 1))


def test_sizes_of_rows_and_columns_are_not_confused():
    values = draw_many("cutout", shape=(1, 4, 32))
    assert values.amax(0).tolist() == [4, 32]
    assert draw_many("crop", shape=(1, 8, 32)).amax(0).tolist() == [1, 4]


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_flip_has_its_probability(probability):
    assert abs(draw_many("flip", prob_flip=probability).double().mean() - probability) < 0.03


def test_ratios_set_the_strength():
    assert draw_many("brightness", brightness=0.0).abs().max() == 0
    assert draw_many("saturation", saturation=0.5).max() < 0.5 + 1e-6
    assert draw_many("contrast", contrast=0.9).min() >= 0.9
    assert draw_many("crop", crop=0.25).max() == 8
    assert draw_many("rotate", rotate=90.0).max() > 1.5
    assert torch.equal(draw_many("scale", scale=1.0), torch.ones(4000, 2))
    augmenter = DSA(DSA.Config(cutout=1.0))
    assert augmenter.apply(labelled(images_of(2, *RGB)), [("cutout", torch.tensor([[8, 8]]))]).x.abs().max() == 0


def loop_over_classes(augmenter, images, draws):
    return torch.stack([augmenter.apply(labelled(x), d).x for x, d in zip(images, draws, strict=True)])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize("size", [1, 5])
def test_classes_together_equal_classes_apart(mode, size, shared):
    augmenter = DSA(DSA.Config(mode=mode))
    images = images_of(12, size, *RGB)
    draws = [augmenter.draw(size, RGB, generator(s), shared=shared) for s in range(12)]
    assert torch.equal(augmenter.apply_classes(images, draws), loop_over_classes(augmenter, images, draws))


def test_classes_together_have_the_gradient_of_classes_apart():
    augmenter = DSA()
    draws = [augmenter.draw(1, RGB, generator(s), shared=True) for s in range(12)]
    weights = images_of(12, 4, *RGB).cos()
    gradients = []
    for run in (augmenter.apply_classes, lambda x, d: loop_over_classes(augmenter, x, d)):
        images = images_of(12, 4, *RGB).requires_grad_()
        gradients += torch.autograd.grad((run(images, draws) * weights).sum(), images)
    assert torch.equal(*gradients)


def test_classes_are_processed_once_for_each_set_of_operations(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "dcf.operations.apply.apply_op", lambda x, op, *rest: calls.append(op) or apply_op(x, op, *rest)
    )
    augmenter = DSA(DSA.Config(ops=["crop", "rotate", "flip"]))
    draws = [augmenter.draw(1, RGB, generator(s), shared=True) for s in range(40)]
    apply_draws(images_of(40, 2, *RGB), draws)
    assert sorted(calls) == ["crop", "flip", "rotate"]


def test_classes_at_once_equal_class_after_class():
    augmenter = DSA()
    draws = [augmenter.draw(1, RGB, generator(s), shared=True) for s in range(24)]
    images = images_of(24, 3, *RGB)
    assert torch.equal(apply_draws(images, draws), augmenter.apply_classes(images, draws))


def test_real_and_synthetic_images_of_a_class_are_treated_alike():
    augmenter = DSA()
    draws = [augmenter.draw(1, RGB, generator(s), shared=True) for s in range(8)]
    synthetic = images_of(8, 1, *RGB)
    real = synthetic.repeat(1, 6, 1, 1, 1)
    assert torch.equal(
        augmenter.apply_classes(real, draws), augmenter.apply_classes(synthetic, draws).repeat(1, 6, 1, 1, 1)
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", FULL_STRATEGY),
        ("color_crop_cutout_flip_scale_rotate", FULL_STRATEGY),
        ("color_crop_cutout_scale_rotate", DIGIT_STRATEGY),
        (["rotate", "color"], ("rotate", "color")),
        ("flip", ("flip",)),
    ],
)
def test_ops_are_read_from_a_list_or_a_published_strategy(given, expected):
    config = DSA.Config(ops=given)
    assert config.ops == expected
    assert DSA.Config.model_validate_json(config.model_dump_json()) == config


def test_defaults_are_the_published_ones():
    values = DSA.Config().model_dump()
    assert values == {
        "ops": FULL_STRATEGY,
        "mode": "single",
        "siamese": True,
        "brightness": 1.0,
        "saturation": 2.0,
        "contrast": 0.5,
        "crop": 0.125,
        "cutout": 0.5,
        "scale": 1.2,
        "rotate": 15.0,
        "prob_flip": 0.5,
    }


@pytest.mark.parametrize(
    "options",
    [{"ops": []}, {"ops": "colour"}, {"ops": ["shear"]}, {"mode": "both"}, {"scale": 0.5}, {"crop": 1.5}],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError):
        DSA.Config(**options)


def test_siamese_option_tells_the_engine_to_draw_for_every_image():
    assert DSA().siamese
    augmenter = DSA(DSA.Config(siamese=False))
    assert not augmenter.siamese
    assert len(augmenter.draw(3, RGB, generator(), shared=False)[0][1]) == 3


def test_draw_for_another_batch_size_is_refused():
    augmenter = DSA()
    values = augmenter.draw(3, RGB, generator(), shared=False)
    for count in (2, 6):
        with pytest.raises(dcf.UsageError, match=f"expected 1 or {count} rows of values for {count} images, got 3"):
            augmenter.apply(labelled(images_of(count, *RGB)), values)
    with pytest.raises(dcf.UsageError, match="expected one draw a class, got 1 for 2 classes"):
        augmenter.apply_classes(images_of(2, 3, *RGB), [values])
