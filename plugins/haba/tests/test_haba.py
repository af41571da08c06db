"""The parameterization at work: cost, views, epochs, starts, files, stacks, the adversary, and the idea."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

import dcf
from dcf.build import create, create_stack
from dcf.engine import Engine
from dcf.files import read_header
from dcf.pixels import Pixels
from dcf.recipes import load_recipe
from dcf.seeding import generator
from dcf.selector import Random
from dcf.testing import PullToMean, TinyFactory, fake_context, fake_data, fake_set, fake_spec
from dcf.testing.fakes import filled
from dcf_haba.adversary import Adversary
from dcf_haba.hallucinators import Styles, hallucinate
from dcf_haba.losses import adversarial, adversary_loss
from dcf_haba.options import HabaConfig
from dcf_haba.param import Haba


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def started(data=None, items=2, inner=None, **options):
    return filled(Haba(HabaConfig(**options), inner), data or fake_data(), items)


def every_view(param):
    return torch.arange(len(param.view_class))


# --- options and cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"styles": 1}, "at least 2 styles, which the objective compares, or objective=none"),
        ({"middle": 0}, "above 0"),
        ({"batch": 0}, "above 0"),
        ({"club": -1}, "greater than or equal to 0"),
    ],
)
def test_options_have_bounds(given, text):
    with pytest.raises(ValidationError, match=text):
        HabaConfig(**given)


def test_a_kernel_larger_than_an_image_is_refused():
    with pytest.raises(dcf.UsageError, match=r"kernel=9 does not fit into images of 8 x 12; expected at most 8"):
        Haba(HabaConfig(kernel=9)).plan(fake_spec(2, (1, 8, 12)), 10**6)


@pytest.mark.parametrize(
    ("classes", "shape", "equivalent"),
    [(10, (3, 32, 32), 1.90625), (100, (3, 32, 32), 1.090625), (10, (1, 28, 28), 1.875)],
)
def test_one_basis_a_class_costs_more_than_one_image(classes, shape, equivalent):
    param, spec = Haba(), fake_spec(classes, shape)
    param.allocate(spec, torch.arange(classes))
    assert param.storage().equivalent_images / classes == equivalent
    plain = classes * shape[0] * shape[1] * shape[2]
    with pytest.raises(dcf.BudgetError, match=f"smallest that works is {int(equivalent * plain)} floats"):
        param.plan(spec, plain)
    assert param.plan(spec, 2 * plain) == 1
    assert param.plan(spec, 11 * plain) == 10


def test_three_bases_of_one_channel_cost_as_much_as_one_of_three():
    spec, floats = fake_spec(10, (3, 32, 32)), 30_720 + 27_840
    assert Haba().plan(spec, floats) == 1
    assert Haba(HabaConfig(basis="single")).plan(spec, floats) == 3


# --- views and epochs ----------------------------------------------------------------------------------------------


def test_a_view_is_a_basis_as_a_hallucinator_shows_it():
    param = started(styles=3)
    assert param.view_class.tolist() == [0] * 6 + [1] * 6
    assert param.storage().views == 12
    images = param.images(every_view(param))
    for view in range(12):
        style = Styles(*(t[view % 3 : view % 3 + 1] for t in param.styles()))
        assert torch.allclose(
            images[view : view + 1], hallucinate(param.bases[view // 3 : view // 3 + 1], style), atol=1e-6
        )


def test_an_epoch_shows_each_basis_once_in_a_version_of_its_own():
    param = started(items=20, styles=3)
    order = param.epoch(gen())
    assert param.epoch_length == len(order) == 40
    assert sorted((order // 3).tolist()) == list(range(40))
    assert torch.bincount(order % 3, minlength=3).min() > 5


@pytest.mark.parametrize("batch", [1, 7, 40, 64])
def test_the_images_of_an_inner_step_have_one_hallucinator(batch):
    param = started(items=20, styles=3)
    seen = set()
    for seed in range(20):
        order = param.inner_epoch(gen(seed), batch)
        assert sorted((order // 3).tolist()) == list(range(40))
        drawn = [set((part % 3).tolist()) for part in torch.split(order, batch)]
        assert all(len(styles) == 1 for styles in drawn)
        seen |= set.union(*drawn)
    assert seen == {0, 1, 2}


# --- starts, files, stacks -----------------------------------------------------------------------------------------


def test_bases_start_from_real_images_and_hallucinators_from_the_generator():
    data = fake_data()
    params = [started(data) for _ in range(3)]
    images = Random().images(data, params[0].view_class, generator(0, "x"))
    for param, seed in zip(params, (1, 1, 2), strict=True):
        param.absorb(images, gen(seed))
        assert torch.equal(param.bases, images[::5])
    assert torch.equal(params[0].encoder_weight, params[1].encoder_weight)
    assert not torch.equal(params[0].encoder_weight, params[2].encoder_weight)
    single = started(data, basis="single")
    single.absorb(images, gen())
    assert torch.allclose(single.bases, images[::5].mean(1, keepdim=True))


def test_identity_starts_near_the_images_and_layers_do_not():
    data = fake_data(shape=(3, 16, 16))
    near, far = (started(data, init=init) for init in ("identity", "layers"))
    for param, limit in ((near, 0.2), (far, None)):
        shown, basis = param.images(every_view(param)).detach(), param.bases.detach().repeat_interleave(5, 0)
        off = float((shown - basis)[..., 1:-1, 1:-1].square().mean() / basis.square().mean())
        assert off < limit if limit else off > 0.5


def test_file_holds_bases_and_hallucinators_once(tmp_path):
    data, path = fake_data(), tmp_path / "set.safetensors"
    param = started(data)
    fake_set(param, data, "haba").save(path)
    shapes = {name: entry["shape"] for name, entry in read_header(path).tensors.items()}
    assert shapes == {
        "bases": [4, 3, 8, 8], "encoder_weight": [5, 3, 3, 3, 3], "encoder_bias": [5, 3], "scale": [5, 3, 6, 6],
        "shift": [5, 3, 6, 6], "decoder_weight": [5, 3, 3, 3, 3], "decoder_bias": [5, 3], "labels": [4],
    }  # fmt: skip
    loaded = dcf.load(path)
    assert loaded.targets == [0] * 10 + [1] * 10
    assert torch.equal(loaded.tensors().x, param.images(every_view(param)).detach())
    assert torch.equal(loaded.param.epoch(gen()), param.epoch(gen()))


@pytest.mark.parametrize(
    "spec", ["lowrank:r=1+haba", "haba:styles=2+multiformation:factor=2", "haba:styles=2+soft-labels"]
)
def test_stacked_file_round_trip(tmp_path, spec):
    for package in ("dcf_lowrank", "dcf_idc", "dcf_labels"):
        pytest.importorskip(package)
    data, path = fake_data(), tmp_path / "set.safetensors"
    param = filled(create_stack("param", spec)[-1], data, 2)
    fake_set(param, data, spec).save(path)
    loaded = dcf.load(path)
    assert torch.equal(loaded.tensors().x, param.images(every_view(param)).detach())
    assert len(param.aux()) == 1
    assert Engine(fake_context(param, data), PullToMean(), 0.1, 0.5).objectives


def test_labels_to_the_right_do_not_change_what_an_epoch_shows():
    pytest.importorskip("dcf_labels")
    param = filled(create_stack("param", "haba:styles=3+soft-labels")[-1], fake_data(), 4)
    assert param.epoch_length == 8
    assert len(set((param.inner_epoch(gen(), 8) % 3).tolist())) == 1


def test_the_left_one_stores_the_bases():
    data = fake_data()
    param, plain = started(data, inner=Pixels()), started(data)
    images = Random().images(data, param.view_class, generator(0, "x"))
    for one in (param, plain):
        one.absorb(images, gen())
    assert torch.equal(param.images(every_view(param)), plain.images(every_view(plain)))
    assert param.storage().floats == plain.storage().floats
    assert [(g.name, len(g.params)) for g in param.param_groups()] == [("bases", 1), ("hallucinators", 6)]
    assert [(g.name, len(g.params)) for g in plain.param_groups()] == [("bases", 1), ("hallucinators", 6)]

    class Learning(Pixels):
        drives = frozenset({"images", "labels"})

    with pytest.raises(dcf.UsageError, match="put it to the right of haba"):
        Haba(inner=Learning())


# --- the adversary -------------------------------------------------------------------------------------------------


def test_objective_is_the_weighted_similarity_of_two_versions_of_each_basis():
    data = fake_data()
    param = started(data, styles=3, club=0.4)
    ctx, (objective,) = fake_context(param, data), param.aux()
    ctx.begin(3)
    pair, labels = objective.pairs(ctx, "set")
    value = objective.loss(ctx)
    with torch.no_grad():
        wanted = 0.4 * adversarial(objective.net.embed(pair.x))
    assert float(value.detach()) == pytest.approx(float(wanted), rel=1e-5)
    images = param.images(every_view(param))
    views = [int((x == images).flatten(1).all(1).nonzero()) for x in pair.x]
    first, second = views[:4], views[4:]
    assert [v // 3 for v in first] == [v // 3 for v in second]
    assert sorted(v // 3 for v in first) == [0, 1, 2, 3]
    assert len({v % 3 for v in first}) == len({v % 3 for v in second}) == 1
    assert first[0] % 3 != second[0] % 3
    assert pair.y.tolist() == labels.tolist() * 2 == [v // 6 for v in views]
    gradients = torch.autograd.grad(value, [p for g in param.param_groups() for p in g.params])
    assert all(float(g.abs().sum()) > 0 for g in gradients)


def test_adversary_takes_a_plain_step_of_sgd_on_a_draw_of_its_own():
    data = fake_data()
    param = started(data, lr_adversary=0.1, momentum_adversary=0.5, contrast=0.3, likelihood=0.2, cls=0.8)
    ctx, (objective,) = fake_context(param, data), param.aux()
    ctx.begin(0)
    objective.loss(ctx)
    net = objective.net
    weights = {k: v.detach().clone().requires_grad_() for k, v in net.params.items()}
    mover = torch.optim.SGD(weights.values(), lr=0.1, momentum=0.5)
    before = {k: v.clone() for k, v in param.state_dict().items()}
    for update in range(3):
        ctx.update = update
        with torch.no_grad():
            pair, labels = objective.pairs(ctx, "adversary")
        assert not torch.equal(pair.x, objective.pairs(ctx, "set")[0].x)
        loss = adversary_loss(
            net(pair.x, weights, embed=True), net(pair.x, weights), labels,
            cls=0.8, likely=0.2, contrast=0.3, temperature=0.07,
        )  # fmt: skip
        mover.zero_grad()
        loss.backward()
        mover.step()
        objective.after_update(ctx)
        assert all(torch.allclose(net.params[k], w, atol=1e-6) for k, w in weights.items())
    assert all(torch.equal(before[k], v) for k, v in param.state_dict().items())


def test_options_choose_how_often_and_how_much_the_objective_sees():
    data = fake_data()
    param = started(data, items=5, batch=3, every="outer")
    (objective,) = param.aux()
    assert objective.every == "outer"
    ctx = fake_context(param, data)
    assert len(objective.pairs(ctx, "set")[0].x) == 6
    assert started(data, objective="none").aux() == []


@pytest.mark.parametrize("network", ["tiny", "convnet:width=4,depth=1,norm=batch"])
def test_a_run_resumed_from_its_state_equals_one_that_went_on(network):
    data = fake_data()
    factory = TinyFactory() if network == "tiny" else create("network", network)

    def engine():
        ctx = fake_context(started(data), data, networks=factory, augmenter=create("augmenter", "none"))
        return Engine(ctx, PullToMean(), 0.1, 0.9)

    whole, first, second = engine(), engine(), engine()
    whole.run(0, 5)
    first.run(0, 2)
    state = {k: v.clone() for k, v in first.state_dict().items()}
    assert any(k.startswith("aux.0.velocity.") for k in state)
    second.load_state_dict(state)
    # What was loaded and not used yet is kept, too.
    assert {k for k in second.state_dict() if k.startswith("aux.")} == {k for k in state if k.startswith("aux.")}
    second.run(2, 5)
    ours, theirs = whole.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_an_adversary_that_diverges_ends_the_run_though_its_weights_are_finite():
    data = fake_data()
    engine = Engine(fake_context(started(data, lr_adversary=1e6), data), PullToMean(), 0.01, 0.5)
    with pytest.raises(dcf.NonFiniteError, match=r"Adversary trains beside the set diverged.*\n.*lr_adversary"):
        engine.run(0, 5)
    assert all(bool(t.isfinite().all()) for t in engine.objectives[0].state_dict().values())


def test_the_adversary_sees_bases_of_the_size_that_another_asks_for():
    pytest.importorskip("dcf_memory")
    data = fake_data()
    param = filled(create_stack("param", "haba+memory:bases=2")[-1], data, 2)
    Engine(fake_context(param, data), PullToMean(), 0.01, 0.5).run(0, 2)
    assert bool(torch.isfinite(param.images(every_view(param))).all())


# --- the idea ------------------------------------------------------------------------------------------------------


def test_the_objective_keeps_the_versions_of_a_basis_apart():
    data = fake_data()

    def spread(club):
        param = started(data, items=4, club=club, init="identity", lr_adversary=0.05)
        Engine(fake_context(param, data), PullToMean(), 0.05, 0.5).run(0, 40)
        shown = param.images(every_view(param)).detach().view(8, 5, -1)
        return float((shown - shown.mean(1, keepdim=True)).square().mean())

    assert spread(10.0) > 5 * spread(0.0)


def test_all_classes_share_the_hallucinators():
    param = started()
    before = param.images(every_view(param)).detach()
    with torch.no_grad():
        param.shift[2] += 1.0
    moved = (param.images(every_view(param)) - before).detach().flatten(1).abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [2, 7, 12, 17]  # one version of every basis of both classes


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "left"), [("haba", ""), ("lohaba", "lowrank:r=2+")])
def test_recipes_have_the_published_settings(recipe, left):
    for package in ("dcf_mtt", "dcf_lowrank", "dcf_dsa"):
        pytest.importorskip(package)
    run = load_recipe(recipe).settings("cifar10")
    assert (run["lr"], run["momentum"], run["iterations"], run["param"]) == (100.0, 0.95, 15000, f"{left}haba")
    config = create("matcher", run["matcher"]).config
    assert (config.syn_steps, config.expert_epochs, config.max_start_epoch) == (50, 2, 2)
    assert (config.lr_teacher, config.lr_lr, config.lr_least) == (0.01, 1e-7, 0.001)
    assert run["optim"]["step_size"]["momentum"] == 0.9
    options = HabaConfig()
    assert (options.styles, options.kernel, options.club, options.cls) == (5, 3, 0.1, 1.0)
    assert (options.likelihood, options.contrast, options.temperature) == (0.1, 0.1, 0.07)
    assert (options.lr_adversary, options.momentum_adversary) == (0.001, 0.9)


def test_objective_belongs_to_the_set_and_is_no_part_of_it():
    param = started()
    assert isinstance(param.aux()[0], Adversary)
    assert not any("net" in name for name in param.state_dict())
