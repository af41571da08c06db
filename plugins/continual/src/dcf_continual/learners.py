"""Learning from a memory: from scratch, or by going on with a head that grows; and one look at the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import dcf
from dcf.data import Split
from dcf.evaluation import EvalContext, Material, material_of
from dcf.evaluation.fit import fit_network
from dcf.training import Objective, Trained, cross_entropy
from dcf.types import Batch
from dcf_continual.options import StreamSettings

__all__ = ["Hits", "Place", "count_hits", "distilled", "from_scratch", "going_on", "grown"]


class Place(NamedTuple):
    """Where in a stream a network learns.

    Attributes:
        step: Number of the step, from 0.
        net: Number of the network.
    """

    step: int
    net: int


@dataclass(frozen=True)
class Hits:
    """Correct answers on the test images of one step's classes.

    Attributes:
        correct: By head.
        count: Images.
    """

    correct: Mapping[str, int]
    count: int


def from_scratch(
    memory: dcf.SyntheticSet, ctx: EvalContext, settings: StreamSettings, place: Place
) -> tuple[dcf.NetworkState, Trained]:
    """A fresh network with an output for every class of the data, trained on the memory (Prabhu et al., ECCV 2020).

    Args:
        memory: Of all classes of the data, some of them without images.
        ctx: Data, protocol and seeds; the step is the number of the set.
        settings: Of the stream.
        place: Step and network.
    """
    stream = ctx.stream(place.step, place.net, "network")
    state = ctx.factory(settings.network).create(ctx.data.spec, ctx.seed, *stream, device=ctx.place)
    augmenter = ctx.augmenter(ctx.augment_spec([memory]))
    return state, fit_network(state, material_of(memory, ctx), ctx, augmenter, place.step, place.net)


def going_on(
    memory: dcf.SyntheticSet,
    ctx: EvalContext,
    settings: StreamSettings,
    place: Place,
    order: Sequence[int],
    before: dcf.NetworkState | None,
) -> tuple[dcf.NetworkState, Trained]:
    """The network of the step before with outputs for the new classes, trained on the memory (Kim et al., ICML 2022).

    Args:
        memory: Of all classes of the data, those that have not come without images.
        ctx: Data, protocol and seeds; the step is the number of the set.
        settings: Weight and temperature of the distillation.
        place: Step and network.
        order: Class numbers seen so far, in order of arrival: output i is for class `order[i]`.
        before: The network of the step before; None at the first.
    """
    names = tuple(ctx.data.spec.classes[c] for c in order)
    spec = replace(ctx.data.spec, classes=names)
    stream = ctx.stream(place.step, place.net, "network")
    fresh = ctx.factory(settings.network).create(spec, ctx.seed, *stream, device=ctx.place)
    state = fresh if before is None else grown(before, fresh)
    numbers = torch.full((ctx.data.spec.num_classes,), -1, device=ctx.place)
    numbers[torch.tensor(order, device=ctx.place)] = torch.arange(len(order), device=ctx.place)
    material = _renumbered(material_of(memory, ctx), numbers)
    objective = None
    if before is not None and settings.distil > 0:
        objective = distilled(before, settings.distil, settings.temperature)
    augmenter = ctx.augmenter(ctx.augment_spec([memory]))
    trained = fit_network(
        state, material, ctx, augmenter, place.step, place.net, classes=len(order), objective=objective
    )
    return state, trained


def _renumbered(material: Material, numbers: Tensor) -> Material:
    """The same images with other class numbers.

    Raises:
        UsageError: When their labels are probabilities.
    """

    def fetch(index: Tensor) -> Batch:
        batch = material.fetch(index)
        if batch.y.ndim != 1:
            raise dcf.UsageError("replay: expected a memory with class labels, got learned ones")
        return Batch(batch.x, numbers[batch.y])

    return replace(material, fetch=fetch)


def grown(before: dcf.NetworkState, fresh: dcf.NetworkState) -> dcf.NetworkState:
    """A larger network that begins with the weights of a smaller one; what is new stays as it was drawn.

    Args:
        before: The smaller network.
        fresh: A new one that differs from it in the number of outputs only.

    Returns:
        `fresh`, with the weights of `before` in the first rows where it has more of them.

    Raises:
        UsageError: When they differ in anything else.
    """
    values = {name: tensor.detach().clone() for name, tensor in (*fresh.params.items(), *fresh.buffers.items())}
    for name, old in (*before.params.items(), *before.buffers.items()):
        new = values.get(name)
        if new is None or new.ndim != old.ndim or new.shape[1:] != old.shape[1:] or (old.ndim and len(new) < len(old)):
            raise dcf.UsageError(f"replay: weight '{name}' of this network does not grow with the number of classes")
        if old.ndim:
            new[: len(old)] = old.detach()
        else:
            new.copy_(old)
    fresh.load(values)
    return fresh


def distilled(before: dcf.NetworkState, weight: float, temperature: float) -> Objective:
    """Cross-entropy plus staying at the answers of the network before, for the classes that it knows.

    `CE + weight T^2 KL(softmax(old / T) || softmax(new[:n] / T))` with n outputs of the old network, summed over these
    and averaged over the batch. The published code averages over both and multiplies by n, which is the same.

    Args:
        before: The network of the step before; put in evaluation mode, otherwise not changed.
        weight: beta.
        temperature: T.
    """
    before.eval()

    def objective(logits: Tensor, batch: Batch) -> Tensor:
        with torch.no_grad():
            old = before(batch.x)
        target = F.softmax(old / temperature, dim=1)
        answer = F.log_softmax(logits[:, : old.shape[1]] / temperature, dim=1)
        divergence = F.kl_div(answer, target, reduction="batchmean")
        return cross_entropy(logits, batch.y) + weight * temperature**2 * divergence

    return objective


@torch.inference_mode()
def count_hits(
    state: dcf.NetworkState, split: Split, order: Sequence[int] | None, seen: Sequence[int], own: Sequence[int]
) -> Hits:
    """Correct answers on the test images of some classes, in one pass.

    Args:
        state: The network; put in evaluation mode.
        split: Test images of the dataset of the step.
        order: Class of each output; None where output i is for class i.
        seen: Classes seen so far.
        own: Classes of the step whose images are looked at.
    """
    state.eval()
    index = torch.cat([split.of_class(c) for c in own])
    outputs = torch.tensor(list(range(len(split.counts))) if order is None else list(order), device=split.device)
    masks = {
        "all": torch.ones_like(outputs, dtype=torch.bool),
        "seen": torch.isin(outputs, torch.tensor(seen, device=split.device)),
        "step": torch.isin(outputs, torch.tensor(own, device=split.device)),
    }
    totals = {head: torch.zeros((), dtype=torch.long, device=split.device) for head in masks}
    for part in torch.split(index, 256):
        logits = state(split.images(part))
        for head, mask in masks.items():
            answers = outputs[logits.masked_fill(~mask, -torch.inf).argmax(1)]
            totals[head] += (answers == split.labels[part]).sum()
    return Hits({head: int(total) for head, total in totals.items()}, len(index))
