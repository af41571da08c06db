"""Calibration measures against slow versions of their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from dcf_scores.reliability import (
    TEMPERATURES,
    Reliability,
    brier,
    calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)


def example(n=200, k=4, seed=0, sharp=2.0):
    draw = torch.Generator().manual_seed(seed)
    logits = sharp * torch.randn(n, k, generator=draw, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=draw)


def slow_ece(chances, labels, bins):
    total = 0.0
    for b in range(bins):
        inside = [
            i for i in range(len(chances))
            if b / bins < max(chances[i]) <= (b + 1) / bins
        ]  # fmt: skip
        if inside:
            confidence = sum(max(chances[i]) for i in inside) / len(inside)
            accuracy = sum(chances[i].index(max(chances[i])) == labels[i] for i in inside) / len(inside)
            total += len(inside) / len(chances) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_is_its_definition(bins):
    logits, labels = example()
    chances = torch.softmax(logits, 1)
    want = slow_ece(chances.tolist(), labels.tolist(), bins)
    assert calibration_error(reliability(chances, labels, bins)) == pytest.approx(want, abs=1e-12)


def test_bins_end_where_they_should():
    chances = torch.tensor([[0.5, 0.5], [0.6, 0.4], [1.0, 0.0], [0.75, 0.25]], dtype=torch.float64)
    table = reliability(chances, torch.tensor([1, 0, 0, 1]), 4)
    assert table.total.tolist() == [0, 1, 2, 1]
    assert table.correct.tolist() == [0, 0, 1, 1]
    first, second, *_ = table.to_json()
    assert (first["count"], first["accuracy"]) == (0, None)
    assert second == {"from": 0.25, "to": 0.5, "count": 1, "confidence": 0.5, "accuracy": 0.0}


def test_tables_add_up():
    logits, labels = example()
    chances = torch.softmax(logits, 1)
    halves = [reliability(chances[part], labels[part], 15) for part in (slice(0, 77), slice(77, None))]
    whole, joined = reliability(chances, labels, 15), halves[0].plus(halves[1])
    assert isinstance(joined, Reliability)
    assert all(torch.allclose(a, b) for a, b in zip(whole, joined, strict=True))


def test_a_network_that_knows_how_much_it_knows_is_calibrated():
    draw = torch.Generator().manual_seed(0)
    chances = torch.softmax(torch.randn(100_000, 3, generator=draw, dtype=torch.float64), 1)
    labels = torch.multinomial(chances, 1, generator=draw)[:, 0]
    assert calibration_error(reliability(chances, labels, 15)) < 0.01
    sure = torch.nn.functional.one_hot(chances.argmax(1), 3).double()
    gap = 1 - float((chances.argmax(1) == labels).double().mean())
    assert calibration_error(reliability(sure, labels, 15)) == pytest.approx(gap)


def test_likelihood_and_brier_score_are_their_definitions():
    logits, labels = example()
    chances = torch.softmax(logits / 1.7, 1)
    want = -sum(math.log(chances[i, c]) for i, c in enumerate(labels.tolist())) / len(labels)
    assert negative_log_likelihood(logits, labels, 1.7) == pytest.approx(want)
    want = sum(
        (float(chances[i, k]) - (k == int(labels[i]))) ** 2 for i in range(len(labels)) for k in range(4)
    ) / len(labels)  # fmt: skip
    assert brier(chances, labels) == pytest.approx(want)
    assert brier(torch.tensor([[0.0, 1.0]]), torch.tensor([0])) == 2


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.5])
def test_the_temperature_undoes_a_wrong_scale(factor):
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(50_000, 5, generator=draw, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=draw)[:, 0]
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_no_other_temperature_is_better():
    logits, _ = example(sharp=6.0)
    labels = torch.multinomial(torch.softmax(logits / 3, 1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    best = fit_temperature(logits, labels)
    values = [negative_log_likelihood(logits, labels, best * f) for f in (0.9, 0.99, 1, 1.01, 1.1)]
    assert min(values) == values[2]


def test_the_temperature_of_a_faultless_network_is_bounded():
    logits = torch.eye(3)[torch.tensor([0, 1, 2])]
    assert fit_temperature(logits, torch.tensor([0, 1, 2])) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(TEMPERATURES[1])
