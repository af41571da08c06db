"""A student's training: batches, windows, loss, and its gradients against slow references."""

from __future__ import annotations

import doctest

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dcf
import dcf_mtt.experts
import dcf_mtt.options
import dcf_mtt.student
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.testing.fakes import TinyFactory, fake_spec
from dcf.unroll import stateless, train_on
from dcf_mtt.start import agreed_labels
from dcf_mtt.student import (
    draw_start,
    scale_gradient,
    student_batches,
    trajectory_loss,
    window_end,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def fresh_permutations(n, generator):
    while True:
        yield torch.randperm(n, generator=generator)


@pytest.mark.parametrize("module", [dcf_mtt.student, dcf_mtt.options, dcf_mtt.experts])
def test_examples_hold(module):
    assert doctest.testmod(module).failed == 0


# --- what is drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "end", "length", "wanted"),
    [
        (10, 20, 1000, {0: 10, 100: 11, 500: 15, 999: 19, 1000: 20, 5000: 20}),
        (20, 40, 2000, {0: 20, 500: 25, 1000: 30, 2000: 40, 9999: 40}),
        (4, 4, 1000, {0: 4, 1000: 4}),
    ],
)
def test_window_has_the_published_ends(begin, end, length, wanted):
    assert {it: window_end(it, begin, end, length) for it in wanted} == wanted


@given(st.integers(0, 10**6), st.integers(1, 50), st.integers(0, 50), st.integers(1, 5000))
def test_window_is_the_published_formula_and_never_shrinks(it, begin, more, length):
    end = begin + more
    assert window_end(it, begin, end, length) == min(begin + int((end - begin) * it / length), end)
    assert window_end(it, begin, end, length) <= window_end(it + 1, begin, end, length) <= end


@given(st.integers(0, 30), st.integers(1, 8))
def test_start_epochs_cover_the_window_and_never_reach_its_end(first, length):
    draw = gen(first)
    found = {draw_start(first, first + length, draw) for _ in range(60 * length)}
    assert found == set(range(first, first + length))


def published_batches(permutations, size, steps):
    """The released loop."""
    chunks, found, source = [], [], iter(permutations)
    for _ in range(steps):
        if not chunks:
            chunks = list(torch.split(next(source), size))
        found.append(chunks.pop())
    return found


@given(st.integers(1, 12), st.integers(1, 15), st.integers(1, 20))
def test_batches_are_those_of_the_released_loop(n, size, steps):
    draw, again = gen(), gen()
    wanted = published_batches((torch.randperm(n, generator=draw) for _ in range(steps)), size, steps)
    found = student_batches(fresh_permutations(n, again), size, steps)
    assert [b.tolist() for b in found] == [b.tolist() for b in wanted]


def test_too_few_orders_are_refused():
    with pytest.raises(ValueError, match="4 steps"):
        student_batches([torch.arange(4)], 2, 4)


# --- loss and gradients --------------------------------------------------------------------------------------


def problem(dtype=torch.float64, soft=False, factory=None):
    """A start, a target, a set and step sizes."""
    spec = fake_spec(3)
    net = (factory or TinyFactory()).create(spec, 0)
    start = {k: p.detach().to(dtype) for k, p in net.params.items()}
    target = {k: p + 0.05 * torch.randn(p.shape, generator=gen(1), dtype=dtype) for k, p in start.items()}
    x = torch.randn(6, *spec.shape, generator=gen(2), dtype=dtype).requires_grad_()
    y = torch.arange(6) % 3
    if soft:
        y = torch.rand(6, 3, generator=gen(3), dtype=dtype).softmax(1).requires_grad_()
    lr = torch.tensor(0.3, dtype=dtype).requires_grad_()
    return net, start, target, x, y, lr


def loss_of(net, start, target, x, y, lr, steps=4, size=4, mode="full", **options):
    batches = student_batches(fresh_permutations(len(x), gen(4)), size, steps)
    end = train_on(stateless(net), start, dcf.Batch(x, y), batches, lr.expand(steps), mode=mode, **options)
    return trajectory_loss(end, start, target)


def plain_loss(net, start, target, x, y, lr, steps=4, size=4, held=False):
    """The released loop on one flat vector."""
    shapes = {k: p.shape for k, p in start.items()}

    def unflat(v):
        parts = v.split([s.numel() for s in shapes.values()])
        return {k: p.view(s) for (k, s), p in zip(shapes.items(), parts, strict=True)}

    def flat(weights):
        return torch.cat([weights[k].reshape(-1) for k in shapes])

    theta = flat(start).requires_grad_()
    for batch in published_batches(list(fresh_first(len(x), steps)), size, steps):
        at = theta.detach().requires_grad_() if held else theta
        logits = net(x[batch], unflat(at))
        given = y[batch]
        terms = -(given * logits.log_softmax(1)).sum(1) if given.ndim == 2 else None
        loss = terms.mean() if terms is not None else torch.nn.functional.cross_entropy(logits, given)
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        theta = theta - lr * gradient
    count = theta.numel()
    num = torch.nn.functional.mse_loss(theta, flat(target), reduction="sum") / count
    den = torch.nn.functional.mse_loss(flat(start), flat(target), reduction="sum") / count
    return num / den


