"""Low-rank storage of condensed images for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Yang et al., NeurIPS 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the parameterization and its recipes."""
    yield dcf.Component(
        "param",
        "lowrank",
        "dcf_lowrank.param:LowRank",
        "store each channel as the product of two thin factors: more images at equal floats",
        PAPER,
        "dcf_lowrank.options:LowRankConfig",
    )
    yield dcf.Component(
        "recipe",
        "lodc",
        "dcf_lowrank:recipes/lodc.toml",
        "gradient matching of low-rank images with the published settings",
        PAPER,
    )
    yield dcf.Component(
        "recipe",
        "lodsa",
        "dcf_lowrank:recipes/lodsa.toml",
        "gradient matching of low-rank images with siamese augmentation and the published settings",
        PAPER,
    )
    yield dcf.Component(
        "recipe",
        "lodm",
        "dcf_lowrank:recipes/lodm.toml",
        "distribution matching of low-rank images with the published settings",
        PAPER,
    )
