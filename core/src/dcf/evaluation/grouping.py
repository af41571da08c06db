"""Which networks of an evaluation are trained together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import torch

from dcf.networks.base import NetworkFactory
from dcf.together import suits

if TYPE_CHECKING:
    from dcf.evaluation.context import EvalContext
    from dcf.evaluation.fit import Material, Trial

__all__ = ["groups_of", "size_of_group"]

#: Networks that are trained together at most: what they keep for the backward pass is there at once.
_MOST: Final = 16
#: And at least: two of them take as many operations together as one after the other.
_LEAST: Final = 3


def groups_of(factory: NetworkFactory, ctx: EvalContext, trials: Iterable[Trial]) -> Iterator[list[Trial]]:
    """Consecutive trials that are trained together; one by one where that does not pay (see `dcf.together.suits`).

    Args:
        factory: Makes the networks.
        ctx: Protocol, shape of images, device.
        trials: May be made one by one.
    """
    group: list[Trial] = []
    for trial in trials:
        if group and (len(group) == _MOST or _kind(trial) != _kind(group[0])):
            yield from _split(group)
            group = []
        group.append(trial)
        if not _pays(factory, ctx, trial.material):
            yield from _split(group)
            group = []
    yield from _split(group)


def size_of_group(factory: NetworkFactory, ctx: EvalContext, material: Material, networks: int) -> int:
    """How many of the networks of a row are trained at a time: 1 where they are trained one by one."""
    size = min(networks, _MOST)
    return size if size >= _LEAST and _pays(factory, ctx, material) else 1


def _split(group: list[Trial]) -> list[list[Trial]]:
    return [group] if len(group) >= _LEAST else [[trial] for trial in group]


def _pays(factory: NetworkFactory, ctx: EvalContext, material: Material) -> bool:
    if ctx.place.type != "cuda" or material.program is not None:
        return False
    spec = ctx.data.spec
    net = factory.create(spec, ctx.seed, "whether networks are trained together")
    return suits(net, spec.shape, min(ctx.rules.batch, material.epoch_length), ctx.place)


def _kind(trial: Trial) -> tuple[Any, ...]:
    """What those that are trained together have in common: the number of steps, their sizes, the form of labels."""
    own = trial.material
    return own.program is None, own.epoch_length, own.lr, own.steps, own.fetch(torch.zeros(1, dtype=torch.long)).y.ndim
