"""Checks of augmenters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf.augmenter import Augmenter
from dcf.errors import UsageError
from dcf.seeding import generator
from dcf.testing.subject import Check, CheckSkipped, Subject, close, require, same
from dcf.types import Batch

__all__ = ["CHECKS", "exercise"]

_SHAPE = (3, 8, 8)
#: Draws that are tried, so that an augmenter which chooses among operations shows most of them.
_DRAWS = 12


def batch_of(n: int, augmenter: Augmenter, seed: int = 0) -> Batch:
    """`n` random images of two classes, in the value space and with the kind of labels that the augmenter expects."""
    draw = generator(seed, "batch")
    pixels = torch.rand(n, *_SHAPE, generator=draw)
    labels = torch.arange(n) % 2
    y = F.one_hot(labels, 2).float() if augmenter.mixes_labels else labels
    return Batch(pixels if augmenter.space == "unit" else (pixels - 0.5) / 0.25, y)


def draws(augmenter: Augmenter, n: int, shared: bool) -> Iterator[Any]:
    """Several draws.

    Raises:
        CheckSkipped: When the options of the spec rule out such draws.
    """
    for number in range(_DRAWS):
        try:
            yield augmenter.draw(n, _SHAPE, generator(number, "draw"), shared=shared)
        except UsageError as error:
            raise CheckSkipped(f"no {'shared' if shared else 'single'} draws: {error}") from None


def cases(subject: Subject, n: int = 4) -> Iterator[tuple[Augmenter, Batch, Any]]:
    """An augmenter, a batch and a draw for it, for draws of both kinds."""
    augmenter: Augmenter = subject.make()
    refused = 0
    for shared in (False, True):
        try:
            for values in draws(augmenter, n, shared):
                yield augmenter, batch_of(n, augmenter), values
        except CheckSkipped:
            refused += 1
    require(refused < 2, "neither shared nor single draws can be made")


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Draw and apply, several times."""
    augmenter: Augmenter = subject.make()
    batch = batch_of(4, augmenter, seed)
    batch = Batch(batch.x.to(device), batch.y.to(device))
    found: list[Tensor] = []
    for number in range(_DRAWS):
        values = augmenter.draw(4, _SHAPE, generator(seed, number), shared=False)
        found.extend(augmenter.apply(batch, values))
    return found


def check_shape_and_dtype_are_kept(subject: Subject) -> None:
    """Images keep shape and dtype (in single and double precision) and stay finite; there is one label an image."""
    for augmenter, batch, values in cases(subject):
        for x in (batch.x, batch.x.double()):
            made = augmenter.apply(Batch(x, batch.y), values)
            require(made.x.shape == x.shape, f"expected {tuple(x.shape)}, got {tuple(made.x.shape)}")
            require(made.x.dtype == x.dtype, f"expected {x.dtype}, got {made.x.dtype}")
            require(bool(torch.isfinite(made.x).all()), "augmented images are NaN or infinite")
            require(len(made.y) == len(batch.y), f"expected {len(batch.y)} labels, got {len(made.y)}")


def check_values_stay_in_range(subject: Subject) -> None:
    """Augmented values stay within four times the range of the images, so that networks still see images."""
    for augmenter, batch, values in cases(subject):
        largest, allowed = float(augmenter.apply(batch, values).x.abs().max()), 4 * float(batch.x.abs().max())
        require(largest <= allowed, f"values up to {largest:.3g} come out of images up to {allowed / 4:.3g}")


def check_gradient_reaches_the_images(subject: Subject) -> None:
    """Every draw is differentiable in the pixels, with a finite gradient that is not zero."""
    for augmenter, batch, values in cases(subject):
        x = batch.x.clone().requires_grad_()
        made = augmenter.apply(Batch(x, batch.y), values).x
        require(made.requires_grad, f"the draw {_short(values)} cuts the gradient off")
        weights = torch.randn(made.shape, generator=generator(0, "weights"))
        (grad,) = torch.autograd.grad((made * weights).sum(), x)
        require(bool(torch.isfinite(grad).all()), f"the gradient of the draw {_short(values)} is NaN or infinite")
        require(bool(grad.abs().sum() > 0), f"the gradient of the draw {_short(values)} is zero")


