"""The parameterization at work: what is stored and learned, budgets, starts, files, stacks, and warnings."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F

import dcf
from dcf.budget import Budget
from dcf.build import create_stack
from dcf.engine import Engine
from dcf.pixels import Pixels
from dcf.planning import plan_items
from dcf.testing import PullToMean, fake_context, fake_data, fake_set, fake_spec
from dcf.testing.fakes import filled
from dcf.training import cross_entropy
from dcf_labels.param import SoftLabels
from dcf_labels.plan import least_floats, most_items


class Teach(dcf.Matcher):
    """Pulls every label to the next class, and images to zero."""

    reads = frozenset({"images", "labels"})

    def outer(self, ctx, it):
        index = torch.arange(len(ctx.param.view_class))
        batch = ctx.param.batch(index)
        wanted = F.one_hot((ctx.param.view_class + 1) % ctx.spec.num_classes, ctx.spec.num_classes).float()
        yield dcf.Step((batch.y - wanted).square().sum() + batch.x.square().sum())


def soft(inner=None, **options):
    return SoftLabels(SoftLabels.Config(**options), inner)


def state_of(param):
    return {name: tensor.clone() for name, tensor in param.state_dict().items()}


# --- what is learned --------------------------------------------------------------------------------------------------


def test_it_learns_labels_besides_what_the_left_one_learns():
    assert soft().drives == {"images", "labels"}
    assert soft(learn_images=False).drives == {"labels"}
    assert create_stack("param", "lowrank:r=1+soft-labels")[-1].drives == {"images", "labels"}


@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_labels_move_by_their_own_step_size_and_images_by_that_of_the_run(form):
    data = fake_data(classes=3)
    param = filled(soft(Pixels(), form=form, lr=0.05), data)
    before = state_of(param)
    engine = Engine(fake_context(param, data), Teach(), lr=1e-6, momentum=0.0)
    engine.run(0, 1)
    moved = {name: float((tensor - before[name]).abs().max()) for name, tensor in param.state_dict().items()}
    assert moved["inner.images"] < 1e-4
    assert 0.01 < moved["soft_labels"] < 0.2


def test_fixed_images_stay_as_they_start():
    data = fake_data()
    param = filled(soft(learn_images=False, lr=0.05), data)
    before = state_of(param)
    engine = Engine(fake_context(param, data), Teach(), lr=0.1, momentum=0.0)
    engine.run(0, 3)
    assert torch.equal(before["plain.images"], param.state_dict()["plain.images"])
    assert not torch.equal(before["soft_labels"], param.state_dict()["soft_labels"])
    assert [group.name for group in engine.groups] == ["labels"]
    assert not param.images(torch.tensor([0])).requires_grad


def test_labels_are_learned_until_they_name_another_class():
    data = fake_data(classes=3)
    param = filled(soft(lr=0.05), data)
    Engine(fake_context(param, data), Teach(), lr=0.1, momentum=0.0).run(0, 60)
    labels = param.labels(torch.arange(6)).detach()
    assert torch.equal(labels.argmax(1), (param.view_class + 1) % 3)
    assert torch.allclose(labels.sum(1), torch.ones(6))


def test_optimiser_of_the_labels_is_set_apart():
    param = filled(soft(optimizer="sgd", momentum=0.5, lr=3.0), fake_data())
    (group,) = [group for group in param.param_groups() if group.name == "labels"]
    assert (group.optimizer, group.momentum, group.lr) == ("sgd", 0.5, 3.0)


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_labels_count_against_the_budget_exactly():
    spec = fake_spec(classes=10, shape=(1, 8, 8))
    param = soft(Pixels())
    assert param.cost(spec, 3) == 10 * 3 * (64 + 10)
    assert param.plan(spec, 740 * 3 + 739) == 3
    items = plan_items(soft(Pixels()), spec, Budget.of(10, None, 64, 10, "fp32"))
    assert items == 8  # 10 plain images hold 640 floats a class, 8 with their labels 592


@pytest.mark.parametrize("left", ["pixels", "lowrank:r=1", "lowrank:r=1,rule=reference", "memory:bases=4"])
def test_every_left_one_is_planned_with_its_labels(left):
    name = left.partition(":")[0]
    if name not in ("pixels", "lowrank"):
        pytest.importorskip(f"dcf_{name}")
    spec = fake_spec(classes=4, shape=(1, 6, 6))
    for floats in (160, 400, 1003):
        param = create_stack("param", f"{left}+soft-labels")[-1]
        items = param.plan(spec, floats)
        assert param.cost(spec, items) <= floats
        if "reference" not in left:
            assert param.cost(spec, items + 1) > floats
        room = floats - 4 * 4 * items
        assert param.below.plan(spec, room) >= items


def test_rule_of_the_left_one_holds_for_what_the_labels_leave():
    spec = fake_spec(classes=2, shape=(1, 6, 6))
    param = create_stack("param", "lowrank:r=1,rule=reference+soft-labels")[-1]
    # One plain image a class makes 3 of rank 1, whose labels cost 12 floats besides.
    assert param.plan(spec, 72 + 12) == 3
    assert param.plan(spec, 72 + 12 - 1) == 2
    with pytest.raises(dcf.BudgetError, match="the smallest that works is 76 floats"):
        param.plan(spec, 75)


def test_what_the_left_one_refuses_is_refused_with_its_reason():
    param = create_stack("param", "lowrank:r=9+soft-labels")[-1]
    with pytest.raises(dcf.BudgetError, match="the largest useful one is r=3"):
        param.plan(fake_spec(classes=2, shape=(1, 6, 6)), 10**6)


@pytest.mark.parametrize("ipc", [5, 7, 20])
def test_as_many_items_as_fit_where_further_ones_leave_each_with_fewer_labels(ipc):
    """With `decode=bound` a class has a largest number of images, so that labels grow with the items only at first."""
    pytest.importorskip("dcf_idc")
    spec = fake_spec(classes=10, shape=(1, 6, 6))
    param = create_stack("param", "multiformation:factor=3,decode=bound,bound=12+soft-labels")[-1]
    assert param.cost(spec, 5) < 5 * param.cost(spec, 1)
    floats = ipc * 10 * 36
    count = max(n for n in range(1, 2 * ipc) if param.cost(spec, n) <= floats)
    assert param.plan(spec, floats) == count


def test_smallest_budget_may_be_that_of_several_items():
    pytest.importorskip("dcf_idc")
    spec = fake_spec(classes=50, shape=(1, 6, 6))
    param = create_stack("param", "multiformation:factor=3,decode=bound,bound=10+soft-labels")[-1]
    least = min(param.cost(spec, n) for n in range(1, 6))
    assert least == param.cost(spec, 3) < param.cost(spec, 1)
    assert param.plan(spec, least) == 3
    with pytest.raises(dcf.BudgetError, match=f"the smallest that works is {least} floats"):
        param.plan(spec, least - 1)


def test_most_items_agrees_with_counting():
    for floats in range(0, 200, 7):
        for labels in (lambda n: 5 * n, lambda n: 5 * (4 * n if n < 4 else n), lambda n: 5 * max(n, min(3 * n, 12))):
            count = max(n for n in range(200) if n == 0 or 13 * n + labels(n) <= floats)
            assert most_items(lambda left: left // 13, labels, floats, 5) == count


def test_least_floats_finds_the_first_budget_that_holds_anything():
    assert least_floats(lambda floats: floats // 77, 3) == 77
    assert least_floats(lambda floats: floats // 77, 77) == 77
    assert least_floats(lambda floats: 0, 3) is None


def test_one_plain_image_a_class_is_too_little_so_that_is_not_the_default():
    assert soft(Pixels()).defaults["ipc"] == 2
    assert "ipc" not in create_stack("param", "lowrank:r=1+soft-labels")[-1].defaults
    assert create_stack("param", "lowrank:r=1+soft-labels")[-1].defaults["init"] == "random"


# --- starting values --------------------------------------------------------------------------------------------------


def test_labels_start_from_the_class_or_from_nothing():
    data, index = fake_data(classes=3), torch.arange(6)
    sharp, flat = filled(soft(), data), filled(soft(init="uniform"), data)
    assert torch.equal(sharp.labels(index).detach(), F.one_hot(sharp.view_class, 3).float())
    assert torch.allclose(flat.labels(index).detach(), torch.full((6, 3), 1 / 3))


@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_teacher_says_what_labels_start_from_and_is_kept(form, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path))
    caplog.set_level("INFO", "dcf_labels")
    data, reports = fake_data(classes=2, train=20), []
    found = []
    for _ in range(2):
        param = filled(soft(form=form, init="teacher", teacher_epochs=30), data)
        ctx = fake_context(param, data)
        ctx.on_report = lambda what, done, total, facts: reports.append(done)
        param.initialise(ctx)
        found.append(param.labels(torch.arange(4)).detach())
    assert torch.equal(*found)
    assert reports == list(range(1, 31))  # trained once
    told = [r.message for r in caplog.records if "trained on the real images for 30 epochs" in r.message]
    assert len(told) == 2
    assert told[0] == told[1]  # and it says each time how good it is
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert float(found[0].amax()) < 1
    assert torch.allclose(found[0].sum(1), torch.ones(4))
    assert not torch.allclose(found[0][0], found[0][1])  # of the same class, and told apart


@pytest.mark.parametrize("form", ["probabilities", "logits"])
def test_labels_of_others_are_taken_over(form):
    param = filled(soft(form=form), fake_data(classes=3))
    wanted = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    param.absorb_labels(wanted)
    assert torch.allclose(param.labels(torch.arange(6)).detach(), wanted, atol=1e-6)
    with pytest.raises(dcf.UsageError, match=r"expected labels of shape \(6, 3\)"):
        param.absorb_labels(wanted[:2])


def test_teacher_epochs_without_teacher_are_refused():
    with pytest.raises(ValueError, match="no effect with init=onehot"):
        SoftLabels.Config(teacher_epochs=3)


# --- matchers that cannot teach labels --------------------------------------------------------------------------------


@pytest.mark.parametrize(("matcher", "warned"), [(PullToMean, 1), (Teach, 0)])
def test_labels_that_nobody_teaches_stay_and_a_warning_says_so(matcher, warned, caplog):
    data = fake_data()
    param = filled(soft(), data)
    ctx = fake_context(param, data)
    engine = Engine(ctx, matcher(), lr=0.1, momentum=0.5)
    with caplog.at_level(logging.WARNING):
        param.initialise(ctx)
    assert len(caplog.records) == warned
    before = param.soft_labels.detach().clone()
    engine.run(0, 2)
    assert torch.equal(before, param.soft_labels.detach()) == bool(warned)
    assert ("teaches images only, so the labels stay as they start (init=onehot)" in caplog.text) == bool(warned)


@pytest.mark.parametrize(("init", "blank"), [("uniform", True), ("onehot", False)])
def test_labels_that_say_nothing_for_good_are_named(init, blank, caplog):
    param = filled(soft(init=init), fake_data())
    ctx = fake_context(param)
    Engine(ctx, PullToMean(), lr=0.1, momentum=0.5)
    param.initialise(ctx)
    assert ("from which no network learns; take init=onehot" in caplog.text) == blank


def test_matcher_of_images_and_labels_alone_learned_are_refused():
    param = filled(soft(learn_images=False), fake_data())
    with pytest.raises(dcf.UsageError, match="teaches images, but SoftLabels learns labels"):
        Engine(fake_context(param), PullToMean(), lr=0.1, momentum=0.5)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["fp32", "fp16", "uint8"])
@pytest.mark.parametrize("form", ["probabilities", "logits"])
@pytest.mark.parametrize("left", ["pixels", "lowrank:r=1"])
def test_labels_come_back_from_a_file_as_distributions(tmp_path, left, form, store):
    data = fake_data(classes=10, train=2)
    text = f"{left}+soft-labels:form={form}"
    param = filled(create_stack("param", text)[-1], data, items=1)
    wanted = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    param.absorb_labels(wanted)
    one = fake_set(param, data, text).stored_as(store)
    one.save(tmp_path / "set.safetensors")
    again = dcf.load(tmp_path / "set.safetensors")
    labels = again.tensors().y
    assert torch.equal(labels, one.tensors().y)
    assert torch.allclose(labels.sum(1), torch.ones(10), atol=1e-6)
    assert torch.allclose(labels, wanted, atol=1e-6 if store == "fp32" else 0.01)
    assert again[3][1].shape == (10,)
    assert again.targets == list(range(10))
    assert "soft_labels" in [tensor.name for tensor in again.storage().tensors]


def test_loss_takes_the_labels_and_their_gradient_is_minus_the_log_probabilities():
    param = filled(soft(), fake_data(classes=3))
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = cross_entropy(logits, param.labels(torch.arange(6)))
    (grad,) = torch.autograd.grad(loss, param.soft_labels)
    assert torch.allclose(grad, -logits.log_softmax(1) / 6, atol=1e-6)
