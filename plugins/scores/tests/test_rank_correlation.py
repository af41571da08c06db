"""Rank correlations against scikit-learn's companion, and their intervals."""

from __future__ import annotations

import pytest
import torch

from dcf_scores.correlation import agreement, average_ranks, kendall, spearman, top_by

stats = pytest.importorskip("scipy.stats")


def pair(n=30, levels=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (n,), generator=draw).double()
    return x, x + torch.randint(levels, (n,), generator=draw)


@pytest.mark.parametrize("levels", [3, 8, 10_000])
def test_ranks_and_correlations_with_ties(levels):
    x, y = pair(levels=levels)
    assert average_ranks(x).tolist() == stats.rankdata(x.numpy()).tolist()
    assert float(spearman(x, y)) == pytest.approx(stats.spearmanr(x.numpy(), y.numpy()).statistic)
    assert float(kendall(x, y)) == pytest.approx(stats.kendalltau(x.numpy(), y.numpy()).statistic)


def test_many_pairs_at_once():
    x, y = (torch.stack(v) for v in zip(*(pair(seed=s) for s in range(3)), strict=True))
    assert torch.equal(spearman(x, y), torch.stack([spearman(a, b) for a, b in zip(x, y, strict=True)]))
    assert torch.equal(kendall(x, y), torch.stack([kendall(a, b) for a, b in zip(x, y, strict=True)]))


def test_the_reference_chooses_the_top():
    assert top_by(torch.tensor([0.5, 0.9, 0.5, 0.7]), 3).tolist() == [1, 3, 0]


def interval(x, y, resamples=400, seed=0):
    return agreement(x, y, resamples, torch.Generator().manual_seed(seed))


def test_agreement_is_the_mean_over_judgements_with_intervals_around_it():
    (x, y), (z, _) = pair(), pair(seed=1)
    found = interval(torch.stack([x, z]), y)
    assert found.spearman == pytest.approx((float(spearman(x, y)) + float(spearman(z, y))) / 2)
    assert found.kendall == pytest.approx((float(kendall(x, y)) + float(kendall(z, y))) / 2)
    assert found.spearman_ci[0] < found.spearman < found.spearman_ci[1]
    assert found.kendall_ci[0] < found.kendall < found.kendall_ci[1]
    assert found == interval(torch.stack([x, z]), y)


def test_fewer_items_mean_wider_intervals():
    x, y = pair(n=200, levels=1000)
    wide, narrow = (interval(x[None, :n], y[:n]).spearman_ci for n in (8, 200))
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])


def test_intervals_of_chance_contain_nothing_nineteen_times_of_twenty():
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(60):
        x, y = torch.rand(2, 40, generator=draw, dtype=torch.float64)
        low, high = agreement(x[None], y, 200, draw).spearman_ci
        hits += low <= 0 <= high
    assert 52 <= hits <= 60


def test_a_judgement_that_finds_all_alike_counts_as_nothing():
    x, y = pair()
    found = interval(torch.stack([x, torch.ones_like(x)]), y)
    assert found.spearman == pytest.approx(float(spearman(x, y)) / 2)
    assert interval(x[None], torch.ones_like(x)).to_json()["kendall"] == 0
