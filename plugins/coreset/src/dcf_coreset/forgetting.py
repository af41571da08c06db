"""The selector `forgetting`: what a training learns and loses again."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

import dcf
from dcf.data import RealData
from dcf_coreset.network import Auto, Plan, fit, kept, plan_of
from dcf_coreset.options import TrainingConfig
from dcf_coreset.ordering import score_order
from dcf_coreset.scores import ForgettingCounter, forgetting_scores
from dcf_coreset.selection import Coreset, Ranking, record_of

__all__ = ["AUTO_FORGETTING", "Forgetting", "count_forgetting"]

#: `epochs=auto`: an image must be visited several times to be forgotten.
AUTO_FORGETTING: Final = Auto(steps=1200, least=5, most=40)


def count_forgetting(data: RealData, plan: Plan) -> dict[str, Tensor]:
    """Train a network and count how often it forgets each training image.

    Whether an image is right is looked at when it is visited, in the mini-batch and before the step, as published.

    Args:
        data: The real data.
        plan: How the network is trained.

    Returns:
        `forgotten` `(N,)` counts, `learned` `(N,)` whether an image ever was right, and `accuracy` of the last epoch.

    Raises:
        NonFiniteError: When the training diverges.
    """
    split, counter = data.train, ForgettingCounter(len(data.train), data.train.device)
    visited: list[Tensor] = []

    def fetch(index: Tensor) -> dcf.Batch:
        visited[:] = [index]
        return dcf.Batch(split.images(index), split.labels[index])

    def watch(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        index = visited[0]
        counter.visit(index, logits.detach().argmax(1) == split.labels[index])

    _, trained = fit(data, plan, fetch, watch)
    accuracy = torch.as_tensor(trained.accuracy)
    return {"forgotten": counter.forgotten, "learned": counter.learned, "accuracy": accuracy}


class Forgetting(Coreset):
    """Keep the images that are forgotten most often; those that are never learned count as forgotten without end.

    Uses no randomness of the run.
    """

    Config = TrainingConfig

    def prepare(self, data: RealData, generator: torch.Generator) -> tuple[Ranking, dict[str, Any]]:
        """Rank by how often an image is forgotten."""
        plan = plan_of(self.config, len(data.train), AUTO_FORGETTING)
        found = kept(data, plan, "forgetting", lambda: count_forgetting(data, plan))
        scores = forgetting_scores(found.tensors["forgotten"], found.tensors["learned"]).to(data.train.device)
        told = record_of(plan, [found.sha256], [float(found.tensors["accuracy"])])
        return (lambda members, count: score_order(scores[members], count)), told
