"""Gradients through training: every mode against plain autograd and finite differences, and what they keep."""

from __future__ import annotations

import math
import re
import weakref
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcf.engine import Engine
from dcf.errors import UsageError
from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNet
from dcf.testing import fake_context
from dcf.unroll import StepSizes, stateless, unroll

CLASSES = 3


class Problem:
    """Images decoded from addresses, learned soft labels, repeated images, fixed augmentation, a ConvNet, a target."""

    def __init__(self, steps, activation="swish", norm="instance", seed=0):
        draws = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=draws, dtype=torch.float64)

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = NetworkState(ConvNet((2, 4, 4), CLASSES, width=4, depth=2, activation=activation, norm=norm))
        self.net.load({k: p.double() for k, p in self.net.params.items()})
        self.steps = steps
        self.start = {k: p.detach().clone() for k, p in self.net.params.items()}
        self.target = {k: p + 0.1 * normal(*p.shape) for k, p in self.start.items()}
        self.leaves = {
            "addresses": normal(6, 5),
            "labels": normal(6, CLASSES),
            "lrs": 0.05 + 0.2 * torch.rand(steps, generator=draws, dtype=torch.float64),
            **self.start,
        }
        self.leaves = {k: v.clone().requires_grad_() for k, v in self.leaves.items()}
        self.bases = normal(5, 2, 4, 4)
        self.index = [torch.randint(6, (4,), generator=draws) for _ in range(steps)]
        self.shifts = [int(torch.randint(4, (), generator=draws)) for _ in range(steps)]
        self.gains = [normal(4, 1, 1, 1) for _ in range(steps)]

    def loss(self, images, labels):
        def loss(weights, s):
            x = images[self.index[s]].roll(self.shifts[s], -1) * (1 + 0.1 * self.gains[s])
            return F.cross_entropy(self.net(x, weights), labels[self.index[s]])

        return loss

    def distance(self, final):
        return sum((final[k] - t).square().sum() for k, t in self.target.items())

    def outer(self, run=unroll, **options):
        """The outer loss, differentiable in all leaves."""
        images = torch.einsum("nk,kchw->nchw", self.leaves["addresses"], self.bases)
        labels = self.leaves["labels"].softmax(1)
        start = {k: self.leaves[k] for k in self.start}
        final = run(self.loss(images, labels), start, self.leaves["lrs"], [images, labels], **options)
        return self.distance(final)

    def gradients(self, run=unroll, **options):
        found = torch.autograd.grad(self.outer(run, **options), list(self.leaves.values()), allow_unused=True)
        return dict(zip(self.leaves, found, strict=True))


def plain(loss, start, lrs, inputs, momentum=0.0, constant=False):
    """Written down again, slowly; with `constant` every weight is a constant in the gradient of its step."""
    w = {k: p if p.requires_grad else p.detach().requires_grad_() for k, p in start.items()}
    v = {k: torch.zeros_like(p) for k, p in start.items()}
    for s in range(len(lrs)):
        at = {k: p.detach().requires_grad_() for k, p in w.items()} if constant else w
        gradient = torch.autograd.grad(loss(at, s), list(at.values()), create_graph=True, materialize_grads=True)
        v = {k: momentum * v[k] + g for k, g in zip(w, gradient, strict=True)}
        w = {k: w[k] - lrs[s] * v[k] for k in w}
    return w


