"""The losses that keep the images of one basis apart, and those that train the adversary which judges them.

All take embeddings in pairs: `(2N, F)`, rows 0 to N-1 of what one hallucinator made of N bases, rows N to 2N-1 of what
another made of the same. Source: Liu et al., NeurIPS 2022, section 3.3, with the values of the released code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf.training import cross_entropy

__all__ = ["adversarial", "adversary_loss", "contrastive", "likelihood", "similarity"]


def similarity(embeddings: Tensor) -> Tensor:
    """`(N,)` cosines in [-1, 1] of the two embeddings of each basis.

    Args:
        embeddings: `(2N, F)` in pairs.
    """
    first, second = embeddings.chunk(2)
    return F.cosine_similarity(first, second)


def adversarial(embeddings: Tensor) -> Tensor:
    """How alike the two images of a basis are: (cos + 1) / 2, averaged over bases. What is stored minimises it.

    Args:
        embeddings: `(2N, F)` in pairs.

    Returns:
        Scalar in [0, 1].
    """
    return ((similarity(embeddings) + 1) / 2).mean()


def likelihood(embeddings: Tensor) -> Tensor:
    """How unlike they are: (1 - cos) / 2, averaged over bases. The adversary minimises it.

    Args:
        embeddings: `(2N, F)` in pairs.

    Returns:
        Scalar in [0, 1].
    """
    return ((1 - similarity(embeddings)) / 2).mean()


def contrastive(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss (Khosla et al., NeurIPS 2020, equation 2) of embeddings scaled to length 1.

    For each image: minus the logarithm of its softmax over all other images, averaged over the others of its class.

    Args:
        embeddings: `(2N, F)` in pairs, of any length.
        labels: `(N,)` class of each basis; so each image has at least one other of its class.
        temperature: What cosines are divided by.

    Returns:
        Scalar, averaged over the 2N images.
    """
    unit, classes = F.normalize(embeddings), labels.repeat(2)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = (unit @ unit.mT / temperature).masked_fill(itself, -torch.inf)
    log_chance = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    alike = (classes[:, None] == classes) & ~itself
    # masked_fill and not a product with the mask: the diagonal is infinite.
    return -(log_chance.masked_fill(~alike, 0).sum(1) / alike.sum(1)).mean()


def adversary_loss(
    embeddings: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    cls: float,
    likely: float,
    contrast: float,
    temperature: float,
) -> Tensor:
    """What the adversary is trained by: it shall know classes, and see through how a basis is shown.

    Args:
        embeddings: `(2N, F)` in pairs.
        logits: `(2N, K)` of the same images.
        labels: `(N,)` class of each basis.
        cls: Weight of the cross-entropy, averaged over the 2N images.
        likely: Weight of `likelihood`.
        contrast: Weight of `contrastive`.
        temperature: Of the latter.

    Returns:
        Scalar.
    """
    return (
        cls * cross_entropy(logits, labels.repeat(2))
        + likely * likelihood(embeddings)
        + contrast * contrastive(embeddings, labels, temperature)
    )
