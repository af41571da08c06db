"""Checks of parameterizations: decoding and learning."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dcf.assembly import slice_set
from dcf.data.real import RealData
from dcf.engine import Engine
from dcf.errors import UsageError
from dcf.items import views_of_items
from dcf.parameterization import Parameterization
from dcf.seeding import generator
from dcf.synthetic import SyntheticSet
from dcf.testing.fakes import PullToMean, fake_context, fake_data, filled
from dcf.testing.subject import Check, CheckSkipped, Subject, close, require, same

__all__ = ["CHECKS", "build", "exercise", "views"]


def build(subject: Subject, data: RealData | None = None, items: int = 2) -> Parameterization:
    """A fresh one over fake data, started from real images and then moved a little, off any saddle point."""
    param = filled(subject.make(), fake_data() if data is None else data, items)
    draw = generator(0, "jitter")
    with torch.no_grad():
        for tensor in learned(param):
            tensor += 0.01 * torch.randn(tensor.shape, generator=draw).to(tensor)
        param.project_()
    return param


def learned(param: Parameterization) -> list[Tensor]:
    """The tensors that are optimised."""
    return [p for group in param.param_groups() for p in group.params]


def views(param: Parameterization) -> Tensor:
    """Numbers of all views."""
    return torch.arange(len(param.view_class), device=param.view_class.device)


def train(param: Parameterization, data: RealData, iterations: int = 3) -> None:
    """A few iterations towards the class means."""
    Engine(fake_context(param, data), PullToMean(), lr=0.1, momentum=0.5).run(0, iterations)


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Initialise, learn for three iterations, decode."""
    data = fake_data(seed=seed).to(device)
    param = filled(subject.make(), data)
    if "images" in param.drives:
        train(param, data)
    batch = param.batch(views(param))
    order = param.epoch(generator(seed, "epoch"))
    return [batch.x.detach(), batch.y.detach(), order, *param.state_dict().values()]


def check_images_have_the_promised_shape(subject: Subject) -> None:
    """Every view decodes to one finite float image of its class, and the report counts them."""
    data = fake_data()
    param = build(subject, data)
    batch = param.batch(views(param))
    count = len(param.view_class)
    wanted = (count, *data.spec.shape)
    require(tuple(batch.x.shape) == wanted, f"expected images of shape {wanted}, got {tuple(batch.x.shape)}")
    require(batch.x.dtype == torch.float32, f"expected float32 images, got {batch.x.dtype}")
    require(bool(torch.isfinite(batch.x).all()), "images are NaN or infinite")
    require(len(batch.y) == count, f"expected {count} labels, got {len(batch.y)}")
    require(param.storage().views == count, f"storage() reports {param.storage().views} views, view_class has {count}")


def check_classes_have_equally_many_views(subject: Subject) -> None:
    """`view_class` holds class indices, each class as often, and at least one view an item."""
    param = build(subject, items=3)
    counts = torch.bincount(param.view_class, minlength=2)
    require(param.view_class.dtype == torch.long, f"expected int64 classes, got {param.view_class.dtype}")
    require(len(set(counts.tolist())) == 1, f"expected as many views of each class, got {counts.tolist()}")
    require(int(counts[0]) >= 3, f"expected at least one view an item, got {int(counts[0])} of 3 items")


def check_other_image_shapes(subject: Subject) -> None:
    """One channel, and images that are not square."""
    data = fake_data(shape=(1, 12, 8))
    shape = tuple(build(subject, data).images(torch.tensor([0])).shape)
    require(shape == (1, 1, 12, 8), f"expected an image of shape (1, 1, 12, 8), got {shape}")


def check_gradient_reaches_every_latent(subject: Subject) -> None:
    """Every tensor that is optimised is a leaf, is stored, and has a finite gradient that is not zero."""
    param = build(subject)
    stored = {id(t) for t in param.state_dict(keep_vars=True).values()}
    names = {id(t): name for name, t in param.named_parameters()}
    batch = param.batch(views(param))
    loss = (batch.x * torch.randn(batch.x.shape, generator=generator(0, "weights"))).sum()
    if batch.y.is_floating_point():
        loss = loss + (batch.y * torch.randn(batch.y.shape, generator=generator(1, "weights"))).sum()
    for tensor in learned(param):
        name = names.get(id(tensor), "an unnamed tensor")
        require(tensor.is_leaf and tensor.requires_grad, f"'{name}' is no leaf that requires a gradient")
        require(id(tensor) in stored, f"'{name}' is learned and not stored")
        (grad,) = torch.autograd.grad(loss, tensor, retain_graph=True, allow_unused=True)
        require(grad is not None, f"no gradient reaches '{name}'")
        if grad is not None:
            require(bool(torch.isfinite(grad).all()), f"the gradient of '{name}' is NaN or infinite")
            require(bool(grad.abs().sum() > 0), f"the gradient of '{name}' is zero")