def error(found, expected):
    """The largest relative error of any of the gradients."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - g).norm() / g.norm()) for k, g in expected.items())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint"])
def test_gradients_are_exact(mode, steps, momentum):
    problem = Problem(steps)
    expected = problem.gradients(plain, momentum=momentum)
    assert error(problem.gradients(mode=mode, momentum=momentum), expected) < 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint", "tesla"])
def test_final_weights_are_those_of_training(mode, momentum):
    problem = Problem(5)
    expected = problem.outer(plain, momentum=momentum)
    torch.testing.assert_close(problem.outer(mode=mode, momentum=momentum), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mode", ["adjoint", "tesla"])
@pytest.mark.parametrize("keep", [2, 3, 7, 100, "cpu"])
def test_what_is_kept_changes_nothing(keep, mode, momentum):
    problem = Problem(7)
    expected = problem.gradients(mode=mode, momentum=momentum)
    assert error(problem.gradients(mode=mode, momentum=momentum, keep=keep), expected) < 1e-13


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.99]), st.integers(1, 5), st.integers(0, 1000))
def test_adjoint_equals_plain_autograd_for_any_setting(steps, momentum, keep, seed):
    problem = Problem(steps, seed=seed)
    expected = problem.gradients(plain, momentum=momentum)
    assert error(problem.gradients(momentum=momentum, keep=keep), expected) < 1e-10


@pytest.mark.parametrize("leaf", ["addresses", "labels", "lrs", "conv1.weight", "classifier.bias"])
def test_adjoint_agrees_with_finite_differences(leaf):
    problem = Problem(4, activation="sigmoid")
    gradient = problem.gradients(momentum=0.9)[leaf]
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values, centre, h = [], problem.leaves[leaf].detach().clone(), 1e-5
    for sign in (1, -1):
        problem.leaves[leaf] = (centre + sign * h * direction).requires_grad_()
        values.append(problem.outer(momentum=0.9).item())
    assert float((gradient * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


# --- without the Hessian term -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_constant_weights_mode_equals_autograd_with_detached_weights(momentum):
    problem = Problem(10)
    expected = problem.gradients(lambda *args, **options: plain(*args, **options, constant=True), momentum=momentum)
    assert error(problem.gradients(mode="tesla", momentum=momentum), expected) < 1e-10


def test_constant_weights_mode_is_exact_for_one_step_but_for_the_start():
    problem = Problem(1)
    exact, found = problem.gradients(), problem.gradients(mode="tesla")
    for name in ("addresses", "labels", "lrs"):
        torch.testing.assert_close(found[name], exact[name], rtol=1e-12, atol=1e-14)
    assert error(found, exact) > 1e-3


@pytest.mark.parametrize("name", ["addresses", "labels", "lrs"])
def test_the_hessian_term_matters(name):
    # What fails here if the adjoint lost it: then both modes would agree.
    problem = Problem(10)
    exact, found = problem.gradients()[name], problem.gradients(mode="tesla")[name]
    assert float((found - exact).norm() / exact.norm()) > 0.01


# --- what may receive gradients ---------------------------------------------------------------------------------------


def small(steps=3):
    """One linear layer on images that are leaves."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=draws, dtype=torch.float64)
    w = torch.randn(3, 4, generator=draws, dtype=torch.float64)
    lrs = torch.full((steps,), 0.3, dtype=torch.float64)
    return x, w, lrs, torch.arange(6) % 3


@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_any_part_may_be_constant(mode, wanted):
    def run(chosen):
        x, w, lrs, y = small()
        tensors = [x, w, lrs]
        for number in wanted:
            tensors[number].requires_grad_()
        inputs = [x] if x.requires_grad else []
        final = chosen(lambda p, s: F.cross_entropy(x @ p["w"].T, y), {"w": w}, lrs, inputs)
        return torch.autograd.grad(final["w"].square().sum(), [tensors[number] for number in wanted])

    torch.testing.assert_close(run(lambda *args: unroll(*args, mode=mode)), run(plain), rtol=1e-12, atol=1e-14)


def test_engine_like_backward_fills_only_the_leaves_asked_for():
    x, w, lrs, y = small()
    x.requires_grad_(), w.requires_grad_(), lrs.requires_grad_()
    final = unroll(lambda p, s: F.cross_entropy(x @ p["w"].T, y), {"w": w}, lrs, [x])
    torch.autograd.backward(final["w"].square().sum(), inputs=[x])
    assert x.grad is not None
    assert w.grad is None
    assert lrs.grad is None


