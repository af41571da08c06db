"""The scores of DD-Ranking: neutral point, limits, directions, and fractions only."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcf_scores.ranking import (
    NEUTRAL,
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    normalized,
)

FRACTION, DIFFERENCE = st.floats(0, 1), st.floats(-1, 1)


def test_no_difference_is_neutral_and_not_bad():
    assert label_robust_score(0, 0) == augmentation_robust_score(0, 0) == pytest.approx(NEUTRAL, abs=1e-15)
    assert pytest.approx(0.2689414, abs=1e-7) == NEUTRAL


def test_limits_are_0_and_1():
    assert normalized(-1) == 0
    assert normalized(1) == 1
    assert label_robust_score(hlr=-1, ior=1) == pytest.approx(1)
    assert label_robust_score(hlr=1, ior=-1) == pytest.approx(0, abs=1e-15)


def test_a_known_value():
    # 30 points below the whole set, 20 above random images: a = -0.05.
    hlr, ior = hard_label_recovery(0.85, 0.55), improvement_over_random(0.6, 0.4)
    assert label_robust_score(hlr, ior) == pytest.approx(0.248, abs=5e-4)


@given(DIFFERENCE, DIFFERENCE, DIFFERENCE, FRACTION)
def test_better_than_random_is_better_and_farther_from_the_whole_set_is_worse(hlr, ior, other, weight):
    low, high = sorted((ior, other))
    assert label_robust_score(hlr, low, weight) <= label_robust_score(hlr, high, weight) + 1e-12
    low, high = sorted((hlr, other))
    assert label_robust_score(low, ior, weight) >= label_robust_score(high, ior, weight) - 1e-12


@given(DIFFERENCE, DIFFERENCE, DIFFERENCE)
def test_extreme_weights_leave_one_side_out(hlr, ior, other):
    assert label_robust_score(hlr, ior, 0) == label_robust_score(hlr, other, 0)
    assert label_robust_score(hlr, ior, 1) == label_robust_score(other, ior, 1)
    assert augmentation_robust_score(ior, hlr, 1) == augmentation_robust_score(ior, other, 1)


@given(FRACTION, FRACTION, FRACTION, FRACTION, FRACTION)
def test_scores_of_fractions_are_fractions(full, syn, own, random, weight):
    hlr, ior = hard_label_recovery(full, syn), improvement_over_random(own, random)
    assert 0 <= label_robust_score(hlr, ior, weight) <= 1
    assert 0 <= augmentation_robust_score(ior, syn - random, weight) <= 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: hard_label_recovery(85.0, 0.55),
        lambda: hard_label_recovery(0.85, 55.0),
        lambda: improvement_over_random(-0.1, 0.4),
        lambda: improvement_over_random(0.6, math.nan),
        lambda: label_robust_score(30.0, 20.0),
        lambda: label_robust_score(0.3, 0.2, 50),
        lambda: augmentation_robust_score(0.1, -2.0),
        lambda: normalized(1.5),
    ],
)
def test_percentages_and_nonsense_are_refused(wrong):
    with pytest.raises(ValueError, match="percentages are to be divided by 100"):
        wrong()
