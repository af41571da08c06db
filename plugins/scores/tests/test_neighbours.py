"""Nearest neighbours and attacks against brute force."""

from __future__ import annotations

import pytest
import torch

from dcf_scores.neighbours import area_under_curve, hits_at, nearest


def vectors(n, seed, d=12):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_is_found_across_pieces():
    queries, others = vectors(7, 0), vectors(50, 1)
    distances = (queries.double()[:, None] - others.double()[None]).norm(dim=2)
    found = nearest(queries, others.split(8))
    assert found.number.tolist() == distances.argmin(1).tolist()
    assert torch.allclose(found.distance.double(), distances.min(1).values, atol=1e-5)


def test_a_copy_is_at_distance_zero_and_the_first_of_several_counts():
    others = 100 + vectors(50, 1)
    others[30] = others[20] = others[9]
    found = nearest(others[[9, 3]], others.split(16))
    assert found.distance.tolist() == [0, 0]
    assert found.number.tolist() == [9, 3]


def slow_auc(members, others):
    return sum((m > o) + 0.5 * (m == o) for m in members.tolist() for o in others.tolist()) / len(members) / len(others)


def test_area_under_curve_is_the_chance_of_the_right_order():
    members, others = vectors(1, 0, 30)[0].round(decimals=1), vectors(1, 1, 40)[0].round(decimals=1)
    assert area_under_curve(members, others) == pytest.approx(slow_auc(members, others))
    assert area_under_curve(torch.ones(3), torch.zeros(5)) == 1
    assert area_under_curve(torch.zeros(3), torch.ones(5)) == 0
    assert area_under_curve(torch.ones(3), torch.ones(5)) == 0.5


def test_hits_are_counted_at_few_false_alarms():
    others = torch.arange(100.0)
    members = torch.tensor([50.0, 98.0, 98.5, 200.0])
    assert hits_at(members, others, 0.01) == 0.5
    assert hits_at(members, others, 0.5) == 1.0
    assert hits_at(torch.zeros(4), torch.zeros(100), 0.1) == 0, "ties are no hits"
