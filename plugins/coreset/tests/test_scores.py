"""Scores of images: by hand, against gradients, and within their ranges."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dcf_coreset.scores import (
    ForgettingCounter,
    entropy,
    error_norm,
    forgetting_scores,
    gradient_norm,
    least_confidence,
    margin,
)

#: Probabilities that are easy to do sums with.
PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
LOGITS = PROBABILITIES.log()


def test_least_confidence_by_hand():
    assert least_confidence(LOGITS).tolist() == pytest.approx([0.5, 0.2, 2 / 3])


def test_least_confidence_is_of_probabilities_not_of_logits():
    # The first has the larger logit and the smaller probability.
    logits = torch.tensor([[5.0, 5.0], [1.0, -9.0]])
    scores = least_confidence(logits)
    assert float(scores[0]) == pytest.approx(0.5)
    assert scores[0] > scores[1]
    assert least_confidence(logits + 100).tolist() == pytest.approx(scores.tolist())


def test_sure_predictions_are_told_apart():
    low, high = least_confidence(torch.tensor([[30.0, 0.0], [29.0, 0.0]])).tolist()
    assert 0 < low < high


def test_entropy_by_hand():
    want = [-sum(p * math.log(p) for p in row) for row in PROBABILITIES.tolist()]
    assert entropy(LOGITS).tolist() == pytest.approx(want)
    assert entropy(torch.tensor([[1000.0, 0.0]])).tolist() == [0.0]


def test_margin_by_hand():
    assert margin(LOGITS).tolist() == pytest.approx([0.8, 0.3, 1.0])
    assert margin(torch.zeros(2, 1)).tolist() == [0.0, 0.0]


def test_error_norm_by_hand():
    want = [math.sqrt(0.5**2 + 0.3**2 + 0.2**2), math.sqrt(0.1**2 + 0.9**2 + 0.8**2), math.sqrt(6) / 3]
    assert error_norm(LOGITS, torch.tensor([0, 1, 2])).tolist() == pytest.approx(want)


@pytest.mark.parametrize("bias", [True, False])
def test_gradient_norm_is_that_of_each_image_by_itself(bias):
    draw = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 4, bias=bias, dtype=torch.float64)
    features = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    want = []
    for x, y in zip(features, labels, strict=True):
        loss = F.cross_entropy(layer(x[None]), y[None])
        want.append(float(sum(g.square().sum() for g in torch.autograd.grad(loss, list(layer.parameters()))).sqrt()))
    assert gradient_norm(features, layer(features).detach(), labels, bias).tolist() == pytest.approx(want, rel=1e-12)


rows = st.lists(st.floats(-50, 50), min_size=3, max_size=3)


@given(st.lists(st.tuples(rows, st.integers(0, 2)), min_size=1, max_size=5))
def test_scores_stay_in_their_ranges(cases):
    logits, labels = torch.tensor([c[0] for c in cases]), torch.tensor([c[1] for c in cases])
    slack = 1e-9
    for values, top in (
        (least_confidence(logits), 2 / 3),
        (entropy(logits), math.log(3)),
        (margin(logits), 1.0),
        (error_norm(logits, labels), math.sqrt(2)),
    ):
        assert bool((values >= -slack).all())
        assert bool((values <= top + slack).all())


# --- forgetting ---------------------------------------------------------------------------------------------------


def plain_count(history):
    """Transitions from right to wrong in one image's visits."""
    return sum(a and not b for a, b in pairwise(history))


def counted(history):
    """The counter over visits `(T, N)` of every image."""
    counter = ForgettingCounter(len(history[0]))
    for visit in history:
        counter.visit(torch.arange(len(visit)), torch.tensor(visit))
    return counter


def test_forgetting_by_hand():
    columns = {
        "always right": ([1, 1, 1, 1, 1], 0),
        "learned late": ([0, 0, 1, 1, 1], 0),
        "forgotten once": ([0, 1, 1, 0, 0], 1),
        "forgotten twice": ([1, 0, 1, 0, 1], 2),
        "never right": ([0, 0, 0, 0, 0], math.inf),
    }
    history = [[bool(column[t]) for column, _ in columns.values()] for t in range(5)]
    counter = counted(history)
    want = [score for _, score in columns.values()]
    assert forgetting_scores(counter.forgotten, counter.learned).tolist() == want


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_forgetting_counts_are_those_of_a_plain_loop(history):
    counter = counted(history)
    columns = list(zip(*history, strict=True))
    assert counter.forgotten.tolist() == [plain_count(c) for c in columns]
    assert counter.learned.tolist() == [any(c) for c in columns]


def test_visits_are_of_the_images_that_are_named():
    counter = ForgettingCounter(4)
    counter.visit(torch.tensor([3, 1]), torch.tensor([True, False]))
    counter.visit(torch.tensor([1, 3]), torch.tensor([True, False]))
    assert counter.forgotten.tolist() == [0, 0, 0, 1]
    assert counter.learned.tolist() == [False, True, False, True]
