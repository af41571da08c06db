"""The augmenter `dsa`."""

from __future__ import annotations

import torch

from dcf.operations.apply import DrawnOperations
from dcf.operations.draws import Draw, GeneratorSource
from dcf_dsa.draws import draw_strategy
from dcf_dsa.options import DIGIT_STRATEGY, FULL_STRATEGY, DSAConfig

__all__ = ["DIGIT_STRATEGY", "DSA", "FULL_STRATEGY"]


class DSA(DrawnOperations):
    """Differentiable siamese augmentation (Zhao and Bilen, ICML 2021).

    A draw is a list of `(operation, values)`, the values a CPU tensor with one row an image, or one row for
    all when it is shared. In mode `single` one of `ops` is chosen for the whole call, also where the values
    differ by image.
    """

    Config = DSAConfig

    @property
    def siamese(self) -> bool:
        """Whether matching uses one draw for real and synthetic images."""
        return bool(self.config.siamese)

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Draw:
        """Draw the operations and values for one call.

        Args:
            n: Number of images; irrelevant when `shared`.
            shape: `(C, H, W)`.
            generator: A CPU generator.
            shared: One row of values for a batch of any size.
        """
        return draw_strategy(1 if shared else n, shape[1:], self.config, GeneratorSource(generator))
