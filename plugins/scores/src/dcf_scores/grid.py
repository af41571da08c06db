"""The 720 ConvNets of the search space of the literature; free of torch."""

from __future__ import annotations

from itertools import product
from typing import Final

__all__ = ["ACTIVATIONS", "DEPTHS", "NORMS", "POOLINGS", "WIDTHS", "architectures"]

WIDTHS: Final = (32, 64, 128, 256)
DEPTHS: Final = (1, 2, 3, 4)
ACTIVATIONS: Final = ("sigmoid", "relu", "leakyrelu")
NORMS: Final = ("none", "batch", "layer", "instance", "group")
POOLINGS: Final = ("none", "max", "avg")


def architectures(max_width: int = WIDTHS[-1]) -> list[str]:
    """Network specs of all ConvNets of the grid, in a fixed order: 4 x 4 x 3 x 5 x 3 = 720.

    Source: Zhao et al., ICLR 2021, section 4.3.

    Args:
        max_width: Leaves out wider ones.

    Example:
        >>> len(architectures()), len(architectures(max_width=64))
        (720, 360)
    """
    return [
        f"convnet:width={width},depth={depth},norm={norm},activation={activation},pooling={pooling}"
        for width, depth, activation, norm, pooling in product(WIDTHS, DEPTHS, ACTIVATIONS, NORMS, POOLINGS)
        if width <= max_width
    ]
