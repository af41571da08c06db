"""What all selectors share: from an order of each class's images to one image for each place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeAlias

import torch
from torch import Tensor

import dcf
from dcf.build import spec_text
from dcf.data import RealData, Split
from dcf_coreset.network import Plan

__all__ = ["Coreset", "Ranking", "fill", "record_of"]

#: From the image numbers `(n,)` of a class and how many are wanted, at most n, to `(count,)` positions in them.
Ranking: TypeAlias = Callable[[Tensor, int], Tensor]


def fill(split: Split, view_class: Tensor, rank: Ranking) -> Tensor:
    """One image for each place: the places of a class, in order, get its images in the order they are taken.

    Args:
        split: The images to pick from.
        view_class: `(views,)` class wanted at each place.
        rank: Called once for each class, ascending. A class with fewer images than places gives all of them, and
            starts again in the same order.

    Returns:
        `(views,)` image numbers, on the device of `view_class`.

    Raises:
        DataError: When a class that is wanted has no image.
    """
    picked = torch.zeros_like(view_class)
    for c in torch.unique(view_class).tolist():
        places, members = (view_class == c).nonzero().flatten(), split.of_class(c)
        if not len(members):
            raise dcf.DataError(f"class number {c} has no image to pick from")
        order = members[rank(members, min(len(places), len(members)))]
        picked[places] = order.repeat(-(-len(places) // len(order)))[: len(places)].to(picked.device)
    return picked


def record_of(plan: Plan, sha256: list[str], accuracy: list[float]) -> dict[str, Any]:
    """What a report says of the networks that looked at the images, JSON-ready.

    Args:
        plan: Of the first of them.
        sha256: Of what each training left.
        accuracy: On the training images, of each, in [0, 1].

    Returns:
        The plan, `sha256` and `train_accuracy`; the last two are lists where there are several networks.
    """
    told = {k: v for k, v in asdict(plan).items() if k not in ("number", "anneal")}
    schedule = "cosine" if plan.anneal else "constant"
    one = len(sha256) == 1
    return {
        "source": "trained",
        **told,
        "schedule": schedule,
        "sha256": sha256[0] if one else sha256,
        "train_accuracy": accuracy[0] if one else accuracy,
    }


class Coreset(dcf.Selector):
    """Base of the selectors: each class by itself, in an order that a subclass gives.

    `record` says which features were compared and, where a network was trained for it, how, with a hash of it.
    """

    def indices(self, data: RealData, view_class: Tensor, generator: torch.Generator) -> Tensor:
        """Pick from each class the images that come first in its order."""
        if not len(view_class):
            return torch.zeros_like(view_class)
        rank, features = self.prepare(data, generator)
        picked = fill(data.train, view_class, rank)
        self.record = {"selector": spec_text(dcf.Kind.SELECTOR, self), "features": features}
        return picked

    def prepare(self, data: RealData, generator: torch.Generator) -> tuple[Ranking, dict[str, Any]]:
        """How classes are ordered, and what the report says of the features."""
        raise NotImplementedError
