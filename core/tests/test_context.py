"""What a matcher is given: draws that depend on purpose, iteration and class, and on nothing else."""

from __future__ import annotations

import pytest
import torch

import dcf
from dcf.augmenter import Augmenter
from dcf.context import Context
from dcf.pixels import Pixels
from dcf.testing import SoftPixels, fake_context, fake_data, fake_spec
from dcf.testing.fakes import filled
from dcf.types import Batch


class Shift(Augmenter):
    """Adds one random number an image, or one for all; remembers how it was asked."""

    def __init__(self, siamese=True):
        super().__init__()
        self._siamese = siamese

    @property
    def siamese(self):
        return self._siamese

    def draw(self, n, shape, generator, shared):
        return torch.rand(1 if shared else n, generator=generator)

    def apply(self, batch, values):
        return Batch(batch.x + values.view(-1, 1, 1, 1), batch.y)


def everything(ctx, it=0, stream="match"):
    ctx.begin(it)
    return torch.cat([ctx.real(chunk.classes, 4, stream) for chunk in ctx.chunks()])


def test_all_classes_together_need_equally_many_images():
    param = Pixels()
    param.allocate(fake_spec(3), torch.tensor([0, 0, 1, 2]))
    ctx = fake_context(param, fake_data(classes=3))
    with pytest.raises(dcf.UsageError, match=r"from 1 to 2 a class\n.*another parameterization"):
        ctx.all_classes()


def test_chunks_cover_every_class_once_and_end():
    chunks = list(fake_context(data=fake_data(classes=5), class_chunk=2).chunks())
    assert [c.classes.tolist() for c in chunks] == [[0, 1], [2, 3], [4]]
    assert [c.last for c in chunks] == [False, False, True]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_real_images_do_not_depend_on_the_chunk(chunk):
    data = fake_data(classes=5)
    assert torch.equal(everything(fake_context(data=data, class_chunk=chunk)), everything(fake_context(data=data)))


def test_real_images_are_of_their_class_and_without_repetition():
    ctx = fake_context(data=fake_data(classes=3))
    ctx.begin(0)
    images = ctx.real(torch.arange(3), 6)
    for c in range(3):
        own = ctx.data.train.images(ctx.data.train.of_class(c))
        assert sorted(images[c].flatten(1).sum(1).tolist()) == pytest.approx(sorted(own.flatten(1).sum(1).tolist()))


def test_draws_differ_by_iteration_and_purpose():
    ctx = fake_context(data=fake_data(classes=3))
    first = everything(ctx)
    assert not torch.equal(first, everything(ctx, it=1))
    assert not torch.equal(first, everything(ctx, stream="other"))
    assert torch.equal(first, everything(ctx))


def test_more_images_than_there_are_gives_as_many_as_there_are():
    ctx = fake_context(data=fake_data(classes=3))
    assert ctx.real(torch.arange(3), 1000).shape[:2] == (3, 6)


def test_siamese_draw_is_one_a_class_for_both_sides_and_any_chunk():
    ctx = fake_context(data=fake_data(classes=3), augmenter=Shift())
    ctx.begin(2)
    zeros = torch.zeros(3, 4, 3, 8, 8), torch.zeros(3, 2, 3, 8, 8)
    real, syn = ctx.siamese(torch.arange(3), *zeros, 0)
    values = real[:, 0, 0, 0, 0]
    assert len(set(values.tolist())) == 3
    assert torch.equal(real, values.view(3, 1, 1, 1, 1).expand_as(real))
    assert torch.equal(syn, values.view(3, 1, 1, 1, 1).expand_as(syn))
    alone, _ = ctx.siamese(torch.tensor([1]), zeros[0][:1], zeros[1][:1], 0)
    assert torch.equal(alone[0], real[1])


def test_an_augmenter_that_is_not_siamese_draws_for_every_image():
    ctx = fake_context(data=fake_data(classes=2), augmenter=Shift(siamese=False))
    real, syn = ctx.siamese(torch.arange(2), torch.zeros(2, 4, 3, 8, 8), torch.zeros(2, 4, 3, 8, 8))
    assert len(set(real[:, :, 0, 0, 0].flatten().tolist())) == 8
    assert not torch.equal(real, syn)


def test_networks_are_fresh_each_iteration_and_repeatable():
    ctx = fake_context()

    def weights(it):
        ctx.begin(it)
        return torch.cat([w.flatten() for w in ctx.network().parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_training_moves_the_network_and_not_the_set():
    ctx = fake_context()
    net = ctx.network()
    weights = [w.detach().clone() for w in net.parameters()]
    images = ctx.param.images(torch.arange(2)).detach().clone()
    ctx.train(net, epochs=2, lr=0.1, batch=2)
    assert any(not torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert torch.equal(images, ctx.param.images(torch.arange(2)))
    assert all(p.grad is None or not p.grad.any() for p in ctx.param.parameters())


def test_global_randomness_is_not_touched():
    ctx = fake_context(augmenter=Shift())
    before = torch.random.get_rng_state()
    everything(ctx)
    ctx.train(ctx.network(), 1, 0.1, 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_synthetic_labels_are_those_of_the_synthetic_images():
    data = fake_data(classes=3)
    ctx = fake_context(data=data, param=filled(SoftPixels(), data, 2))
    classes = torch.tensor([2, 0])
    soft = ctx.synthetic_labels(classes)
    assert soft.shape == (2, 2, 3)
    assert soft.argmax(-1).tolist() == [[2, 2], [0, 0]]
    assert fake_context(data=data).synthetic_labels(classes).tolist() == [[2], [0]]


def test_settings_are_tabled_by_the_budget_not_by_what_is_used_of_it():
    ctx = fake_context()
    assert ctx.images_per_class == 1
    given = Context(ctx.data, ctx.param, ctx.networks, ctx.augmenter, 0, 1, images_per_class=10)
    assert given.images_per_class == 10
