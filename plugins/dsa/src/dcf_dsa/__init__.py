"""Differentiable siamese augmentation (Zhao and Bilen, ICML 2021) for dcf."""

from __future__ import annotations

from collections.abc import Iterator

import dcf

__all__ = ["dcf_components"]

_PAPER = "Zhao and Bilen, ICML 2021"


@dcf.hookimpl
def dcf_components() -> Iterator[dcf.Component]:
    """The augmentation, the protocol of its paper and the recipe of the whole method."""
    yield dcf.Component(
        kind="augmenter",
        name="dsa",
        target="dcf_dsa.augment:DSA",
        summary="one differentiable operation a call, shared by real and synthetic images",
        paper=_PAPER,
        config="dcf_dsa.options:DSAConfig",
    )
    yield dcf.Component(
        kind="protocol",
        name="vico-dsa@1",
        target="dcf_dsa:protocols/vico-dsa.toml",
        summary="SGD for 1000 epochs with augmentation, as published for DSA and DM",
        paper=_PAPER,
    )
    yield dcf.Component(
        kind="recipe",
        name="dsa",
        target="dcf_dsa:recipes/dsa.toml",
        summary="gradient matching with differentiable siamese augmentation",
        paper=_PAPER,
    )
