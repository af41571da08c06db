"""In which order the images of one class are taken: herding, farthest-first, clusters, scores.

All functions look at one class, use float64 whatever they are given, and break ties by the lower row.
"""

from __future__ import annotations

import math
import warnings

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

__all__ = ["herding_order", "k_center_order", "k_means_order", "nearest_to_centres", "score_order"]


def herding_order(features: Tensor, count: int) -> Tensor:
    """Take what brings the mean of the taken features closest to the mean of all (Rebuffi et al., CVPR 2017, alg. 4).

    After t picks with sum s, the next is `argmin_i || (t + 1) mu - s - f_i ||` over the rows not yet taken.

    Args:
        features: `(N, F)`.
        count: Rows to take, at most N.

    Returns:
        `(count,)` row numbers, in the order taken.

    Raises:
        ValueError: When there are fewer rows.
    """
    features = _rows(features, count)
    mean, total = features.mean(0), torch.zeros_like(features[:1])
    taken, picks = features.new_zeros(len(features)), []
    for step in range(count):
        distance = ((step + 1) * mean - total - features).square().sum(1)
        pick = (distance + taken).argmin().unsqueeze(0)
        taken[pick] = math.inf
        total = total + features[pick]
        picks.append(pick)
    return _joined(picks, features)


def k_center_order(features: Tensor, count: int, start: Tensor) -> Tensor:
    """Farthest-first traversal: take the row farthest from all taken ones (Sener and Savarese, ICLR 2018, alg. 1).

    The largest distance of any row to its nearest taken one is at most twice the smallest possible.

    Args:
        features: `(N, F)`, compared by Euclidean distance.
        count: Rows to take, `start` included, at most N.
        start: `(n,)` different row numbers that are taken first, in this order; at least one.

    Returns:
        `(count,)` row numbers, in the order taken.

    Raises:
        ValueError: When there are fewer rows, or nothing to start with.
    """
    features = _rows(features, count)
    if not len(start):
        raise ValueError("expected at least one row to start with")
    picks = list(torch.split(start.to(features.device), 1))
    nearest = features.new_full((len(features),), math.inf)
    for pick in picks:
        nearest = _nearer(nearest, features, pick)
    while len(picks) < count:
        picks.append(nearest.argmax().unsqueeze(0))
        nearest = _nearer(nearest, features, picks[-1])
    return _joined(picks[:count], features)


def _nearer(nearest: Tensor, features: Tensor, pick: Tensor) -> Tensor:
    """`(N,)` squared distance to the nearest taken row, once `pick` is taken; -1 for the taken ones."""
    distance = (features - features[pick]).square().sum(1)
    distance[pick] = -1
    return torch.minimum(nearest, distance)


def k_means_order(features: Tensor, count: int, seed: int) -> Tensor:
    """Cluster with k-means, and take the row nearest to each centre.

    Args:
        features: `(N, F)`, compared by Euclidean distance.
        count: Clusters, at most N.
        seed: Of k-means++, below 2**32.

    Returns:
        `(count,)` different row numbers, in the order of the centres.

    Raises:
        ValueError: When there are fewer rows.
    """
    features = _rows(features, count)
    if count in (0, len(features)):
        return torch.arange(count, device=features.device)
    with warnings.catch_warnings():
        # Copies of one image are fewer clusters than asked for; each centre finds an image of its own all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, random_state=seed, n_init=1).fit(features.cpu().numpy())
    return nearest_to_centres(features, torch.from_numpy(found.cluster_centers_).to(features))


def nearest_to_centres(features: Tensor, centres: Tensor) -> Tensor:
    """The row nearest to each centre, in order; a row that an earlier centre has is left to it.

    Args:
        features: `(N, F)`.
        centres: `(k, F)` with k <= N.

    Returns:
        `(k,)` different row numbers.
    """
    taken, picks = features.new_zeros(len(features)), []
    for centre in centres:
        pick = ((features - centre).square().sum(1) + taken).argmin().unsqueeze(0)
        taken[pick] = math.inf
        picks.append(pick)
    return _joined(picks, features)


def score_order(scores: Tensor, count: int) -> Tensor:
    """The rows with the highest scores, highest first.

    Args:
        scores: `(N,)`; infinite ones are allowed.
        count: Rows to take, at most N.

    Raises:
        ValueError: When there are fewer rows.
    """
    if count > len(scores):
        raise ValueError(f"expected at most {len(scores)} rows to take, got {count}")
    return scores.argsort(descending=True, stable=True)[:count]


def _rows(features: Tensor, count: int) -> Tensor:
    if count > len(features):
        raise ValueError(f"expected at most {len(features)} rows to take, got {count}")
    return features.to(torch.float64)


def _joined(picks: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(picks) if picks else torch.empty(0, dtype=torch.int64, device=like.device)
