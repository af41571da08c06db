"""What an accuracy matrix says. Torch-free.

`A[t][j]` is the accuracy on the test images of group j after step t, for j <= t, both from 0; a fraction in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TypeAlias

__all__ = ["Matrix", "accuracy_after", "average_incremental", "backward_transfer", "forgetting", "require_matrix"]

Matrix: TypeAlias = Sequence[Sequence[float]]


def require_matrix(matrix: Matrix) -> None:
    """Make sure that row t has t + 1 values.

    Raises:
        ValueError: When it has not.
    """
    if not matrix or any(len(row) != t + 1 for t, row in enumerate(matrix)):
        raise ValueError(f"expected row t of an accuracy matrix to have t + 1 values, got {[len(r) for r in matrix]}")


def accuracy_after(matrix: Matrix, counts: Sequence[int]) -> list[float]:
    """`A_t`: accuracy on all test images of the classes seen after each step; every image weighs the same.

    Args:
        matrix: `A[t][j]`.
        counts: Test images of each group.
    """
    require_matrix(matrix)
    return [
        sum(a * n for a, n in zip(row, counts, strict=False)) / sum(counts[: t + 1]) for t, row in enumerate(matrix)
    ]


def average_incremental(accuracies: Sequence[float]) -> float:
    """Mean of `A_t` over all steps."""
    return fmean(accuracies)


def forgetting(matrix: Matrix) -> float | None:
    """Mean over the groups but the last of the best accuracy before the last step minus that after it.

    `F = mean_{j < T} (max_{j <= t < T} A[t][j] - A[T][j])` (Chaudhry et al., ECCV 2018), T the last step. None where
    there is one step only.
    """
    require_matrix(matrix)
    last = len(matrix) - 1
    if not last:
        return None
    return fmean(max(matrix[t][j] for t in range(j, last)) - matrix[last][j] for j in range(last))


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over the groups but the last of the accuracy after the last step minus that right after learning.

    `BWT = mean_{j < T} (A[T][j] - A[j][j])` (Lopez-Paz and Ranzato, NeurIPS 2017). None where there is one step only.
    """
    require_matrix(matrix)
    last = len(matrix) - 1
    return fmean(matrix[last][j] - matrix[j][j] for j in range(last)) if last else None
