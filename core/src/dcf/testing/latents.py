"""Checks of parameterizations: taking images in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dcf.seeding import generator
from dcf.testing.fakes import fake_data, filled
from dcf.testing.params import views
from dcf.testing.subject import Check, CheckSkipped, Subject, require, same

__all__ = ["CHECKS"]


def check_absorbing_is_deterministic(subject: Subject) -> None:
    """The same images and generator give the same stored tensors, finite ones; the images are not modified."""
    data = fake_data()
    images = data.train.images(torch.arange(len(data.train)))
    params = []
    for _ in range(2):
        param = filled(subject.make(), data)
        start = images[views(param) % len(images)]
        given = start.clone()
        param.absorb(given, generator(0, "absorb"))
        require(torch.equal(given, start), "absorbing modifies the images it is given")
        params.append({k: v.clone() for k, v in param.state_dict().items()})
    require(same(*params), "absorbing the same images twice gives different tensors")
    bad = [k for k, v in params[0].items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    require(not bad, f"NaN or infinite after absorbing: {', '.join(bad)}")


def check_absorbing_keeps_images(subject: Subject) -> None:
    """Where the class says `lossless = True`, decoding gives back what was absorbed, within 1e-3."""
    if not getattr(subject.cls, "lossless", False):
        raise CheckSkipped("it does not claim to be lossless")
    data = fake_data()
    probe = filled(subject.make(), data)
    count = len(probe.view_class)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, *data.spec.shape, generator=draw)
    probe.absorb(images)
    worst = float((probe.images(views(probe)) - images).detach().abs().max())
    require(worst < 1e-3, f"claims to be lossless, but decoding is off by {worst:.3g}")


CHECKS: Sequence[Check] = (check_absorbing_is_deterministic, check_absorbing_keeps_images)