def test_steps_that_use_some_inputs_and_weights_only():
    x, w, lrs, y = small()
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def loss(p, s):
        return F.cross_entropy((x, z)[s % 2] @ p[("a", "b")[s % 2]].T, y)

    def run(chosen):
        final = chosen(loss, {"a": w, "b": 2 * w}, lrs, [x, z, unused])
        return torch.autograd.grad(sum(p.square().sum() for p in final.values()), [x, z, unused], allow_unused=True)

    found, expected = run(unroll), run(plain)
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-12, atol=1e-14)
    assert found[2] is None


def test_an_input_named_twice_counts_once():
    x, w, lrs, y = small()
    x.requires_grad_()

    def gradient(inputs):
        final = unroll(lambda p, s: F.cross_entropy(x @ p["w"].T, y), {"w": w}, lrs, inputs)
        return torch.autograd.grad(final["w"].square().sum(), x)[0]

    once = gradient([x])
    assert once.abs().max() > 1e-3
    torch.testing.assert_close(gradient([x, x]), once)


def test_views_of_one_tensor_are_separate_inputs():
    x, w, lrs, y = small()
    x.requires_grad_()

    def run(chosen):
        first, second = (2 * x).unbind(0)[:2]

        def loss(p, s):
            return F.cross_entropy(torch.stack([first, second]) @ p["w"].T, y[:2])

        return torch.autograd.grad(chosen(loss, {"w": w}, lrs, [first, second])["w"].square().sum(), x)[0]

    assert (run(plain)[:2].abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(run(unroll), run(plain), rtol=1e-12, atol=1e-14)


def test_order_of_the_weights_is_that_of_the_start():
    problem = Problem(1)
    images = torch.zeros(6, 2, 4, 4, dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.long)
    final = unroll(problem.loss(images, labels), problem.start, torch.ones(1, dtype=torch.float64), [])
    assert list(final) == list(problem.start)
    assert not any(p.requires_grad for p in final.values())


@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint", "tesla"])
def test_switched_off_gradients_leave_no_graph(mode):
    problem = Problem(3)
    with torch.no_grad():
        value = problem.outer(mode=mode, momentum=0.5)
    assert not value.requires_grad
    torch.testing.assert_close(value, problem.outer(mode=mode, momentum=0.5).detach())


def test_backward_twice_needs_the_graph_to_be_retained():
    problem = Problem(2)
    value = problem.outer()
    leaves = list(problem.leaves.values())
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, leaves), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, leaves)


def test_float32_weights_may_have_float64_step_sizes():
    x, w, lrs, y = small()
    x, w = x.float().requires_grad_(), w.float()
    lrs.requires_grad_()
    final = unroll(lambda p, s: F.cross_entropy(x @ p["w"].T, y), {"w": w}, lrs, [x], momentum=0.5)
    assert final["w"].dtype == torch.float32
    gradient = torch.autograd.grad(final["w"].sum(), [x, lrs])
    assert [g.dtype for g in gradient] == [torch.float32, torch.float64]


# --- what is kept -----------------------------------------------------------------------------------------------------


class Packed:
    """A tensor that autograd holds."""

    def __init__(self, tensor):
        self.tensor = tensor


@contextmanager
def saved_bytes():
    """Bytes that autograd holds for the way back, each storage counted once: `peak` meanwhile, `now` at a moment."""
    held = Counter()
    count = SimpleNamespace(peak=0, now=0)

    def drop(key, size):
        held[key] -= 1
        count.now -= size if not held[key] else 0

    def pack(tensor):
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        count.now += size if not held[key] else 0
        held[key] += 1
        count.peak = max(count.peak, count.now)
        item = Packed(tensor)
        weakref.finalize(item, drop, key, size)
        return item

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda item: item.tensor):
        yield count


