"""Nested statistics: known components recovered, numpy agreed with, nothing claimed that was not estimated."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dcf.evaluation.statistics import NOT_ESTIMATED, summarize, t_quantile


def test_mean_and_pooled_spread_are_numpys():
    values = np.random.default_rng(0).uniform(size=(4, 6))
    stat = summarize(values.tolist())
    assert stat.mean == pytest.approx(values.mean(), rel=1e-12)
    assert stat.pooled == pytest.approx(values.std(), rel=1e-12)
    assert (stat.n_sets, stat.n_nets) == (4, 6)


def test_components_are_those_of_the_one_way_layout():
    values = np.random.default_rng(1).normal(size=(5, 3))
    values += np.arange(5)[:, None]
    stat = summarize(values.tolist())
    within = math.sqrt(values.var(axis=1, ddof=1).mean())
    assert stat.within == pytest.approx(within)
    assert stat.between == pytest.approx(math.sqrt(values.mean(axis=1).var(ddof=1) - within**2 / 3))


def test_components_recover_what_was_simulated():
    rng = np.random.default_rng(2)
    squares = []
    for _ in range(400):
        values = 0.5 + rng.normal(0, 0.02, (5, 1)) + rng.normal(0, 0.01, (5, 4))
        stat = summarize(values.tolist())
        squares.append((stat.within**2, stat.between**2))
    within, between = np.sqrt(np.mean(squares, axis=0))
    assert within == pytest.approx(0.01, rel=0.03)
    assert between == pytest.approx(0.02, rel=0.06)


def test_networks_alone_do_not_look_like_a_spread_between_sets():
    same = [[0.1, 0.9], [0.9, 0.1], [0.5, 0.5]]
    assert summarize(same).between == 0.0


def test_one_set_does_not_estimate_the_spread_between_sets():
    stat = summarize([[0.4, 0.5, 0.6]])
    assert stat.between == NOT_ESTIMATED
    assert stat.within == pytest.approx(0.1)
    assert stat.ci_basis == "networks, conditional on one set"
    half = t_quantile(2) * 0.1 / math.sqrt(3)
    assert stat.ci == pytest.approx((0.5 - half, 0.5 + half))


def test_one_network_does_not_separate_the_components():
    stat = summarize([[0.4], [0.6]])
    assert (stat.within, stat.between, stat.ci) == (NOT_ESTIMATED,) * 3
    assert stat.pooled == pytest.approx(0.1)


def test_interval_is_that_of_the_set_means_from_three_sets_on():
    stat = summarize([[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert stat.ci_basis == "sets"
    assert stat.ci == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize(("sets", "nets", "sigma"), [(3, 2, 0.02), (1, 4, 0.0)])
def test_interval_covers_the_truth_as_often_as_it_says(sets, nets, sigma):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1500):
        values = 0.5 + rng.normal(0, sigma, (sets, 1)) + rng.normal(0, 0.01, (sets, nets))
        low, high = summarize(values.tolist()).ci
        hits += low <= 0.5 <= high
    assert hits / 1500 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("df", "want"),
    [(1, 12.706204736), (2, 4.302652730), (3, 3.182446305), (4, 2.776445105), (9, 2.262157163), (30, 2.042272456),
     (1000, 1.962339081), (1001, 1.962336752)],
)  # fmt: skip
def test_t_quantile_is_that_of_the_tables(df, want):
    assert t_quantile(df) == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("values", [[], [[]], [[0.1], [0.2, 0.3]]])
def test_ragged_or_empty_values_are_refused(values):
    with pytest.raises(ValueError, match="equally many networks"):
        summarize(values)


def test_nan_cannot_be_summarised():
    with pytest.raises(ValueError, match="finite"):
        summarize([[math.nan, 0.5]])
