"""Checks of selectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcf.seeding import generator
from dcf.testing.fakes import fake_data
from dcf.testing.subject import Check, CheckSkipped, Subject, require

__all__ = ["CHECKS", "exercise"]

#: Classes wanted at each place; not sorted, and with different numbers of views.
_VIEW_CLASS = (0, 1, 2, 0, 2, 2)


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Images for a few views."""
    data = fake_data(classes=3, seed=seed).to(device)
    wanted = torch.tensor(_VIEW_CLASS, device=device)
    return [subject.make().images(data, wanted, generator(seed, "select"))]


def check_images_have_the_right_shape(subject: Subject) -> None:
    """One finite float32 image for each view; none for none."""
    data = fake_data(classes=3)
    for wanted in (torch.tensor(_VIEW_CLASS), torch.empty(0, dtype=torch.long)):
        images = subject.make().images(data, wanted, generator(0, "select"))
        shape = (len(wanted), *data.spec.shape)
        require(tuple(images.shape) == shape, f"expected images of shape {shape}, got {tuple(images.shape)}")
        require(images.dtype == torch.float32, f"expected float32 images, got {images.dtype}")
        require(bool(torch.isfinite(images).all()), "images are NaN or infinite")


def check_images_are_of_their_class(subject: Subject) -> None:
    """Real images have the class that is wanted at their place, and none is taken twice while there are others."""
    selector, data = subject.make(), fake_data(classes=3)
    if not selector.real:
        raise CheckSkipped("its images are not real")
    wanted = torch.tensor(_VIEW_CLASS)
    index = selector.indices(data, wanted, generator(0, "select"))
    require(torch.equal(data.train.labels[index], wanted), "images are not of the wanted classes")
    require(len(set(index.tolist())) == len(wanted), "an image is taken twice although there are others")
    given = selector.images(data, wanted, generator(0, "select"))
    require(torch.equal(given, data.train.images(index)), "images() are not those of indices()")


def check_small_classes_suffice(subject: Subject) -> None:
    """A class with fewer images than views still fills its places."""
    data = fake_data(train=2)
    images = subject.make().images(data, torch.tensor([0, 0, 0, 0, 0, 1]), generator(0, "select"))
    require(len(images) == 6, f"expected 6 images, got {len(images)}")


CHECKS: Sequence[Check] = (
    check_images_have_the_right_shape,
    check_images_are_of_their_class,
    check_small_classes_suffice,
)
