"""The augmenter `idc`."""

from __future__ import annotations

import torch

from dcf.operations.apply import DrawnOperations
from dcf.operations.draws import Draw, GeneratorSource, Source, draw_family
from dcf_idc.options import IDCAugmentConfig

__all__ = ["IDCAugment", "draw_composition"]


class IDCAugment(DrawnOperations):
    """Flip, colour and cutout always, and one of crop, scale and rotate (Kim et al., ICML 2022, released code).

    In matching one draw is shared by all images of a class, real and synthetic; where networks are trained every image
    has values of its own, but all of a batch get the same operation of the three.
    """

    Config = IDCAugmentConfig

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Draw:
        """Draw the operations and values for one call.

        Args:
            n: Number of images; irrelevant when `shared`.
            shape: `(C, H, W)`.
            generator: A CPU generator.
            shared: One row of values for a batch of any size.
        """
        return draw_composition(1 if shared else n, shape[1:], self.config, GeneratorSource(generator))


def draw_composition(rows: int, size: tuple[int, int], config: IDCAugmentConfig, source: Source) -> Draw:
    """Draw what one call applies: flip, then colour, then one of crop, scale and rotate, then cutout.

    Args:
        rows: Number of images, or 1 for values shared by all.
        size: `(H, W)`.
        config: Operations, those that are not among them are left out, and strengths.
        source: Random numbers.
    """
    moves = [family for family in config.ops if family in ("crop", "scale", "rotate")]
    chosen = [moves[int(source.integers(0, len(moves), 1))]] if moves else []
    order = [*(f for f in ("flip", "color") if f in config.ops), *chosen, *(f for f in ("cutout",) if f in config.ops)]
    return [item for family in order for item in draw_family(family, rows, size, config, source)]
