"""The losses of objective and adversary against loops over pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcf_haba.losses import adversarial, adversary_loss, contrastive, likelihood


def drawn(n, features, classes, seed):
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(2 * n, features, generator=draw, dtype=torch.float64)
    logits = torch.randn(2 * n, classes, generator=draw, dtype=torch.float64)
    return embeddings, logits, torch.randint(classes, (n,), generator=draw)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_contrast(embeddings, labels, temperature):
    """Anchor by anchor, with plain numbers."""
    count = len(embeddings)
    classes = labels.tolist() * 2
    total = 0.0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        weight = {j: math.exp(cosine(embeddings[i], embeddings[j]) / temperature) for j in others}
        alike = [j for j in others if classes[j] == classes[i]]
        total -= sum(math.log(weight[j] / sum(weight.values())) for j in alike) / len(alike)
    return total / count


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 4), st.integers(0, 99), st.sampled_from([0.07, 0.5, 2.0]))
def test_losses_equal_a_loop(n, features, classes, seed, temperature):
    embeddings, logits, labels = drawn(n, features, classes, seed)
    alike = [cosine(embeddings[i], embeddings[n + i]) for i in range(n)]
    wanted_contrast = slow_contrast(embeddings, labels, temperature)
    wanted_cls = -sum(float(logits[i].log_softmax(0)[labels[i % n]]) for i in range(2 * n)) / (2 * n)
    assert float(adversarial(embeddings)) == pytest.approx(sum((c + 1) / 2 for c in alike) / n)
    assert float(likelihood(embeddings)) == pytest.approx(sum((1 - c) / 2 for c in alike) / n)
    assert float(contrastive(embeddings, labels, temperature)) == pytest.approx(wanted_contrast, abs=1e-9)
    found = adversary_loss(embeddings, logits, labels, cls=2.0, likely=0.3, contrast=0.7, temperature=temperature)
    rest = 0.3 * float(likelihood(embeddings)) + 0.7 * wanted_contrast
    assert float(found) == pytest.approx(2 * wanted_cls + rest, abs=1e-9)


def test_gradients_are_those_of_finite_differences():
    embeddings, logits, labels = drawn(3, 4, 2, 0)
    embeddings.requires_grad_()
    weights = {"cls": 1.0, "likely": 0.5, "contrast": 0.5, "temperature": 0.3}
    assert torch.autograd.gradcheck(lambda x: adversary_loss(x, logits, labels, **weights), embeddings)
    assert torch.autograd.gradcheck(adversarial, embeddings)


def test_the_two_sides_want_the_opposite():
    embeddings, _, _ = drawn(4, 5, 2, 1)
    assert float(adversarial(embeddings) + likelihood(embeddings)) == pytest.approx(1)
    same = torch.cat([embeddings[:4], embeddings[:4]])
    assert float(adversarial(same)) == pytest.approx(1)