def fresh_first(n, count):
    source = fresh_permutations(n, gen(4))
    return [next(source) for _ in range(count)]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("mode", ["full", "adjoint", "checkpoint"])
def test_loss_and_gradients_are_those_of_the_released_loop(mode, soft):
    net, start, target, x, y, lr = problem(soft=soft)
    learned = [x, lr, y] if soft else [x, lr]
    wanted = plain_loss(net, start, target, x, y, lr)
    found = loss_of(net, start, target, x, y, lr, mode=mode)
    assert torch.allclose(found, wanted, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(found, learned), torch.autograd.grad(wanted, learned), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)


def test_truncated_gradient_holds_the_weights_of_every_step():
    net, start, target, x, y, lr = problem()
    wanted = plain_loss(net, start, target, x, y, lr, held=True)
    found = loss_of(net, start, target, x, y, lr, mode="tesla")
    exact = loss_of(net, start, target, x, y, lr)
    dx, dheld, dexact = (torch.autograd.grad(v, x, retain_graph=True)[0] for v in (found, wanted, exact))
    assert torch.allclose(dx, dheld, rtol=1e-9, atol=1e-13)
    assert float((dx - dexact).norm() / dexact.norm()) > 1e-3


def test_one_step_is_the_same_with_and_without_truncation():
    net, start, target, x, y, lr = problem()
    a, b = (torch.autograd.grad(loss_of(net, start, target, x, y, lr, 1, mode=m), [x, lr]) for m in ("tesla", "full"))
    assert all(torch.allclose(p, q, rtol=1e-10, atol=1e-14) for p, q in zip(a, b, strict=True))


def test_gradients_match_finite_differences():
    net, start, target, x, y, lr = problem()
    dx, dlr = torch.autograd.grad(loss_of(net, start, target, x, y, lr, mode="adjoint"), [x, lr])
    way = torch.randn(x.shape, generator=gen(5), dtype=x.dtype)
    eps = 1e-5

    def value(move, more):
        with torch.no_grad():
            return float(loss_of(net, start, target, x + move * way, y, lr + more))

    assert float((dx * way).sum()) == pytest.approx((value(eps, 0) - value(-eps, 0)) / (2 * eps), rel=1e-5)
    assert float(dlr) == pytest.approx((value(0, eps) - value(0, -eps)) / (2 * eps), rel=1e-5)


def test_loss_is_one_at_the_start_and_zero_at_the_target():
    _, start, target, *_ = problem()
    assert float(trajectory_loss(start, start, target)) == 1.0
    assert float(trajectory_loss(target, start, target)) == 0.0


def test_scaled_gradient_leaves_the_values():
    x = torch.randn(50, generator=gen()).requires_grad_()
    y = scale_gradient(x, 0.5)
    assert torch.equal(x, y)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((50,), 0.5))
    assert scale_gradient(x, 1.0) is x


def test_statistics_of_batch_norms_stay():
    factory = ConvNetFactory(ConvNetConfig(width=4, depth=1, norm="batch"))
    net, start, target, x, y, lr = problem(torch.float32, factory=factory)
    before = {k: b.clone() for k, b in net.buffers.items()}
    torch.autograd.grad(loss_of(net, start, target, x, y, lr, mode="adjoint"), x)
    assert all(torch.equal(before[k], b) for k, b in net.buffers.items())


# --- labels of experts -------------------------------------------------------------------------------------------


def test_labels_are_the_mean_logits_of_the_experts_that_are_right():
    right, also, wrong = torch.tensor([[2.0, 0.0]]), torch.tensor([[4.0, 2.0]]), torch.tensor([[0.0, 9.0]])
    labels = agreed_labels([right, wrong, also], torch.tensor([0]))
    assert torch.allclose(labels, torch.softmax(torch.tensor([[3.0, 1.0]]), 1))


def test_where_no_expert_is_right_all_are_asked():
    logits = [torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.0, 3.0, 1.0]])]
    labels = agreed_labels(logits, torch.tensor([0]))
    assert torch.allclose(labels, torch.softmax(torch.tensor([[0.0, 2.0, 3.0]]), 1))
    assert bool(labels.isfinite().all())
