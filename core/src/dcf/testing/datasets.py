"""Checks of datasets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcf.data.real import RealData, Split
from dcf.errors import DataError
from dcf.runconfig import RunConfig
from dcf.spec import parse_one
from dcf.testing.subject import Check, CheckSkipped, Subject, require

__all__ = ["CHECKS", "exercise"]


def load(subject: Subject) -> RealData:
    """The data.

    Raises:
        CheckSkipped: When they are not on this machine.
    """
    try:
        data: RealData = subject.make().load()
    except DataError as error:
        raise CheckSkipped(f"the data cannot be read here: {error}") from None
    return data


def splits(data: RealData) -> list[tuple[str, Split]]:
    """Both splits with their names."""
    return [("train", data.train), ("test", data.test)]


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """A few images of every class, and all labels."""
    data = load(subject).to(device)
    index = data.train.sample(2, torch.Generator().manual_seed(seed))
    return [data.train.images(index), data.train.labels, data.test.labels]


def check_spec_fits_the_images(subject: Subject) -> None:
    """Images have the promised shape, are finite float32, and the value space has one constant a channel."""
    data = load(subject)
    require(len(data.spec.space.mean) == data.spec.channels, "the value space has another number of channels")
    require(len(set(data.spec.classes)) == len(data.spec.classes), "two classes have the same name")
    for name, split in splits(data):
        images = split.images(torch.arange(min(len(split), 8)))
        require(tuple(images.shape[1:]) == data.spec.shape, f"{name}: images are not of shape {data.spec.shape}")
        require(images.dtype == torch.float32, f"{name}: expected float32 images, got {images.dtype}")
        require(bool(torch.isfinite(images).all()), f"{name}: images are NaN or infinite")


def check_labels_are_in_range(subject: Subject) -> None:
    """Labels are class indices, their counts are right, and every class can be learned."""
    data = load(subject)
    for name, split in splits(data):
        require(split.labels.dtype == torch.long, f"{name}: expected int64 labels, got {split.labels.dtype}")
        require(len(split.labels) == len(split), f"{name}: {len(split.labels)} labels for {len(split)} images")
        counted = torch.bincount(split.labels.cpu(), minlength=data.spec.num_classes)
        require(torch.equal(counted, split.counts), f"{name}: counts are not those of the labels")
    require(int(data.train.counts.min()) > 0, "a class has no training image")


def check_splits_are_separate(subject: Subject) -> None:
    """Train and test are different objects, and what they hand out is a copy."""
    data = load(subject)
    require(data.train is not data.test and data.train.store is not data.test.store, "train and test are one")
    for name, split in splits(data):
        if not len(split):
            continue
        first = split.images(torch.tensor([0]))
        kept = first.clone()
        first += 1
        require(torch.equal(split.images(torch.tensor([0])), kept), f"{name}: changing a batch changes the data")


def check_checksum_is_stable(subject: Subject) -> None:
    """Loading twice gives the same checksum, and the same id."""
    first, second = load(subject), load(subject)
    require(first.checksum == second.checksum, "loading twice gives different data")
    require(first.id == second.id, f"loading twice gives the ids '{first.id}' and '{second.id}'")


def check_facts_are_usable(subject: Subject) -> None:
    """The id is a spec of this dataset, the origin is told, hints are settings of a run."""
    data = load(subject)
    name = parse_one(data.id).name
    require(
        name in (subject.component.name, "python"), f"expected an id of '{subject.component.name}', got '{data.id}'"
    )
    require(bool(data.source.strip()) and data.source != "unknown", "the data do not say where they come from")
    unknown = sorted(set(data.hints) - set(RunConfig.model_fields))
    require(not unknown, f"hints that are no setting of a run: {', '.join(unknown)}")


CHECKS: Sequence[Check] = (
    check_spec_fits_the_images,
    check_labels_are_in_range,
    check_splits_are_separate,
    check_checksum_is_stable,
    check_facts_are_usable,
)
