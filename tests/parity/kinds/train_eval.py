"""The published evaluation: train on a synthetic set with one drop of the step size, then test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tests.parity.case import Case
from tests.parity.replay import augmenter, draws, network, parameters
from torch import Tensor

from dcf.networks.base import NetworkState
from dcf.training import Augmentation, Schedule, Trained, evaluate_accuracy, train
from dcf.types import Batch


class Split:
    """Test images as `evaluate_accuracy` reads them, in the precision of the case."""

    def __init__(self, case: Case) -> None:
        self.batch = Batch(case["test_images"], case["test_labels"])

    def __len__(self) -> int:
        return len(self.batch.y)

    def batches(self, batch: int) -> Iterator[Batch]:
        """All images in order, at most `batch` at a time."""
        for x, y in zip(self.batch.x.split(batch), self.batch.y.split(batch), strict=True):
            yield Batch(x, y)


def compute(case: Case) -> dict[str, Tensor]:
    """`net/*`, `test_logits`, `train_acc` and `test_acc`."""
    state = network(case)
    trained = fit(case, state)
    split: Any = Split(case)
    accuracy = evaluate_accuracy(state, split)
    state.eval()
    with torch.no_grad():
        logits = state(case["test_images"])
    return {
        "out/test_logits": logits,
        "out/train_acc": trained.accuracy,
        "out/test_acc": torch.tensor(accuracy.value, dtype=case.dtype),
        **parameters(case, state.params, "out/net"),
    }


def fit(case: Case, state: NetworkState) -> Trained:
    """Train on `images` in the recorded orders, with the recorded draws."""
    hyper, recorded = case.hyper, draws(case)
    augmentation = Augmentation(augmenter(case), lambda step, _: recorded[step]) if recorded else None
    return train(
        state,
        lambda index: Batch(case["images"][index], case["labels"][index]),
        lambda epoch: case["order"][epoch],
        Schedule.step_restart(hyper["lr"], hyper["epochs_arg"]),
        batch=hyper["batch"],
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        augmentation=augmentation,
        tally=True,
    )
