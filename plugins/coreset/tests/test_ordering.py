"""Orders within a class against brute force, and that a swapped sign is noticed."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from dcf_coreset.ordering import herding_order, k_center_order, k_means_order, nearest_to_centres, score_order

#: Two clusters and one point far from both.
TOY = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [10.0, 10.0], [11.0, 10.0], [10.0, 12.0], [30.0, 0.0]])

#: Whole coordinates and a power of two of points: all arithmetic is exact, and ties are real ties.
grids = st.lists(st.tuples(st.integers(-8, 8), st.integers(-8, 8), st.integers(-2, 2)), min_size=8, max_size=8)


def points(grid):
    return torch.tensor(grid, dtype=torch.float32)


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def brute_herding(rows, count):
    """Try every row that is left; keep the one with which the mean of the chosen is nearest to the mean of all."""
    mean = [Fraction(sum(column)) / len(rows) for column in zip(*rows, strict=True)]
    chosen = []
    for _ in range(count):
        tried = []
        for i in range(len(rows)):
            if i not in chosen:
                kept = [rows[j] for j in [*chosen, i]]
                tried.append((squared([Fraction(sum(c)) / len(kept) for c in zip(*kept, strict=True)], mean), i))
        chosen.append(min(tried)[1])
    return chosen


def brute_k_center(rows, count, start):
    """Keep the row whose nearest chosen one is farthest; the first of several."""
    chosen = list(start)
    while len(chosen) < count:
        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min(squared(rows[i], rows[j]) for j in chosen), -i)))
    return chosen


def radius(rows, chosen):
    """Largest squared distance of a row to the nearest chosen one."""
    return max(min(squared(row, rows[j]) for j in chosen) for row in rows)


def whole(features):
    return [[int(v) for v in row] for row in features.tolist()]


# --- herding ------------------------------------------------------------------------------------------------------


@given(grids, st.integers(0, 8))
def test_herding_is_the_brute_force_greedy(grid, count):
    assert herding_order(points(grid), count).tolist() == brute_herding(grid, count)


def test_first_pick_of_herding_is_nearest_to_the_class_mean():
    nearest = int((TOY - TOY.mean(0)).norm(dim=1).argmin())
    farthest = int((TOY - TOY.mean(0)).norm(dim=1).argmax())
    assert nearest != farthest
    assert herding_order(TOY, 1).tolist() == [nearest]


def test_herding_keeps_the_mean_better_than_random_images():
    count = 6
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    away = (features[herding_order(features, count)].mean(0) - features.mean(0)).norm()
    draws = [torch.randperm(200, generator=torch.Generator().manual_seed(s))[:count] for s in range(50)]
    assert float(away) < min(float((features[d].mean(0) - features.mean(0)).norm()) for d in draws)


def test_herding_takes_every_row_once():
    features = torch.randn(9, 3).repeat(2, 1)
    assert sorted(herding_order(features, 18).tolist()) == list(range(18))


def test_herding_takes_the_first_of_copies():
    assert herding_order(torch.ones(4, 2), 3).tolist() == [0, 1, 2]


# --- k-center -----------------------------------------------------------------------------------------------------


@given(grids, st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True), st.integers(3, 8))
def test_k_center_is_the_brute_force_greedy(grid, start, count):
    assert k_center_order(points(grid), count, torch.tensor(start)).tolist() == brute_k_center(grid, count, start)


@given(grids, st.integers(1, 4), st.integers(0, 7))
def test_k_center_radius_is_at_most_twice_the_optimum(grid, count, start):
    found = radius(grid, k_center_order(points(grid), count, torch.tensor([start])).tolist())
    best = min(radius(grid, chosen) for chosen in combinations(range(8), count))
    assert found <= 4 * best  # squared distances


def test_k_center_visits_every_cluster_first():
    order = k_center_order(TOY, 3, torch.tensor([0])).tolist()
    assert order[1] == 6
    assert order[2] in (3, 4, 5)


def test_k_center_takes_every_row_once_even_copies():
    assert sorted(k_center_order(torch.ones(5, 2), 5, torch.tensor([3])).tolist()) == [0, 1, 2, 3, 4]


def test_k_center_needs_a_start():
    with pytest.raises(ValueError, match="start"):
        k_center_order(TOY, 2, torch.empty(0, dtype=torch.int64))


def test_k_center_with_more_starts_than_wanted_takes_the_first():
    assert k_center_order(TOY, 1, torch.tensor([4, 2])).tolist() == [4]


# --- a swapped sign -----------------------------------------------------------------------------------------------


def assert_herding_is_right():
    assert herding_order(TOY, 3).tolist() == brute_herding(whole(TOY), 3)


def assert_k_center_is_right():
    assert k_center_order(TOY, 3, torch.tensor([0])).tolist() == brute_k_center(whole(TOY), 3, [0])


def assert_k_center_is_near_the_optimum():
    rows = whole(TOY)
    best = min(radius(rows, chosen) for chosen in combinations(range(len(rows)), 3))
    assert radius(rows, k_center_order(TOY, 3, torch.tensor([0])).tolist()) <= 4 * best


def assert_centres_are_right():
    assert nearest_to_centres(TOY, TOY[[6, 0]] + 0.1).tolist() == [6, 0]


@pytest.mark.parametrize(
    ("check", "name", "swapped"),
    [
        (assert_herding_is_right, "argmin", "argmax"),
        (assert_centres_are_right, "argmin", "argmax"),
        (assert_k_center_is_right, "argmax", "argmin"),
        (assert_k_center_is_near_the_optimum, "argmax", "argmin"),
    ],
)
def test_a_swapped_sign_would_be_noticed(monkeypatch, check, name, swapped):
    check()
    monkeypatch.setattr(torch.Tensor, name, getattr(torch.Tensor, swapped))
    with pytest.raises(AssertionError):
        check()


# --- k-means ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 10])
def test_k_means_takes_the_rows_nearest_to_the_centres_of_scikit_learn(count):
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    rows = features.double().numpy()
    centres = KMeans(count, random_state=7, n_init=1).fit(rows).cluster_centers_
    want = [int(np.linalg.norm(rows - centre, axis=1).argmin()) for centre in centres]
    assert len(set(want)) == count
    assert k_means_order(features, count, 7).tolist() == want


def test_k_means_takes_one_row_of_every_cluster():
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    member = torch.arange(40) % 4
    features = centres[member] + torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert sorted(member[k_means_order(features, 4, 0)].tolist()) == [0, 1, 2, 3]


def test_a_row_near_two_centres_goes_to_the_first():
    assert nearest_to_centres(TOY, torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.1, 0.0]])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_k_means_takes_different_rows_of_copies(count):
    order = k_means_order(torch.ones(6, 2), count, 0)
    assert len(set(order.tolist())) == len(order) == count


# --- scores, and what all share -----------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), min_size=1, max_size=30), st.data())
def test_highest_scores_come_first_and_ties_by_row(values, data):
    count = data.draw(st.integers(0, len(values)))
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert score_order(torch.tensor(values), count).tolist() == want


@pytest.mark.parametrize(
    "order",
    [
        lambda f, n: herding_order(f, n),
        lambda f, n: k_center_order(f, n, torch.tensor([0])),
        lambda f, n: k_means_order(f, n, 0),
        lambda f, n: score_order(f[:, 0], n),
    ],
)
def test_more_rows_than_there_are_is_refused(order):
    with pytest.raises(ValueError, match="at most 7"):
        order(TOY, 8)


def test_inputs_stay_as_they_are():
    features = torch.randn(12, 3, dtype=torch.float64)
    before = features.clone()
    herding_order(features, 4)
    k_center_order(features, 4, torch.tensor([0]))
    k_means_order(features, 4, 0)
    assert torch.equal(features, before)
