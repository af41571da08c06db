"""The composition of operations, and CutMix with its labels."""

from __future__ import annotations

import math

import pytest
import torch

import dcf
from dcf.build import check
from dcf_idc.augment import IDCAugment
from dcf_idc.cutmix import Box, CutMix, beta_sample, cut_and_mix, draw_box

RGB = (3, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ops_of(spec_ops, seed, shared=True, n=4):
    augmenter = IDCAugment(IDCAugment.Config(ops=spec_ops))
    return augmenter.draw(n, RGB, generator(seed), shared=shared)


COLOUR = ["brightness", "saturation", "contrast"]


def test_all_but_one_kind_of_operation_is_always_applied():
    drawn = [[op for op, _ in ops_of("auto", seed)] for seed in range(60)]
    assert all(ops[:4] == ["flip", *COLOUR] and ops[5:] == ["cutout"] for ops in drawn)
    assert {ops[4] for ops in drawn} == {"crop", "scale", "rotate"}


def test_default_operations_are_all_applied_every_time():
    config = IDCAugment.Config()
    assert config == IDCAugment.Config(ops="color_crop_cutout")
    for seed in range(20):
        assert [op for op, _ in ops_of(config.ops, seed)] == [*COLOUR, "crop", "cutout"]


@pytest.mark.parametrize(("ops", "wanted"), [(["color"], COLOUR), (["flip"], ["flip"]), (["cutout"], ["cutout"])])
def test_operations_that_are_not_asked_for_are_left_out(ops, wanted):
    assert [op for op, _ in ops_of(ops, 0)] == wanted


def test_one_value_for_all_images_or_one_for_each():
    assert {len(values) for _, values in ops_of("auto", 0)} == {1}
    assert {len(values) for _, values in ops_of("auto", 0, shared=False, n=5)} == {5}


@pytest.mark.parametrize("ops", ["colour", "color_color", []])
def test_wrong_operations_are_refused(ops):
    with pytest.raises(ValueError):
        IDCAugment.Config(ops=ops)


# --- cutmix ---


def batch(n=4, classes=3):
    x = torch.arange(float(n)).view(n, 1, 1, 1).expand(n, 2, 6, 8).clone()
    return dcf.Batch(x, torch.nn.functional.one_hot(torch.arange(n) % classes, classes).float())


def test_box_comes_from_the_partner_and_so_does_its_share_of_the_label():
    given, partner = batch(), torch.tensor([1, 2, 3, 0])
    mixed = cut_and_mix(given, Box(1, 4, 2, 8), partner)
    for i in range(4):
        for y in range(6):
            for x in range(8):
                source = int(partner[i]) if 1 <= y < 4 and 2 <= x < 8 else i
                assert mixed.x[i, :, y, x].tolist() == [source, source]
        share = (mixed.x[i, 0] == i).float().mean()
        wanted = share * given.y[i] + (1 - share) * given.y[partner[i]]
        assert torch.allclose(mixed.y[i], wanted)


def test_labels_follow_the_area_that_is_left_after_cutting_at_the_border():
    mixed = cut_and_mix(batch(2, 2), Box(0, 1, 0, 2), torch.tensor([1, 0]))
    own, other = 46 / 48, 2 / 48
    assert torch.allclose(mixed.y, torch.tensor([[own, other], [other, own]]))


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_a_batch_is_mixed_with_the_given_probability(prob):
    augmenter = CutMix(CutMix.Config(prob=prob))
    mixed = sum(bool(augmenter.draw(4, (2, 6, 8), generator(seed), shared=False)) for seed in range(400))
    assert abs(mixed / 400 - prob) < 0.08
    assert augmenter.is_identity == (prob == 0)
    assert augmenter.mixes_labels == (prob > 0)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_share_has_the_moments_of_the_beta_distribution(beta):
    draws = generator(5)
    values = torch.tensor([beta_sample(beta, draws) for _ in range(4000)])
    assert 0 <= float(values.min()) <= float(values.max()) <= 1
    deviation = math.sqrt(1 / (4 * (2 * beta + 1)))
    assert abs(float(values.mean()) - 0.5) < 4 * deviation / math.sqrt(4000)
    assert float(values.std()) == pytest.approx(deviation, rel=0.05)
    fourth = float(((values - 0.5) ** 4).mean() / values.var() ** 2)
    assert fourth == pytest.approx(3 - 6 / (2 * beta + 3), rel=0.08)  # its kurtosis


def test_box_has_the_sides_that_the_share_asks_for_and_any_centre():
    draws = generator(1)
    boxes = [draw_box(0.75, (8, 12), draws) for _ in range(500)]
    assert all(0 <= b.top <= b.bottom <= 8 and 0 <= b.left <= b.right <= 12 for b in boxes)
    assert max(b.bottom - b.top for b in boxes) == 4
    assert max(b.right - b.left for b in boxes) == 6
    assert {b.top for b in boxes} == set(range(6))
    assert {(b.bottom - b.top) * (b.right - b.left) for b in (draw_box(1.0, (8, 8), draws) for _ in range(20))} == {0}


def test_what_cutmix_cannot_do_says_what_to_do_instead():
    augmenter = CutMix(CutMix.Config(prob=1))
    with pytest.raises(dcf.UsageError, match="where networks are trained"):
        augmenter.draw(4, RGB, generator(), shared=True)
    values = augmenter.draw(4, (2, 6, 8), generator(), shared=False)
    with pytest.raises(dcf.UsageError, match="probabilities"):
        augmenter.apply(dcf.Batch(batch().x, torch.arange(4)), values)
    with pytest.raises(dcf.UsageError, match="a draw for 3 images, got one for 4"):
        augmenter.apply(batch(3), values)


def test_a_run_refuses_to_match_with_mixed_labels_before_it_starts(tmp_path):
    assert str(check("augmenter", "idc+cutmix")) == "idc+cutmix"
    with pytest.raises(dcf.UsageError, match=r"mixes labels.*protocol\.augment"):
        dcf.condense(data="digits", matcher="idc", augment="idc+cutmix", iterations=1, evaluate=False)


def test_what_learns_nothing_may_record_it():
    made = dcf.condense(data="digits", matcher="none", augment="idc+cutmix", evaluate=False)
    assert made.config["augment"] == "idc+cutmix"
