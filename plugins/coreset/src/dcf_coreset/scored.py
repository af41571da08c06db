"""Selectors that score each image by itself: `least-confidence`, `entropy`, `margin`, `el2n`, `grand`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dcf.data import RealData
from dcf_coreset import scores
from dcf_coreset.network import AUTO, Auto, TrainedNetwork, plan_of, trained_network
from dcf_coreset.options import EnsembleConfig, TrainingConfig
from dcf_coreset.ordering import score_order
from dcf_coreset.selection import Coreset, Ranking, record_of

__all__ = ["EARLY", "EL2N", "Entropy", "GraNd", "LeastConfidence", "Margin", "Scored"]

#: `epochs=auto` of scores that are taken early in training.
EARLY = Auto(steps=400, least=1, most=10)


class Scored(Coreset):
    """Base: keep the images of a class with the highest scores, averaged over one or more networks.

    None of them uses the randomness of the run.
    """

    Config = TrainingConfig

    #: What `epochs=auto` stands for.
    auto: ClassVar[Auto] = AUTO

    #: Whether the training comes to its end, with a step size that falls to 0.
    finished: ClassVar[bool] = True

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """`(n,)` float64 scores of images with embeddings `(n, F)` and class indices `(n,)`; high ones are kept."""
        raise NotImplementedError

    def prepare(self, data: RealData, generator: torch.Generator) -> tuple[Ranking, dict[str, Any]]:
        """Rank by the mean score."""
        plans = [
            plan_of(self.config, len(data.train), self.auto, self.finished, number)
            for number in range(getattr(self.config, "networks", 1))
        ]
        nets = [trained_network(data, plan) for plan in plans]

        def rank(members: Tensor, count: int) -> Tensor:
            labels = data.train.labels[members]
            each = [self.score(net, net.embed(data.train, members), labels) for net in nets]
            return score_order(torch.stack(each).mean(0), count)

        return rank, record_of(plans[0], [n.sha256 for n in nets], [n.accuracy for n in nets])


class LeastConfidence(Scored):
    """Keep the images whose likeliest class has the lowest probability."""

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """See `scores.least_confidence`."""
        return scores.least_confidence(net.classify(features))


class Entropy(Scored):
    """Keep the images whose class probabilities have the highest entropy."""

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """See `scores.entropy`."""
        return scores.entropy(net.classify(features))


class Margin(Scored):
    """Keep the images whose two likeliest classes are closest in probability."""

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """See `scores.margin`."""
        return scores.margin(net.classify(features))


class Early(Scored):
    """Base of scores that are averaged over networks in the first epochs of a training."""

    Config = EnsembleConfig

    auto: ClassVar[Auto] = EARLY
    finished: ClassVar[bool] = False


class EL2N(Early):
    """Keep the images with the largest norm of the error, averaged over networks."""

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """See `scores.error_norm`."""
        return scores.error_norm(net.classify(features), labels)


class GraNd(Early):
    """Keep the images with the largest gradient of the last layer, averaged over networks."""

    def score(self, net: TrainedNetwork, features: Tensor, labels: Tensor) -> Tensor:
        """See `scores.gradient_norm`.

        Raises:
            UsageError: When the network does not end in a linear layer.
        """
        return scores.gradient_norm(features, net.classify(features), labels, net.head_has_bias)
