"""The training and its gradients against a loop written out, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dcf.testing import fake_spec
from dcf.testing.fakes import TinyFactory
from dcf.types import Batch
from dcf.unroll import stateless, train_on
from dcf_bptt.order import cycled
from dcf_bptt.training import real_loss


def parts(seed=0, soft=False):
    """Network, synthetic and real images, all in float64."""
    draw = torch.Generator().manual_seed(seed)
    net = TinyFactory().create(fake_spec(3), seed)
    net.load({name: weight.double() for name, weight in net.params.items()})
    x = torch.randn(6, 3, 8, 8, generator=draw, dtype=torch.float64).requires_grad_()
    y = torch.randn(6, 3, generator=draw, dtype=torch.float64).softmax(1) if soft else torch.arange(6) % 3
    real = Batch(torch.randn(9, 3, 8, 8, generator=draw, dtype=torch.float64), torch.arange(9) % 3)
    return net, Batch(x, y.requires_grad_() if soft else y), real


def slow(net, images, steps, lrs, real, momentum):
    """Loss on the real images after training, every step spelled out for ordinary autograd."""
    weights, velocity = dict(net.params), {name: torch.zeros_like(w) for name, w in net.params.items()}
    for s, step in enumerate(steps):
        loss = F.cross_entropy(net(images.x[step], weights), images.y[step])
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, weight), gradient in zip(list(weights.items()), gradients, strict=True):
            velocity[name] = momentum * velocity[name] + gradient
            weights[name] = weight - lrs[s] * velocity[name]
    return F.cross_entropy(net(real.x, weights), real.y)


def fast(net, images, steps, lrs, real, momentum, **options):
    logits = stateless(net)
    weights = train_on(logits, net.params, images, steps, lrs, momentum=momentum, **options)
    return real_loss(logits, weights, real)[0]


STEPS = {
    "ordered": cycled([torch.arange(3), torch.arange(3, 6)], 5),
    "random": [torch.tensor(step) for step in ([0, 1, 5], [3, 4, 2], [0, 4, 5], [5, 1, 3])],
}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("order", STEPS)
@pytest.mark.parametrize("options", [{}, {"keep": 2}, {"mode": "full"}, {"mode": "checkpoint"}], ids=str)
def test_loss_and_gradients_are_those_of_a_loop(order, momentum, options):
    steps, found = STEPS[order], []
    for loss_of in (slow, lambda *a: fast(*a, **options)):
        net, images, real = parts(soft=True)
        lrs = torch.linspace(0.1, 0.4, len(steps), dtype=torch.float64).requires_grad_()
        loss = loss_of(net, images, steps, lrs, real, momentum)
        found.append((loss, *torch.autograd.grad(loss, [images.x, images.y, lrs, *net.parameters()])))
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-13)


def test_gradient_of_a_pixel_is_its_finite_difference():
    net, images, real = parts()
    lrs = torch.full((5,), 0.3, dtype=torch.float64)
    loss = fast(net, images, STEPS["ordered"], lrs, real, 0.5)
    (gradient,) = torch.autograd.grad(loss, images.x)
    where, h = (4, 1, 3, 2), 1e-5
    ends = []
    for sign in (1, -1):
        moved = images.x.detach().clone()
        moved[where] += sign * h
        ends.append(fast(net, Batch(moved, images.y), STEPS["ordered"], lrs, real, 0.5).detach())
    torch.testing.assert_close(gradient[where], (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-10)


def test_without_second_derivatives_the_gradient_is_another_one():
    net, images, real = parts()
    lrs = torch.full((5,), 0.3, dtype=torch.float64)
    exact, tesla = (
        torch.autograd.grad(fast(net, images, STEPS["ordered"], lrs, real, 0.0, mode=mode), images.x)[0]
        for mode in ("adjoint", "tesla")
    )
    assert (exact - tesla).norm() > 0.01 * exact.norm()


def test_each_step_is_augmented_by_its_own_number():
    net, images, real = parts()
    seen = []

    def augment(batch, s):
        seen.append(s)
        return Batch(batch.x * (1 + s), batch.y)

    lrs = torch.full((2,), 0.3, dtype=torch.float64)
    steps = [torch.arange(3), torch.arange(3, 6)]
    loss = fast(net, images, steps, lrs, real, 0.0, augment=augment)
    assert set(seen) == {0, 1}
    doubled = torch.cat([images.x[:3], images.x[3:] * 2])
    torch.testing.assert_close(loss, fast(net, Batch(doubled, images.y), steps, lrs, real, 0.0))


def test_real_loss_is_the_mean_and_comes_with_the_accuracy():
    net, _, real = parts()
    loss, right = real_loss(stateless(net), net.params, real)
    logits = net(real.x)
    each = [-logits[i].log_softmax(0)[real.y[i]] for i in range(len(real.y))]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    assert float(right) == pytest.approx(float((logits.argmax(1) == real.y).double().mean()))
    assert not right.requires_grad