def saved_by(mode, steps, lrs_learned=True, **options):
    """Bytes that wait for the way back after the unroll, and the peaks of the unroll and of the way back."""
    problem = Problem(steps)
    images = torch.einsum("nk,kchw->nchw", problem.leaves["addresses"], problem.bases)
    labels = problem.leaves["labels"].softmax(1)
    lrs = problem.leaves["lrs"] if lrs_learned else problem.leaves["lrs"].detach()
    with saved_bytes() as count:
        final = unroll(problem.loss(images, labels), problem.start, lrs, [images, labels], mode=mode, **options)
        waiting, forward, count.peak = count.now, count.peak, 0
        torch.autograd.grad(problem.distance(final), problem.leaves["addresses"], retain_graph=True)
    return SimpleNamespace(waiting=waiting, forward=forward, backward=count.peak)


WEIGHTS = sum(p.numel() * p.element_size() for p in Problem(1).start.values())


@pytest.mark.parametrize("mode", ["adjoint", "tesla"])
def test_memory_grows_by_the_weights_of_each_step_only(mode):
    one, many = saved_by(mode, 1), saved_by(mode, 21)
    lrs = 20 * 8
    assert many.waiting - one.waiting == 20 * WEIGHTS + lrs
    for part in ("forward", "backward"):
        assert getattr(many, part) - getattr(one, part) < 22 * WEIGHTS


def test_memory_of_ordinary_autograd_grows_by_activations():
    # What the test above would see if the adjoint kept its graphs.
    assert saved_by("full", 21).waiting - saved_by("full", 1).waiting > 60 * WEIGHTS


def test_checkpoint_keeps_weights_too():
    assert saved_by("checkpoint", 21).waiting < 25 * WEIGHTS


@pytest.mark.parametrize(("keep", "kept"), [(1, 21), (5, 5), (21, 1), (100, 1)])
def test_memory_of_every_kth_step(keep, kept):
    extra = saved_by("adjoint", 21, keep=keep).waiting - saved_by("adjoint", 1).waiting
    assert extra == (kept - 1) * WEIGHTS + 20 * 8


@pytest.mark.parametrize(("options", "sets"), [({}, 41), ({"lrs_learned": False}, 21), ({"keep": 5}, 9)])
def test_velocities_are_kept_only_where_they_are_needed(options, sets):
    extra = saved_by("adjoint", 21, momentum=0.9, **options).waiting - saved_by("adjoint", 1, momentum=0.9).waiting
    assert extra == (sets - 1) * WEIGHTS + 20 * 8


# --- networks with state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint"])
def test_running_statistics_do_not_decide_anything(mode):
    problem = Problem(3, norm="batch")
    expected = problem.gradients(plain, momentum=0.9)
    assert error(problem.gradients(mode=mode, momentum=0.9), expected) < 1e-10


@pytest.mark.parametrize("mode", ["adjoint", "full", "checkpoint", "tesla"])
def test_stateless_network_leaves_running_statistics_alone(mode):
    problem = Problem(3, norm="batch")
    before = {k: b.clone() for k, b in problem.net.buffers.items()}
    problem.gradients(mode=mode)
    assert any(not torch.equal(b, before[k]) for k, b in problem.net.buffers.items())

    problem = Problem(3, norm="batch")
    expected = problem.gradients(plain)
    problem.net = Problem(3, norm="batch").net
    pure = stateless(problem.net)
    problem.net.__class__ = type("Pure", (NetworkState,), {"__call__": lambda self, x, weights: pure(x, weights)})
    found = problem.gradients(mode=mode)
    assert all(torch.equal(b, before[k]) for k, b in problem.net.buffers.items())
    assert mode == "tesla" or error(found, expected) < 1e-10


class Dropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier, self.drop = torch.nn.Linear(4, 3).double(), torch.nn.Dropout()

    def forward(self, x, embed=False):
        return self.classifier(self.drop(x))


