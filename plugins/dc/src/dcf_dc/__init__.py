"""Gradient matching (DC) for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Zhao, Mopuri and Bilen, ICLR 2021"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the matcher, its recipe, and how it is evaluated."""
    yield dcf.Component(
        "matcher",
        "dc",
        "dcf_dc.matcher:DC",
        "match each class's gradients, layer by layer",
        PAPER,
        "dcf_dc.options:DCConfig",
    )
    yield dcf.Component(
        "augmenter",
        "dc-eval",
        "dcf_dc.augment:DCEvaluationAugment",
        "one of crop, scale and rotate for each image; where networks are trained only",
        PAPER,
        "dcf_dc.options:EvaluationAugmentConfig",
    )
    yield dcf.Component("protocol", "vico-dc@1", "dcf_dc:protocols/vico-dc.toml", "300 epochs, no augmentation", PAPER)
    yield dcf.Component(
        "protocol",
        "vico-dc@2",
        "dcf_dc:protocols/vico-dc-2.toml",
        "300 epochs, without augmentation except on MNIST, as published for DC",
        PAPER,
    )
    yield dcf.Component(
        "recipe", "dc", "dcf_dc:recipes/dc.toml", "gradient matching with the published settings", PAPER
    )
