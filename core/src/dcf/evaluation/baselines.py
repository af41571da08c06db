"""The rows that stand beside every result: real images at equal stored bytes, and the whole training set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import torch
from torch import Tensor

from dcf.errors import UsageError
from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Material, Measured, Trial, material_of_split, train_row
from dcf.evaluation.protocol import PROGRAM, Cost, cost
from dcf.training import shuffled
from dcf.types import Batch

if TYPE_CHECKING:
    from dcf.synthetic import SyntheticSet

__all__ = [
    "BASELINES",
    "Baseline",
    "Relabel",
    "equal_bytes",
    "find_baseline",
    "pick_per_class",
    "random_images_row",
    "random_program_row",
    "random_row",
    "random_selection",
    "whole_cost",
    "whole_row",
]

_FLOAT_BYTES: Final = 4

#: From the sets, the context and a network spec to a row; None and the reason where there can be none.
Baseline: TypeAlias = "Callable[[Sequence[SyntheticSet], EvalContext, str], Measured | str]"

#: From `(N, C, H, W)` images to their `(N,)` or `(N, K)` labels, without graph.
Relabel: TypeAlias = "Callable[[Tensor], Tensor]"


def equal_bytes(nbytes: int, shape: tuple[int, int, int], num_classes: int) -> int:
    """How many plain float32 images a class cost at most as many bytes as a set.

    Args:
        nbytes: Stored bytes of the set, labels and decoders included.
        shape: `(C, H, W)`.
        num_classes: K.
    """
    return nbytes // (num_classes * _image_bytes(shape))


def _image_bytes(shape: tuple[int, int, int]) -> int:
    return math.prod(shape) * _FLOAT_BYTES


def pick_per_class(labels: Tensor, num_classes: int, k: int, generator: torch.Generator) -> Tensor:
    """Indices of k images of each class, uniformly without replacement; all of a class that has fewer.

    Args:
        labels: `(N,)` class indices.
        num_classes: K.
        k: Images a class.
        generator: CPU generator; used once a class, in order.

    Returns:
        `(M,)` with M <= K k, class-major, on the CPU.
    """
    labels = labels.cpu()
    members = torch.split(torch.argsort(labels, stable=True), torch.bincount(labels, minlength=num_classes).tolist())
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:k]] for m in members])


def random_selection(ctx: EvalContext, net: int, k: int) -> Tensor:
    """Numbers `(M,)` of the training images that random rows train network `net` on: k of each class."""
    draw = ctx.generator(0, net, "random selection")
    return pick_per_class(ctx.data.train.labels, ctx.data.spec.num_classes, k, draw)


def random_row(
    sets: Sequence[SyntheticSet], ctx: EvalContext, network: str, relabel: Relabel | None = None
) -> Measured | str:
    """Random real images at equal stored bytes, a fresh selection for every network.

    Stored as float32 pixels, like the field's coresets; `info` says how many of 8 bits the same bytes hold
    (`uint8_per_class`), since pixels as they come are four times shorter. Trained under the protocol of the sets,
    with their augmentation and learned step size. Each network counts as a set of its own. Network n starts and is
    shuffled as network n of set 0.

    Args:
        sets: The sets.
        ctx: Real data, protocol, seeds, device.
        network: Spec of the network.
        relabel: Gives the images other labels than their own.

    Returns:
        The row, or why there is none: the set costs less than one image a class.
    """
    spec = ctx.data.spec
    nbytes = min(one.storage().nbytes for one in sets)
    k = equal_bytes(nbytes, spec.shape, spec.num_classes)
    small = nbytes // (spec.num_classes * math.prod(spec.shape))
    if k == 0:
        beside = f", and {small} of 8 bits" if small else ""
        return f"random: no row, because the set's {nbytes} bytes hold no float32 image a class{beside}"
    info = {"per_class": k, "bytes_of_set": nbytes, "uint8_per_class": small}
    return _random("random", sets, ctx, network, k, info, relabel)


def random_images_row(
    sets: Sequence[SyntheticSet], ctx: EvalContext, network: str, relabel: Relabel | None = None
) -> Measured:
    """As many random real images a class as the sets decode to, whatever these cost; otherwise as `random_row`."""
    classes = ctx.data.spec.num_classes
    k = max(int(torch.bincount(one.param.view_class.cpu(), minlength=classes).max()) for one in sets)
    return _random("random-images", sets, ctx, network, k, {"per_class": k}, relabel)


def _random(
    name: str,
    sets: Sequence[SyntheticSet],
    ctx: EvalContext,
    network: str,
    k: int,
    info: Mapping[str, int],
    relabel: Relabel | None,
) -> Measured:
    spec = ctx.data.spec
    counts = ctx.data.train.counts.tolist()
    stored = sum(min(k, n) for n in counts) * _image_bytes(spec.shape)
    sizes = {"bytes": stored, "floats": stored // _FLOAT_BYTES}
    trials, augment = _selections(sets, ctx, k, relabel), ctx.augment_spec(sets)
    measured = train_row(name, trials, ctx.n_nets, ctx, network, augment, **sizes, info=dict(info))
    short = [name for name, n in zip(spec.classes, counts, strict=True) if n < k]
    if short:
        names = ", ".join(short[:5]) + (" and others" if len(short) > 5 else "")
        measured.warnings.append(f"{name}: fewer than {k} images in {len(short)} classes, all used: {names}")
    return measured


def _selections(sets: Sequence[SyntheticSet], ctx: EvalContext, k: int, relabel: Relabel | None) -> Iterator[Trial]:
    for net in range(ctx.n_nets):
        data = material_of_split(ctx.data.train, ctx.place).fetch(random_selection(ctx, net, k))
        data = data if relabel is None else Batch(data.x, relabel(data.x))
        yield Trial(net, net, 0, replace(_fixed(data, ctx, sets[0].hints.lr), steps=sets[0].hints.steps))


def _fixed(data: Batch, ctx: EvalContext, lr: float | None) -> Material:
    """Images held in memory, shuffled anew each epoch."""
    size = len(data.x)
    return Material(size, lambda i: Batch(data.x[i], data.y[i]), lambda g: shuffled(size, g, ctx.place), lr)


def random_program_row(sets: Sequence[SyntheticSet], ctx: EvalContext, network: str) -> Measured | str:
    """Random real images in the place of those of a program, class by class, a fresh selection for every network.

    Returns:
        The row, or why there is none: a class has fewer real images than the program has of it.
    """
    one, split = sets[0], ctx.data.train
    view_class = one.param.view_class.cpu()
    wanted = torch.bincount(view_class, minlength=ctx.data.spec.num_classes)
    if bool((wanted > torch.bincount(split.labels.cpu(), minlength=len(wanted))).any()):
        return "random-replay: no row, because a class has fewer real images than the program has of it"
    stored = len(view_class) * _image_bytes(ctx.data.spec.shape)
    trials = (Trial(net, net, 0, _in_program(one, ctx, net)) for net in range(ctx.n_nets))
    sizes = {"bytes": stored, "floats": stored // _FLOAT_BYTES}
    return train_row("random-replay", trials, ctx.n_nets, ctx, network, "none", PROGRAM, **sizes)


def _in_program(one: SyntheticSet, ctx: EvalContext, net: int) -> Material:
    """Random images in the order of a set's views, to be run as its program."""
    split, classes = ctx.data.train, ctx.data.spec.num_classes
    wanted = one.param.view_class.tolist()
    most = max(wanted.count(c) for c in range(classes))
    picked = pick_per_class(split.labels, classes, most, ctx.generator(0, net, "random selection"))
    pools = [iter(picked[split.labels.cpu()[picked] == c].tolist()) for c in range(classes)]
    index = torch.tensor([next(pools[c]) for c in wanted])
    data = material_of_split(split, ctx.place).fetch(index)
    return replace(_fixed(data, ctx, None), program=one.hints.program)


def whole_cost(ctx: EvalContext) -> Cost:
    """What `whole_row` costs for each network, to decide before asking for it."""
    return cost(ctx.rules, len(ctx.data.train))


def whole_row(sets: Sequence[SyntheticSet], ctx: EvalContext, network: str) -> Measured | str:
    """The whole training set under the same protocol and augmentation, hyper-parameters as they are.

    `whole_cost` says beforehand what it costs.
    """
    everything = material_of_split(ctx.data.train, ctx.place, sets[0].hints.lr)
    trials = [Trial(0, net, 0, everything) for net in range(ctx.n_nets)]
    return train_row("whole", trials, len(trials), ctx, network, ctx.augment_spec(sets))


BASELINES: Final[Mapping[str, Baseline]] = {"random": random_row, "whole": whole_row}


def find_baseline(name: str) -> Baseline:
    """A baseline by name.

    Raises:
        UsageError: When there is none of that name.
    """
    if name not in BASELINES:
        raise UsageError(f"no baseline named '{name}'; expected one of {', '.join(BASELINES)}")
    return BASELINES[name]
