"""Soft labels and label distillation for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Bohdal, Yang and Hospedales, 2020"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the parameterization, the matcher, its recipe and its evaluation protocol."""
    yield dcf.Component(
        "param",
        "soft-labels",
        "dcf_labels.param:SoftLabels",
        "learn the labels of images that are stored in any way; also as --labels soft",
        PAPER,
        "dcf_labels.options:SoftLabelsConfig",
    )
    yield dcf.Component(
        "matcher",
        "ld",
        "dcf_labels.matcher:LD",
        "learn labels for fixed images, so that training on them serves real ones",
        PAPER,
        "dcf_labels.options:LDConfig",
    )
    yield dcf.Component(
        "protocol",
        "ld@1",
        "dcf_labels:protocols/ld.toml",
        "Adam, for as many steps as the labels were learned for",
        PAPER,
    )
    yield dcf.Component(
        "recipe", "ld", "dcf_labels:recipes/ld.toml", "label distillation with the published settings", PAPER
    )