def test_stateless_network_has_no_dropout():
    x, _, lrs, y = small()
    x.requires_grad_()
    net = NetworkState(Dropped())
    pure, start = stateless(net), {name: p.detach() for name, p in net.params.items()}

    def gradient(logits, mode):
        final = unroll(lambda w, s: F.cross_entropy(logits(x, w), y), start, lrs, [x], mode=mode)
        return torch.autograd.grad(final["classifier.weight"].square().sum(), x)[0]

    expected = gradient(lambda x, w: x @ w["classifier.weight"].T + w["classifier.bias"], "full")
    for mode in ("adjoint", "full", "checkpoint"):
        torch.testing.assert_close(gradient(pure, mode), expected)
    assert net.module.drop.training
    net.eval()
    pure(x, start)
    assert not net.module.drop.training


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("mode", ["adjoint", "checkpoint", "tesla"])
def test_a_loss_that_draws_anew_is_refused(mode, keep):
    x, w, lrs, y = small()
    x.requires_grad_()
    draws = torch.Generator().manual_seed(0)

    def loss(p, s):
        return F.cross_entropy((x + torch.rand(6, 4, generator=draws, dtype=x.dtype)) @ p["w"].T, y)

    def gradient(mode):
        final = unroll(loss, {"w": w}, lrs, [x], mode=mode, keep=keep)["w"]
        return torch.autograd.grad(final.square().sum(), x)

    with pytest.raises(UsageError, match=r"loss of step 0 was [0-9.]+ and, computed again, [0-9.]+; it must be the"):
        gradient(mode)
    gradient("full")  # which computes nothing twice


def test_rounding_is_no_new_draw():
    x, w, lrs, y = small()
    x.requires_grad_()
    noise = iter([0.0, 1e-5, 0.0, 0.0, 0.0, 0.0, 0.0])

    def loss(p, s):
        return F.cross_entropy(x @ p["w"].T, y) * (1 + next(noise))

    final = unroll(loss, {"w": w}, lrs[:1], [x])["w"]
    torch.autograd.grad(final.square().sum(), x)


def test_second_derivatives_need_another_mode():
    x, w, lrs, y = small()
    x.requires_grad_()

    def second(mode):
        final = unroll(lambda p, s: F.cross_entropy(x @ p["w"].T, y), {"w": w}, lrs, [x], mode=mode)
        (first,) = torch.autograd.grad(final["w"].square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with pytest.raises(UsageError, match="mode='full'"):
        second("adjoint")
    torch.testing.assert_close(second("checkpoint"), second("full"))


def test_a_tensor_that_would_receive_no_gradient_is_refused():
    x, w, lrs, y = small()
    x.requires_grad_()
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    images = 2 * x

    def loss(p, s):
        return F.cross_entropy((images * scale) @ p["w"].T, y)

    with pytest.raises(UsageError, match=r"shape \(4,\) that requires gradients"):
        unroll(loss, {"w": w}, lrs, [images])
    # The images decoded, and the leaf behind them named: nothing would reach it.
    with pytest.raises(UsageError, match=r"shape \(6, 4\)|computed from another"):
        unroll(loss, {"w": w}, lrs, [scale])
    unroll(loss, {"w": w}, lrs, [images, scale])


def test_an_input_computed_from_another_is_refused():
    x, w, lrs, y = small()
    x.requires_grad_()
    images = 2 * x
    with pytest.raises(UsageError, match="input 1 is computed from another"):
        unroll(lambda p, s: F.cross_entropy(images @ p["w"].T, y), {"w": w}, lrs, [x, images])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "exact"}, "expected the mode adjoint, full"),
        ({"keep": 0}, "from 1, or 'cpu', got 0"),
        ({"keep": "gpu"}, "got 'gpu'"),
        ({"keep": 1.5}, "got 1.5"),
        ({"lrs": torch.tensor(0.1)}, r"got shape \(\)"),
        ({"lrs": torch.ones(0)}, r"got shape \(0,\)"),
        ({"start": {}}, "weights to start from"),
        ({"momentum": -0.1}, "momentum from 0"),
        ({"momentum": float("nan")}, "momentum from 0"),
        ({"loss": lambda p, s: p["w"].sum(1)}, r"step 0: expected a scalar .* \(3,\)"),
        ({"loss": lambda p, s: torch.ones(())}, "without a gradient"),
        ({"loss": lambda p, s: 1.0}, "expected a scalar .* got a float"),
        ({"lrs": [0.1, 0.1]}, "as a tensor, .* got a list"),
        ({"inputs": torch.ones(2, 2)}, "expected inputs to be a list .* got a tensor; write"),
        ({"inputs": {"x": torch.ones(2)}}, "expected inputs to be a list .* got a str among them"),
        ({"start": {"w": torch.ones(2), "seen": torch.tensor(1)}}, "weights alone .* 'seen' of torch.int64"),
    ],
)
def test_arguments_that_make_no_sense(change, message):
    _, w, lrs, _ = small()
    given = {"loss": lambda p, s: p["w"].sum(), "start": {"w": w}, "lrs": lrs, "inputs": []} | change
    with pytest.raises(UsageError, match=message):
        unroll(**given)