def check_shared_draw_fits_any_batch(subject: Subject) -> None:
    """A shared draw does the same to an image in a batch of 2 and in one of 5: what siamese use rests on."""
    augmenter: Augmenter = subject.make()
    large = batch_of(5, augmenter)
    small = Batch(large.x[:2], large.y[:2])
    for values in draws(augmenter, 1, shared=True):
        in_small, in_large = augmenter.apply(small, values).x, augmenter.apply(large, values).x[:2]
        require(close([in_small], [in_large]), f"the draw {_short(values)} acts differently in another batch size")


def check_apply_is_pure(subject: Subject) -> None:
    """A draw applied twice gives the same images, and modifies neither images nor draw."""
    for augmenter, batch, values in cases(subject):
        x, y, kept = batch.x.clone(), batch.y.clone(), copy.deepcopy(values)
        first, second = augmenter.apply(batch, values), augmenter.apply(batch, values)
        require(same(tuple(first), tuple(second)), f"the draw {_short(values)} replayed gives other images")
        require(torch.equal(batch.x, x) and torch.equal(batch.y, y), "apply modifies its input")
        require(same(values, kept), "apply modifies the draw")


def check_draw_only_uses_its_generator(subject: Subject) -> None:
    """The same generator gives the same draw; another one, sooner or later, another."""
    augmenter: Augmenter = subject.make()
    for shared in (False, True):
        try:
            first, second = list(draws(augmenter, 4, shared)), list(draws(augmenter, 4, shared))
        except CheckSkipped:
            continue
        require(same(first, second), "the same generator gives another draw")
        if not augmenter.is_identity:
            require(any(not same(first[0], d) for d in first), "every generator gives the same draw")


def check_draws_can_be_stored(subject: Subject) -> None:
    """A draw is made of tuples, lists, dictionaries, plain values and CPU tensors."""
    for _, _, values in cases(subject):
        stranger = _not_storable(values)
        require(stranger is None, f"a draw holds a {type(stranger).__name__}, which cannot be stored")


def check_classes_at_once_equal_a_loop(subject: Subject) -> None:
    """`apply_classes` gives what applying the draws class by class gives."""
    augmenter: Augmenter = subject.make()
    images = batch_of(12, augmenter).x.view(4, 3, *_SHAPE)
    made = list(draws(augmenter, 1, shared=True))
    for start in range(0, _DRAWS - 3, 4):
        chosen = made[start : start + 4]
        together = augmenter.apply_classes(images, chosen)
        loop = Augmenter.apply_classes(augmenter, images, chosen)
        require(close([together], [loop]), "apply_classes differs from applying the draws class by class")


def check_mixed_labels_are_probabilities(subject: Subject) -> None:
    """Labels that are mixed stay probabilities, and the images of one label keep it."""
    augmenter: Augmenter = subject.make()
    if not augmenter.mixes_labels:
        raise CheckSkipped("it does not mix labels")
    for one, batch, values in cases(subject):
        mixed = one.apply(batch, values).y
        require(close([mixed.sum(1)], [torch.ones(len(mixed))]), "mixed labels do not add up to 1")
        require(bool((mixed >= 0).all()), "a mixed label is negative")
        same_label = Batch(batch.x, batch.y[:1].expand_as(batch.y))
        kept = one.apply(same_label, values).y
        require(close([kept], [same_label.y]), "mixing images of one label changes it")


def check_identity_is_one(subject: Subject) -> None:
    """Callers skip an augmenter that says it is the identity; then it must be."""
    if not subject.make().is_identity:
        raise CheckSkipped("it is not the identity")
    for augmenter, batch, values in cases(subject):
        require(same(tuple(augmenter.apply(batch, values)), tuple(batch)), "is_identity, but images change")


def _not_storable(values: Any) -> Any:
    """The first part of a draw that cannot be stored; None when all can."""
    if values is None or isinstance(values, (str, int, float, bool)):
        return None
    if isinstance(values, Tensor):
        return None if values.device.type == "cpu" and not values.requires_grad else values
    if isinstance(values, Mapping):
        values = [*values.keys(), *values.values()]
    if isinstance(values, (list, tuple)):
        return next((s for v in values if (s := _not_storable(v)) is not None), None)
    return values


def _short(values: Any) -> str:
    return repr(values)[:80]


CHECKS: Sequence[Check] = (
    check_shape_and_dtype_are_kept,
    check_values_stay_in_range,
    check_gradient_reaches_the_images,
    check_shared_draw_fits_any_batch,
    check_apply_is_pure,
    check_draw_only_uses_its_generator,
    check_draws_can_be_stored,
    check_classes_at_once_equal_a_loop,
    check_mixed_labels_are_probabilities,
    check_identity_is_one,
)
