"""The mathematics of soft labels: onto the simplex, from probabilities to what is stored, and back."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from dcf_labels.options import Form

__all__ = ["distributions", "encode", "onehot", "onto_simplex"]

#: Probability that one-hot logits leave to the other classes together; at 0 no gradient would pass the softmax.
_REST: Final = 0.01
#: Smallest probability that has a logit.
_LEAST: Final = 1e-12


def onto_simplex(values: Tensor) -> Tensor:
    """Rows clamped to what is not negative and divided by their sum (Bohdal et al., 2020).

    A row without any positive entry, for which that is undefined, becomes uniform; NaN counts as 0. A row that sums to
    1 within rounding stays as it is, so that doing it again changes nothing.

    Args:
        values: `(N, K)`, anything.

    Returns:
        `(N, K)` of the same dtype; each row sums to 1.
    """
    most = torch.finfo(values.dtype).max
    positive = torch.nan_to_num(values, nan=0.0, posinf=most, neginf=0.0).clamp(min=0).double()
    largest = positive.amax(1, keepdim=True)
    # Divided by the largest first: the sum of the others can neither overflow nor vanish.
    scaled = positive / torch.where(largest > 0, largest, 1)
    rows = scaled / scaled.sum(1, keepdim=True).clamp(min=1)
    rows = torch.where(largest > 0, rows, 1 / values.shape[1])
    settled = (positive.sum(1, keepdim=True) - 1).abs() <= 8 * torch.finfo(values.dtype).eps
    return torch.where(settled, positive, rows).to(values.dtype)


def distributions(stored: Tensor, form: Form) -> Tensor:
    """Labels of what is stored, differentiable.

    Probabilities are brought onto the simplex once more, because a file may have rounded them. That counts as adding a
    constant: the gradient of what is stored is the gradient of the labels, as published; also of entries that are 0,
    which otherwise could never grow again.

    Args:
        stored: `(N, K)` probabilities or logits, finite.
        form: Which of the two.

    Returns:
        `(N, K)` probabilities.
    """
    if form == "logits":
        return F.softmax(stored, dim=1)
    constant = stored.detach()
    return onto_simplex(constant) + (stored - constant)


def encode(labels: Tensor, form: Form) -> Tensor:
    """What is stored of labels.

    Args:
        labels: `(N, K)` probabilities; rows need not sum to 1.
        form: Probabilities, or logits, which are their logarithms; probabilities below 1e-12 count as that.

    Returns:
        `(N, K)`.
    """
    rows = onto_simplex(labels)
    return rows if form == "probabilities" else rows.clamp(min=_LEAST).log()


def onehot(classes: Tensor, num_classes: int, form: Form) -> Tensor:
    """Labels that say the class of an image and nothing else.

    Args:
        classes: `(N,)` class indices.
        num_classes: K.
        form: As logits, the other classes share 0.01 instead of 0, or nothing could be learned.

    Returns:
        `(N, K)` float32 probabilities, on the device of `classes`.
    """
    rows = F.one_hot(classes, num_classes).float()
    if form == "probabilities" or num_classes == 1:
        return rows
    return rows * (1 - _REST) + (1 - rows) * (_REST / (num_classes - 1))
