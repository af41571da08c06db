"""Which networks of an evaluation are trained at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from dcf.networks.base import NetworkFactory
from dcf.together import How, best_way

if TYPE_CHECKING:
    from dcf.evaluation.context import EvalContext
    from dcf.evaluation.fit import Material, Trial

__all__ = ["Group", "Grouping"]

#: Networks that are stacked at most: what they keep for the backward pass is there at once.
_MOST: Final = 16
#: And at least: two of them take as many operations stacked as one after the other.
_LEAST: Final = 3
#: Networks that are side by side at most: each has a batch of test images in memory.
_BESIDE: Final = 8


class Group(NamedTuple):
    """Trials that are trained at once, and how."""

    trials: list[Trial]
    how: How


class Grouping:
    """Puts the networks of a row into groups.

    Args:
        factory: Makes them.
        ctx: Protocol, shape of images, device.
        networks: Of the row, in all processes. One alone has all cores; several never have more than one each where
            that suits a step of theirs, so that no network comes out otherwise if there is one more.
    """

    def __init__(self, factory: NetworkFactory, ctx: EvalContext, networks: int) -> None:
        self.factory, self.ctx, self.networks = factory, ctx, networks
        self._known: dict[int, How] = {}

    def groups(self, trials: Iterable[Trial]) -> Iterator[Group]:
        """Consecutive trials that are trained at once; they may be made one by one."""
        group: list[Trial] = []
        how: How = "alone"
        for trial in trials:
            own = self.way(trial.material)
            if group and (own != how or _kind(trial) != _kind(group[0])):
                yield from _split(group, how)
                group = []
            group, how = [*group, trial], own
            if len(group) >= self._size(how):
                yield from _split(group, how)
                group = []
        yield from _split(group, how)

    def first(self, material: Material) -> tuple[int, How]:
        """How many networks the first group of a row has whose networks are all trained on such material, and how."""
        how = self.way(material)
        size = min(self.networks, self._size(how))
        return (1, "alone") if how == "stacked" and size < _LEAST else (size, how)

    def way(self, material: Material) -> How:
        """How networks are trained on some material."""
        if material.program is not None or self.networks == 1:
            return "alone"
        batch, spec = min(self.ctx.rules.batch, material.epoch_length), self.ctx.data.spec
        if batch not in self._known:
            net = self.factory.create(spec, self.ctx.seed, "whether networks are trained at once")
            self._known[batch] = best_way(net, spec.shape, batch, self.ctx.place)
        return self._known[batch]

    def _size(self, how: How) -> int:
        """Networks of a group; side by side, all groups of a row are about as large, so that none leaves cores idle."""
        if how == "beside" and torch.get_num_threads() > 1:
            return math.ceil(self.networks / math.ceil(self.networks / _BESIDE))
        return _MOST if how == "stacked" else 1


def _split(group: list[Trial], how: How) -> list[Group]:
    if how == "alone" or (how == "stacked" and len(group) < _LEAST):
        return [Group([trial], "alone") for trial in group]
    return [Group(group, how)] if group else []


def _kind(trial: Trial) -> tuple[Any, ...]:
    """What those that are trained together have in common: the number of steps, their sizes, the form of labels."""
    own = trial.material
    return own.program is None, own.epoch_length, own.lr, own.steps, own.fetch(torch.zeros(1, dtype=torch.long)).y.ndim
