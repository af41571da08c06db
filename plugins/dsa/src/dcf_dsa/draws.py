"""What one call of `dsa` applies: one of its operations, or all of them."""

from __future__ import annotations

from collections.abc import Sequence

from dcf.operations.draws import Draw, Source, draw_family
from dcf_dsa.options import DSAConfig

__all__ = ["draw_strategy"]


def draw_strategy(rows: int, size: tuple[int, int], config: DSAConfig, source: Source) -> Draw:
    """Draw what one call applies (Zhao and Bilen, ICML 2021).

    Args:
        rows: Number of images, or 1 for values shared by all.
        size: `(H, W)`.
        config: Operations, mode and strengths.
        source: Random numbers; in mode `single` the choice is the first draw.
    """
    chosen: Sequence[str] = config.ops
    if config.mode == "single":
        chosen = [chosen[int(source.integers(0, len(chosen), 1))]]
    return [item for family in chosen for item in draw_family(family, rows, size, config, source)]