def test_example_of_the_documentation():
    page = (Path(__file__).parents[2] / "docs/unroll.md").read_text(encoding="utf-8")
    names = {"__name__": "example"}
    exec(compile(re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1], "unroll.md", "exec"), names)
    ctx = fake_context()
    ctx.begin(0)
    matcher = names["Foresight"]()
    engine = Engine(ctx, matcher, lr=0.1, momentum=0.0)
    before = [p.detach().clone() for p in (*engine.watch, matcher.sizes.raw)]
    engine.iterate(0)
    assert all(not torch.equal(a, b) for a, b in zip(before, (*engine.watch, matcher.sizes.raw), strict=True))


# --- learned step sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["log", "softplus"])
def test_step_sizes_start_where_they_are_told(form):
    sizes = StepSizes([0.01, 0.5, 3.0], form)
    assert sizes.raw.is_leaf
    assert sizes.raw.requires_grad
    torch.testing.assert_close(sizes(), torch.tensor([0.01, 0.5, 3.0]))


@given(st.floats(-1e4, 1e3), st.sampled_from(["log", "softplus"]))
def test_step_sizes_are_positive_whatever_the_update(update, form):
    sizes = StepSizes([0.02], form)
    with torch.no_grad():
        sizes.raw += update
    assert sizes().min().item() > 0


def test_raw_numbers_are_logarithms_or_before_softplus():
    assert StepSizes([0.02]).raw.item() == pytest.approx(math.log(0.02))
    assert F.softplus(StepSizes([0.02], "softplus").raw).item() == pytest.approx(0.02)


@pytest.mark.parametrize(("start", "lr"), [(0.01, 1e-5), (0.5, 1e-3)])
def test_first_update_is_that_of_sgd_on_the_step_size(start, lr):
    sizes = StepSizes([start])
    group = sizes.group("step", lr, momentum=0.5)
    assert (group.name, group.momentum) == ("step", 0.5)
    assert group.params[0] is sizes.raw
    (3 * sizes()).sum().backward()
    torch.optim.SGD(group.params, lr=group.lr, momentum=group.momentum).step()
    assert sizes().item() - start == pytest.approx(-3 * lr, rel=5e-3)


def test_softplus_group_has_the_learning_rate_it_is_given():
    group = StepSizes([0.02, 0.02], "softplus").group("lrs", 0.01, betas=(0.5, 0.999))
    assert (group.lr, group.betas) == (0.01, (0.5, 0.999))


@pytest.mark.parametrize("start", [[], [0.0], [-1.0], [0.1, float("inf")], [float("nan")]])
def test_step_sizes_must_be_positive(start):
    with pytest.raises(UsageError, match="positive"):
        StepSizes(start)


def test_unknown_form():
    with pytest.raises(UsageError, match="log or softplus"):
        StepSizes([0.1], "exp")
