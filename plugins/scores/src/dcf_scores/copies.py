"""How near synthetic images are to real training images, in pixels and in a feature space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

import dcf
from dcf.data import RealData, Split
from dcf.preview import displayable, save_picture, tiled
from dcf_scores.neighbours import Nearest, area_under_curve, nearest

__all__ = ["Features", "Gallery", "save_pairs"]

#: From `(n, C, H, W)` images in the value space of the data to `(n, D)` vectors, without graph.
Features: TypeAlias = "Callable[[Tensor], Tensor]"

#: Real images that are looked at in one piece.
_PIECE = 2048
#: Fresh real images whose distances tell what is near, and the share of them that counts as near.
_FRESH, _NEAR = 1000, 0.01
#: Pairs in a row of a picture, and rows at most.
_PAIRS, _ROWS = 5, 40


@dataclass(frozen=True)
class Gallery:
    """The real training images, to be searched.

    Args:
        data: Real data.
        device: Where to search.
        generator: A CPU generator, for the choice of test images to compare with.
    """

    data: RealData
    device: torch.device
    generator: torch.Generator

    def pixels(self, images: Tensor) -> Tensor:
        """`(n, D)` pixel values, nominally in [0, 1], of images in the value space of the data."""
        return self.data.spec.space.decode(images).flatten(1)

    def search(self, images: Tensor, features: Features | None = None) -> Nearest:
        """The nearest training image to each of `(N, C, H, W)` images, by pixels or by features."""
        vectors = features or self.pixels
        queries = torch.cat([vectors(part.to(self.device)) for part in torch.split(images, _PIECE)])
        return nearest(queries, (vectors(part.to(self.device)) for part in _parts(self.data.train)))

    @cached_property
    def fresh(self) -> Tensor:
        """Distances of some test images, which nobody copied, to their nearest training image, ascending."""
        test = self.data.test
        chosen = torch.randperm(len(test), generator=self.generator)[:_FRESH]
        return self.search(test.images(chosen)).distance.sort().values.cpu()

    @property
    def near(self) -> float:
        """Distance below which an image counts as near: only one fresh image of a hundred is nearer."""
        return float(torch.quantile(self.fresh, _NEAR))

    @property
    def rounding(self) -> float:
        """Distance below which an image counts as a copy: that of rounding every pixel to 8 bits."""
        channels, height, width = self.data.spec.shape
        return float((channels * height * width) ** 0.5 / 255)

    def figures(self, images: Tensor, members: Tensor, others: Tensor) -> dict[str, float]:
        """What the distances between a set and real images say.

        Args:
            images: `(N, C, H, W)` of the set.
            members: `(n, C, H, W)` training images.
            others: `(m, C, H, W)` test images.

        Returns:
            `near` and `copies`, shares of the set; `distance_auc`, of the attack that takes a real image for a
            training image the nearer the set has one to it.
        """
        found, own = self.search(images).distance, self.pixels(images.to(self.device))
        scores = [-nearest(self.pixels(real.to(self.device)), [own]).distance for real in (members, others)]
        return {
            "near": float((found <= self.near).double().mean()),
            "copies": float((found <= self.rounding).double().mean()),
            "distance_auc": area_under_curve(*scores),
        }

    def table(self, one: dcf.SyntheticSet, features: Features | None) -> list[dict[str, Any]]:
        """For each image of a set its nearest real ones, JSON-ready.

        Distances `l2` are Euclidean over all pixel values, `rms` the same per pixel value.
        """
        images, home = one.tensors().x, self.data.train.labels
        found = self.search(images)
        size = images[0].numel() ** 0.5
        rows = [
            {"class": c, "index": i, "class_of_real": int(home[i]), "l2": d, "rms": d / size}
            for c, i, d in zip(one.targets, found.number.tolist(), found.distance.tolist(), strict=True)
        ]
        if features is not None:
            other = self.search(images, features)
            for row, i, d in zip(rows, other.number.tolist(), other.distance.tolist(), strict=True):
                row |= {"feature_index": i, "feature_class_of_real": int(home[i]), "feature_l2": d}
        return rows


def _parts(split: Split) -> Iterator[Tensor]:
    for batch in split.batches(_PIECE):
        yield batch.x


def save_pairs(one: dcf.SyntheticSet, data: RealData, index: Tensor, path: Path) -> None:
    """Write a picture of synthetic images, each left of the real one with number `index`; one class a row.

    Raises:
        RunError: When it cannot be written.
    """
    targets = torch.tensor(one.targets)
    rows = [torch.nonzero(targets == c).flatten()[:_PAIRS] for c in torch.unique(targets)[:_ROWS]]
    columns, tiles = max(map(len, rows)), []
    for row in rows:
        made, real = one.batch(row).x.cpu(), data.train.images(index.cpu()[row]).cpu()
        pairs = displayable(torch.stack([made, real], dim=1).flatten(0, 1), one.space)
        tiles += [pairs, pairs.new_zeros(2 * (columns - len(row)), *pairs.shape[1:])]
    save_picture(tiled(torch.cat(tiles), 2 * columns), path)
