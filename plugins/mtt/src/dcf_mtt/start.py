"""Starting values that experts give: real images they classify correctly, and what they say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

import dcf
from dcf.data import Split
from dcf.seeding import generator
from dcf.unroll import stateless

__all__ = ["agreed_labels", "classify", "images_known_to_experts"]

_BATCH = 256


@torch.no_grad()
def classify(net: dcf.NetworkState, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """`(n, K)` logits of `(n, C, H, W)` images; batch norms use the images' own statistics, as experts keep none."""
    logits = stateless(net)
    return torch.cat([logits(part, weights) for part in torch.split(images, _BATCH)])


def images_known_to_experts(
    net: dcf.NetworkState, experts: Iterable[Mapping[str, Tensor]], split: Split, view_class: Tensor, seed: int
) -> Tensor:
    """Random training images that an expert classifies correctly (Guo et al., ICLR 2024).

    The first expert is asked first, the others only for classes of which it knows too few images. A class that none
    knows enough images of is filled up with random ones.

    Args:
        net: Architecture of the experts.
        experts: Weights of each, in the order in which they are asked.
        split: Training images.
        view_class: `(V,)` class wanted at each place.
        seed: Of the order in which images are tried.

    Returns:
        `(V,)` image numbers on the device of the split.
    """
    classes, counts = torch.unique(view_class, return_counts=True)
    wanted = dict(zip(classes.tolist(), counts.tolist(), strict=True))
    orders = {c: _shuffled(split.of_class(c), generator(seed, "start images", c)) for c in wanted}
    found = {c: torch.empty(0, dtype=torch.long, device=split.device) for c in wanted}
    for weights in experts:
        short = [c for c in wanted if len(found[c]) < wanted[c]]
        if not short:
            break
        for c in short:
            known = _known(net, weights, split, orders[c], c, wanted[c])
            found[c] = torch.cat([found[c], known[~torch.isin(known, found[c])]])[: wanted[c]]
    index = torch.empty(len(view_class), dtype=torch.long, device=split.device)
    for c, n in wanted.items():
        rest = orders[c][~torch.isin(orders[c], found[c])]
        chosen = torch.cat([found[c], rest, *[orders[c]] * (n // len(orders[c]))])
        index[torch.nonzero(view_class == c).flatten()] = chosen[:n]
    return index


def _shuffled(index: Tensor, draw: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=draw).to(index.device)]


def _known(
    net: dcf.NetworkState, weights: Mapping[str, Tensor], split: Split, order: Tensor, c: int, wanted: int
) -> Tensor:
    """The first images of an order that are classified as c; looks no further than it must."""
    known: list[Tensor] = []
    for part in torch.split(order, max(32, 2 * wanted)):
        known.append(part[classify(net, weights, split.images(part)).argmax(1) == c])
        if sum(map(len, known)) >= wanted:
            break
    return torch.cat(known)[:wanted]


def agreed_labels(logits: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Soft labels of images: the softmax of the mean logits of those experts that classify an image correctly.

    Where no expert does, it is the mean of all (the released code divides by zero).

    Args:
        logits: `(V, K)` of each expert.
        classes: `(V,)` true classes.

    Returns:
        `(V, K)` probabilities.
    """
    every = torch.stack(list(logits))
    right = (every.argmax(2) == classes).to(every.dtype)
    right = torch.where(right.sum(0) > 0, right, torch.ones_like(right))
    return torch.softmax((every * right[:, :, None]).sum(0) / right.sum(0)[:, None], dim=1)
