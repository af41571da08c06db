"""Parameterizations that are more than one tensor of images: stacks, shared tensors, learned labels; their files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import Field
from torch import nn

import dcf
import dcf.testing
from dcf.augmenter import ChainAugmenter, NoAugmentation
from dcf.auxiliary import AuxiliaryObjective
from dcf.build import create_stack, spec_text, stacked
from dcf.engine import Engine
from dcf.files import read_header
from dcf.matcher import Matcher
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.resolve import resolve
from dcf.run import prepare
from dcf.runconfig import RunConfig
from dcf.session import Session
from dcf.synthetic import load
from dcf.testing.fakes import fake_context, fake_data, fake_spec, filled
from dcf.types import ParamGroup, Step


class Tiles(Parameterization):
    """Cuts each canvas of the inner one into `factor` squared tiles, and enlarges them to images."""

    class Config(dcf.Config):
        factor: int = Field(2, ge=1, description="tiles along an axis")

    stackable = True

    @property
    def view_class(self):
        return self.inner.view_class.repeat_interleave(self.config.factor**2)

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.inner.allocate(spec, item_class)

    def images(self, index):
        f, (_, h, w) = self.config.factor, self.shape
        canvas, tile = self.inner.images(index // f**2), index % f**2
        rows = canvas.unflatten(2, (f, h // f))[torch.arange(len(index)), :, tile // f]
        parts = rows.unflatten(3, (f, w // f))[torch.arange(len(index)), :, :, tile % f]
        return nn.functional.interpolate(parts, size=(h, w), mode="nearest")

    def absorb(self, images, generator=None):
        f, (c, h, w) = self.config.factor, self.shape
        small = images[:, :, ::f, ::f].reshape(-1, f, f, c, h // f, w // f)
        self.inner.absorb(small.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, h, w), generator)


class SoftLabels(Parameterization):
    """Decodes as the inner one does, and learns the labels too."""

    drives = frozenset({"images", "labels"})
    stackable = True

    @property
    def view_class(self):
        return self.inner.view_class

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.inner.allocate(spec, item_class)
        self.soft_labels = nn.Parameter(torch.zeros(len(self.view_class), spec.num_classes))

    def images(self, index):
        return self.inner.images(index)

    def labels(self, index):
        return self.soft_labels[index]

    def absorb(self, images, generator=None):
        self.inner.absorb(images, generator)
        with torch.no_grad():
            self.soft_labels.copy_(nn.functional.one_hot(self.view_class, self.num_classes))

    def project_(self):
        super().project_()
        self.soft_labels.clamp_(min=0).div_(self.soft_labels.sum(1, keepdim=True))

    def param_groups(self):
        return [*self.inner.param_groups(), ParamGroup("labels", [self.soft_labels], lr=0.001)]


class SmallDecoder(AuxiliaryObjective):
    """Keeps the shared decoder small."""

    def __init__(self, param):
        self.param = param

    def loss(self, ctx):
        return self.param.mix.square().sum() + self.param.shift.square().sum()


class Hallucinated(Parameterization):
    """A base an item, and a decoder that all of them share and that starts at random."""

    def encode(self, images):
        return {"bases": images}

    def allocate(self, spec, item_class):
        super().allocate(spec, item_class)
        self.mix = nn.Parameter(torch.zeros(spec.channels, spec.channels))
        self.shift = nn.Parameter(torch.zeros(spec.channels, 1, 1))

    def decode(self, latents, size):
        return torch.einsum("dc,nchw->ndhw", self.mix, latents["bases"]) + self.shift

    def absorb(self, images, generator=None):
        super().absorb(images)
        generator = generator or torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in (self.mix, self.shift):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))

    def param_groups(self):
        decoder = ParamGroup("decoder", [self.mix, self.shift], lr=0.5)
        return [ParamGroup("bases", [self.latents()["bases"]]), decoder]

    def aux(self):
        return [SmallDecoder(self)]


class Teach(Matcher):
    """Teaches images and labels."""

    reads = frozenset({"images", "labels"})

    def outer(self, ctx, it):
        for chunk in ctx.chunks():
            labels = ctx.synthetic_labels(chunk.classes)
            yield Step(ctx.synthetic(chunk.classes).square().sum() - labels[..., 0].sum(), update=chunk.last)


@pytest.fixture
def installed():
    made = [
        dcf.Component("param", name, f"{__name__}:{cls.__name__}", "one of this file")
        for name, cls in (
            ("tiles", Tiles),
            ("soft", SoftLabels),
            ("hallucinated", Hallucinated),
            ("mixtures", Mixtures),
        )
    ]
    with dcf.testing.registry_with(*made, dcf.Component("matcher", "teach", f"{__name__}:Teach", "teaches both")):
        yield


STACKS = ["pixels+tiles:factor=2", "pixels+soft", "pixels+tiles:factor=2+soft", "hallucinated+tiles:factor=4"]


@pytest.mark.parametrize("spec", ["hallucinated", *STACKS])
def test_the_conformance_checks_hold_for_it(installed, spec):
    failed = [r for r in dcf.testing.run_checks("param", spec) if r.status not in ("ok", "skipped")]
    assert not failed


@pytest.mark.parametrize("spec", ["hallucinated", *STACKS])
@pytest.mark.parametrize("store", ["fp16", "uint8"])
def test_a_stack_is_rounded_whole_and_charged_for_all_of_it(installed, tmp_path, spec, store):
    param = filled(create_stack("param", spec)[-1], fake_data(), 2)
    fake = dcf.testing.fake_set(param, spec=spec)
    rounded = fake.stored_as(store)
    rounded.save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    assert torch.equal(again.tensors().x, rounded.tensors().x)
    assert torch.equal(again.tensors().y, rounded.tensors().y)
    assert rounded.storage().payload_bytes == read_header(tmp_path / "set.safetensors").nbytes
    assert rounded.storage().nbytes < fake.storage().nbytes
    names = {t.name.removesuffix(".scale").removesuffix(".zero") for t in rounded.storage().tensors}
    assert names == set(param.state_dict())


@pytest.mark.parametrize("spec", STACKS)
@pytest.mark.parametrize("items", [1, 2])
def test_a_stack_survives_its_file(installed, tmp_path, spec, items):
    made = create_stack("param", spec)
    param = filled(made[-1], fake_data(), items)
    dcf.testing.fake_set(param, spec=spec).save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    everything = torch.arange(len(param.view_class))
    assert torch.equal(again.tensors().x, param.images(everything))
    assert torch.equal(again.tensors().y, param.labels(everything))
    assert again.param.storage() == param.storage()
    assert stacked(param) == made
    assert [type(p) for p in stacked(again.param)] == [type(p) for p in made]


@pytest.mark.parametrize("spec", ["hallucinated", *STACKS])
def test_a_run_of_a_stack_learns_everything_that_is_stored(installed, spec):
    config = RunConfig(matcher="teach", param=spec, init="random", ipc=4, iterations=2, device="cpu", lr=0.01)
    session = Session(config.model_copy(update={"network": "mlp"}), fake_data())
    session.initialise()
    before = {k: v.clone() for k, v in session.param.state_dict().items()}
    session.engine.run(0, 2)
    assert all(not torch.equal(before[k], v) for k, v in session.param.state_dict().items())
    assert session.param.storage().floats <= 4 * 2 * 3 * 8 * 8


@pytest.mark.parametrize(
    ("spec", "shared", "item"),
    [
        ("pixels+tiles:factor=2", 0, 192),
        ("pixels+tiles:factor=2+soft", 0, 192 + 4 * 2),
        ("hallucinated+soft", 12, 192 + 2),
    ],
)
def test_budget_of_a_stack_counts_all_that_is_stored(installed, spec, shared, item):
    def plan(floats):
        return create_stack("param", spec)[-1].plan(fake_spec(), floats)

    least = shared + 2 * item
    assert create_stack("param", spec)[-1].cost(fake_spec(), 3) == shared + 6 * item
    assert [plan(least + extra) for extra in (0, 2 * item - 1, 2 * item, 9 * 2 * item)] == [1, 1, 2, 10]
    with pytest.raises(dcf.BudgetError, match=f"the smallest that works is {least} floats"):
        plan(least - 1)


def test_views_of_a_stack_are_decoded_from_what_is_stored(installed):
    canvas, param = Pixels(), None
    param = filled(Tiles(Tiles.Config(factor=2), inner=canvas), fake_data(), 1)
    assert param.view_class.tolist() == [0] * 4 + [1] * 4
    assert param.storage().floats == 2 * 3 * 8 * 8
    stored = canvas.images(torch.tensor([1]))[0]
    assert torch.equal(param.images(torch.tensor([6]))[0, :, ::2, ::2], stored[:, 4:, :4])


def test_groups_and_objectives_of_a_stack_are_those_of_its_parts(installed):
    made = create_stack("param", "hallucinated+tiles+soft")
    param = filled(made[-1], fake_data(), 1)
    assert [g.name for g in param.param_groups()] == ["bases", "decoder", "labels"]
    assert [len(g.params) for g in param.param_groups()] == [1, 2, 1]
    assert len(param.aux()) == 1
    assert Engine(fake_context(param), Teach(), 0.1, 0.5).objectives


def test_a_shared_decoder_starts_from_the_generator_of_the_run(installed):
    def decoder(seed):
        config = RunConfig(matcher="teach", param="hallucinated", ipc=2, seed=seed, device="cpu")
        session = Session(config, fake_data())
        session.initialise()
        return session.param.state_dict()["mix"].clone()

    assert torch.equal(decoder(0), decoder(0))
    assert not torch.equal(decoder(0), decoder(1))


def test_the_spec_of_an_object_names_all_its_parts(installed):
    param = SoftLabels(inner=Tiles(Tiles.Config(factor=4), inner=Pixels()))
    assert spec_text("param", param) == "pixels+tiles:factor=4+soft"
    assert spec_text("augmenter", ChainAugmenter([NoAugmentation(), NoAugmentation()])) == "none+none"


def test_a_file_is_decoded_with_the_options_it_was_made_with(installed, tmp_path, monkeypatch):
    config = RunConfig(matcher="teach", param="pixels+tiles", ipc=1, device="cpu")
    session = Session(config, fake_data())
    session.initialise()
    made = session.result()
    made.save(tmp_path / "set.safetensors")
    assert made.metadata["options"]["param"] == [{}, {"factor": 2}]

    class Changed(dcf.Config):
        factor: int = Field(4, ge=1, description="tiles along an axis")

    monkeypatch.setattr(Tiles, "Config", Changed)
    assert torch.equal(load(tmp_path / "set.safetensors").tensors().x, made.tensors().x)


class Mixtures(Parameterization):
    """Mixes every image from three canvases of half the size, which the inner one stores and no class owns."""

    stackable = True

    def inner_classes(self, item_class):
        return item_class.new_zeros(3)

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        half = replace(spec, height=spec.height // 2, width=spec.width // 2)
        self.inner.allocate(half, self.inner_classes(item_class))
        self.weights = nn.Parameter(torch.zeros(len(item_class), 3))

    def images(self, index):
        mixed = torch.einsum("nk,kchw->nchw", self.weights[index], self.inner.images(torch.arange(3)))
        return nn.functional.interpolate(mixed, scale_factor=2)

    def absorb(self, images, generator=None):
        with torch.no_grad():
            self.inner.absorb(images[:, :, ::2, ::2][torch.arange(3) % len(images)])
            self.weights.copy_(torch.eye(3)[torch.arange(len(images)) % 3] + 0.1)


@pytest.mark.parametrize("spec", ["pixels+mixtures", "pixels+mixtures+tiles:factor=2"])
def test_what_the_inner_one_stores_need_not_belong_to_the_items(installed, tmp_path, spec):
    param = filled(create_stack("param", spec)[-1], fake_data(), 2)
    dcf.testing.fake_set(param, spec=spec).save(tmp_path / "set.safetensors")
    again = load(tmp_path / "set.safetensors")
    for before, after in zip(stacked(param), stacked(again.param), strict=True):
        assert torch.equal(before.item_class, after.item_class)
        assert after.item_class.device.type == "cpu"
    assert torch.equal(again.tensors().x, param.images(torch.arange(len(param.view_class))))


class Labels(Pixels):
    def encode(self, images):
        return {"labels": images}

    def decode(self, latents, size):
        return latents["labels"]


def test_a_tensor_named_like_the_classes_is_refused(tmp_path):
    with pytest.raises(dcf.PluginError, match="stores a tensor called 'labels'"):
        dcf.testing.fake_set(filled(Labels(), fake_data())).save(tmp_path / "set.safetensors")


def test_the_base_asks_for_the_images_and_nothing_else():
    param = Pixels()
    param.allocate(fake_spec(), torch.tensor([0, 1]))
    assert [(g.name, len(g.params)) for g in param.param_groups()] == [("images", 1)]
    assert param.aux() == []


def test_settings_that_suit_a_parameterization_win_over_the_matchers_only():
    class Suited(Pixels):
        defaults = {"init": "random", "lr": 7.0, "iterations": 3}

    class Method(Matcher):
        defaults = dcf.MatcherDefaults(iterations=9, lr=0.1, momentum=0.25, init="noise")

    asked = {"matcher": Method(), "param": Suited(), "data": fake_data(), "iterations": 5}
    config = prepare(resolve(asked)).config
    assert (config.init, config.lr, config.momentum, config.iterations) == ("random", 7.0, 0.25, 5)
