"""From the settings of a stream to its steps, and to the runs that fill its memory. Torch-free."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dcf.bench.plan import Point, plan
from dcf.build import check
from dcf.components import Kind
from dcf.resolve import Request
from dcf.spec import Option, Spec, Stack, parse_one
from dcf_continual.options import StreamSettings
from dcf_continual.orders import class_order, groups_of

__all__ = ["Group", "points_of", "request_of", "require_runnable", "slug", "stream_groups", "subset_of"]


@dataclass(frozen=True)
class Group:
    """What comes in one step.

    Attributes:
        data: Number of its dataset.
        numbers: Its classes, as the data number them.
    """

    data: int
    numbers: tuple[int, ...]


def stream_groups(settings: StreamSettings, seed: int, classes: Sequence[str]) -> list[Group]:
    """The steps of a stream.

    Args:
        settings: Of the stream.
        seed: Of the order.
        classes: All class names; of a sequence of datasets, those that all of them have.

    Raises:
        UsageError: When the classes cannot be divided into the steps.
    """
    if settings.sequence:
        return [Group(number, tuple(range(len(classes)))) for number in range(len(settings.data))]
    order = class_order(settings.order, seed, classes)
    return [Group(0, tuple(group)) for group in groups_of(order, settings.steps, settings.sort)]


def subset_of(data: str, names: Sequence[str]) -> str:
    """The spec of some classes of a dataset."""
    base = Option("base", Stack((parse_one(data, "--data"),)))
    return str(Spec("subset", (base, Option("classes", tuple(sorted(names))))))


def points_of(settings: StreamSettings, data: str, budget: str, seed: int = 0) -> list[Point]:
    """A run for each method on some data, with some budget.

    Raises:
        UsageError: For the first that no run could be made of.
    """
    return plan(settings.bench(data, budget, seed))


def request_of(settings: StreamSettings, point: Point, seed: int) -> Request:
    """The run of a point, with what the stream decides.

    Args:
        settings: Of the stream.
        point: A method on the data of a step.
        seed: Of the run.
    """
    decided: dict[str, Any] = {
        "seed": seed,
        "evaluate": False,
        "baselines": (),
        "protocol": settings.protocol,
        "protocol_set": dict(settings.protocol_set),
    }
    if settings.iterations is not None and str(point.request.settings.get("matcher", "none")) != "none":
        decided["iterations"] = settings.iterations
    return Request({**point.request.settings, **decided}, point.request.objects)


def require_runnable(settings: StreamSettings) -> list[str]:
    """Make sure, before anything is loaded, that runs can be made of the settings.

    Returns:
        The labels of the methods.

    Raises:
        UsageError: For the first thing that is wrong.
    """
    labels: list[str] = []
    for data in settings.data:
        labels = [point.label for point in points_of(settings, data, "ipc=1")]
    settings.rules.augment_spec("none", settings.data[0])
    check(Kind.NETWORK, settings.network)
    return labels


def slug(label: str) -> str:
    """A label as part of the name of a file; different labels have different ones."""
    short = re.sub(r"[^A-Za-z0-9.-]+", "_", label)[:60]
    return short if short == label else f"{short}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"
