"""Learners: the head that grows, the distillation term, and which answers compete."""

import math

import pytest
import torch
from torch.nn import functional as F

import dcf
from dcf.networks.base import NetworkState
from dcf.testing.fakes import TinyFactory, fake_data, fake_spec
from dcf.types import Batch
from dcf_continual.learners import count_hits, distilled, grown


def network(classes, seed):
    return TinyFactory().create(fake_spec(classes), seed, "test")


def images(n=5, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_a_grown_network_answers_for_old_classes_as_before():
    old, fresh = network(2, 0), network(5, 1)
    drawn = fresh.params["classifier.weight"][2:].clone()
    new = grown(old, fresh)
    assert torch.allclose(new(images())[:, :2], old(images()), atol=1e-6)
    assert torch.equal(new.params["classifier.weight"][2:], drawn)
    with torch.no_grad():  # a copy: the old one stays what it was
        new.params["classifier.weight"].zero_()
    assert bool(old.params["classifier.weight"].abs().sum() > 0)


def test_a_network_that_differs_in_more_than_its_outputs_is_refused():
    with pytest.raises(dcf.UsageError, match="does not grow with the number of classes"):
        grown(network(5, 0), network(2, 1))
    with pytest.raises(dcf.UsageError, match="conv"):
        grown(network(2, 0), TinyFactory().create(fake_spec(3, (1, 8, 8)), 0, "test"))


def reference(logits, y, old, weight, temperature):
    """Number by number: cross-entropy plus beta T^2 times the divergence summed over old classes, both averaged."""
    total, n = 0.0, old.shape[1]
    for row, label, before in zip(logits.tolist(), y.tolist(), old.tolist(), strict=True):
        total += math.log(sum(map(math.exp, row))) - row[label]
        p = [math.exp(v / temperature) for v in before]
        q = [math.exp(v / temperature) for v in row[:n]]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        total += weight * temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(y)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 2.0), (0.5, 1.0), (3.0, 4.0)])
def test_distillation_is_the_divergence_from_the_old_answers(weight, temperature):
    old, x, y = network(3, 0), images(), torch.tensor([0, 4, 2, 1, 3])
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    got = distilled(old, weight, temperature)(logits, Batch(x, y))
    assert float(got) == pytest.approx(reference(logits, y, old(x).detach(), weight, temperature), rel=1e-5)


def test_staying_at_the_old_answers_costs_nothing():
    old, x, y = network(3, 0), images(), torch.tensor([0, 1, 2, 1, 0])
    logits = torch.cat([old(x), torch.zeros(5, 2)], 1).detach()
    assert torch.allclose(distilled(old, 7.0, 2.0)(logits, Batch(x, y)), F.cross_entropy(logits, y), atol=1e-6)


def test_the_old_network_has_no_gradient():
    old, logits = network(2, 0), torch.randn(5, 3, requires_grad=True)
    distilled(old, 1.0, 2.0)(logits, Batch(images(), torch.zeros(5, dtype=torch.long))).backward()
    assert logits.grad is not None
    assert all(p.grad is None for p in old.parameters())


class Fixed(NetworkState):
    """Always the same answer."""

    def __init__(self, logits):
        super().__init__(TinyFactory().build(fake_spec(len(logits))))
        self.logits = torch.tensor(logits)

    def __call__(self, x, params=None, embed=False):
        return self.logits.expand(len(x), -1)


def test_heads_differ_in_the_answers_that_compete():
    test = fake_data(classes=4, test=3).test
    # Class 3 has not come; of those seen class 2 wins, of the own step's class 0.
    state = Fixed([0.5, 0.1, 1.0, 2.0])
    hits = count_hits(state, test, None, seen=[0, 1, 2], own=[0, 1])
    assert hits.count == 6
    assert hits.correct == {"all": 0, "seen": 0, "step": 3}
    hits = count_hits(state, test, None, seen=[0, 1, 2], own=[2])
    assert hits.correct == {"all": 0, "seen": 3, "step": 3}


def test_outputs_are_in_order_of_arrival():
    test = fake_data(classes=4, test=3).test
    state = Fixed([2.0, 0.0])  # the first output is for class 3
    assert count_hits(state, test, [3, 1], seen=[3, 1], own=[3]).correct == {"all": 3, "seen": 3, "step": 3}
    assert count_hits(state, test, [3, 1], seen=[3, 1], own=[1]).correct["seen"] == 0
