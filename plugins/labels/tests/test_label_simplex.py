"""The simplex: projection from anything, labels of what is stored, and what one-hot means as logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcf_labels.simplex import distributions, encode, onehot, onto_simplex

QUICK = settings(max_examples=200, deadline=None)
anything = st.one_of(
    st.floats(width=32), st.floats(-2, 2, width=32), st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf])
)
rows = st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(anything, min_size=k, max_size=k), min_size=1, max_size=5))


@QUICK
@given(rows, st.sampled_from([torch.float32, torch.float64]))
def test_any_row_ends_on_the_simplex_and_stays_there(values, dtype):
    given_rows = torch.tensor(values, dtype=dtype)
    found = onto_simplex(given_rows)
    assert found.dtype == dtype
    assert bool((found >= 0).all())
    assert torch.allclose(found.double().sum(1), torch.ones(len(found), dtype=torch.float64), atol=1e-6)
    assert torch.equal(onto_simplex(found), found)


@QUICK
@given(rows, st.sampled_from(["probabilities", "logits"]))
def test_labels_of_any_finite_numbers_are_distributions(values, form):
    stored = torch.tensor(values, dtype=torch.float64).nan_to_num(0, 1e30, -1e30)
    found = distributions(stored, form)
    assert bool((found >= 0).all())
    assert torch.allclose(found.sum(1), torch.ones(len(found), dtype=torch.float64))


def test_positive_rows_are_clamped_and_divided_by_their_sum():
    found = onto_simplex(torch.tensor([[0.5, -0.2, 1.5], [0.2, 0.3, 0.5]]))
    assert torch.allclose(found, torch.tensor([[0.25, 0.0, 0.75], [0.2, 0.3, 0.5]]))


def test_row_that_lost_everything_becomes_uniform():
    found = onto_simplex(torch.tensor([[0.0, 0.0], [-1.0, -3.0], [math.nan, -1.0]]))
    assert torch.equal(found, torch.full((3, 2), 0.5))


@pytest.mark.parametrize("row", [[0.2, 0.3, 0.5], [0.0, 0.0, 1.0], [0.4, 0.6, 1.0]])
def test_gradient_of_probabilities_is_that_of_what_is_stored_even_where_they_are_zero(row):
    stored = torch.tensor([row], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad((distributions(stored, "probabilities") * weight).sum(), stored)
    assert torch.allclose(grad, weight)


def test_logits_are_differentiated_exactly():
    stored = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distributions(z, "logits"), stored)


@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_encoding_is_undone_by_decoding(form):
    labels = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)).softmax(1)
    assert torch.allclose(distributions(encode(labels, form), form), labels, atol=1e-6)


def test_logits_of_zero_probabilities_are_finite():
    assert bool(torch.isfinite(encode(torch.tensor([[1.0, 0.0]]), "logits")).all())


def test_onehot_as_logits_can_still_learn():
    classes = torch.tensor([2, 0])
    assert torch.equal(onehot(classes, 3, "probabilities").argmax(1), classes)
    assert float(onehot(classes, 3, "probabilities").amax()) == 1
    soft = onehot(classes, 3, "logits")
    assert torch.allclose(soft[0], torch.tensor([0.005, 0.005, 0.99]))
    assert torch.equal(onehot(torch.tensor([0]), 1, "logits"), torch.ones(1, 1))