def check_something_is_learned(subject: Subject) -> None:
    """Three engine steps move the stored tensors and leave everything finite."""
    data = fake_data()
    param = build(subject, data)
    if "images" not in param.drives:
        raise CheckSkipped("its images are not learned")
    before = {k: v.clone() for k, v in param.state_dict().items()}
    train(param, data)
    after = param.state_dict()
    require(any(not same(before[k], after[k]) for k in before), "three steps change nothing that is stored")
    bad = [k for k, v in after.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    require(not bad, f"NaN or infinite after three steps: {', '.join(bad)}")
    require(bool(torch.isfinite(param.images(views(param))).all()), "images are NaN or infinite after three steps")


def check_projection_is_idempotent(subject: Subject) -> None:
    """Values inside their bounds are left alone."""
    param = build(subject)
    with torch.no_grad():
        param.project_()
        before = {k: v.clone() for k, v in param.state_dict().items()}
        param.project_()
    require(same(before, dict(param.state_dict())), "a second projection changes values")


def check_decoding_is_pure(subject: Subject) -> None:
    """Decoding twice gives the same, and changes nothing that is stored."""
    param = build(subject)
    before = {k: v.clone() for k, v in param.state_dict().items()}
    first, second = param.images(views(param)), param.images(views(param))
    require(torch.equal(first, second), "decoding twice gives different images")
    require(same(before, dict(param.state_dict())), "decoding changes what is stored")


def check_decoding_follows_the_index(subject: Subject) -> None:
    """Image and label at a place depend on the view number there alone, repetitions included."""
    param = build(subject)
    everything = param.batch(views(param))
    index = torch.cat([views(param).flip(0), torch.tensor([0, 0])])
    picked = param.batch(index)
    require(close([picked.x], [everything.x[index]]), "images do not follow the index")
    require(close([picked.y.float()], [everything.y[index].float()]), "labels do not follow the index")
    require(len(param.batch(index[:0]).x) == 0, "an empty index gives images")


def check_epoch_visits_every_view(subject: Subject) -> None:
    """An epoch visits `epoch_length` views once each, drawn from its generator alone, and no view is always left out.

    That of inner training does likewise.
    """
    param = build(subject)
    everything, length = set(views(param).tolist()), param.epoch_length
    for name, epoch in (("epoch", param.epoch), ("inner_epoch", lambda draws: param.inner_epoch(draws, 2))):
        order, again = (epoch(generator(0, "epoch")) for _ in range(2))
        require(torch.equal(order, again), f"{name}: the same generator gives another order")
        require(len(order) == length, f"{name}: expected epoch_length = {length} indices, got {len(order)}")
        require(len(set(order.tolist())) == length, f"{name}: a view is visited twice")
        # A view that is one of k is left out of so many epochs with a chance of about exp(-20).
        epochs = 1 if length == len(everything) else 20 * math.ceil(len(everything) / length)
        seen = {v for number in range(epochs) for v in epoch(generator(number, "epoch")).tolist()}
        require(seen == everything, f"{name}: views that are never visited, or are none: {sorted(seen ^ everything)}")


def check_follows_dtype(subject: Subject) -> None:
    """In double precision, images are in double precision."""
    param = build(subject).double()
    dtype = param.images(views(param)).dtype
    require(dtype == torch.float64, f"expected float64 images from float64 tensors, got {dtype}")


def check_images_can_be_moved(subject: Subject) -> None:
    """In a set of some of its items images are what they were; or it says that they cannot be moved."""
    data = fake_data()
    param = build(subject, data, items=3)
    try:
        param.item_rows(data.spec, torch.arange(len(param.item_class)))
    except UsageError as reason:
        raise CheckSkipped(str(reason)) from None
    one = SyntheticSet(param, data.spec, {})
    first = len(views_of_items(param, data.spec)[0])
    try:
        part = slice_set(one, per_class=first)
    except UsageError as reason:
        message = f"`item_rows` says that items stand alone, and they do not ({reason}); let it raise with the reason"
        raise AssertionError(message) from None
    require(len(part) == 2 * first, f"expected {2 * first} images in a part of two items, got {len(part)}")


CHECKS: Sequence[Check] = (
    check_images_have_the_promised_shape,
    check_classes_have_equally_many_views,
    check_other_image_shapes,
    check_gradient_reaches_every_latent,
    check_something_is_learned,
    check_projection_is_idempotent,
    check_decoding_is_pure,
    check_decoding_follows_the_index,
    check_epoch_visits_every_view,
    check_follows_dtype,
    check_images_can_be_moved,
)
