"""Contrastive gradient matching (DCC) for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Lee et al., ICML 2022"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the matcher, the evaluator and the recipes."""
    yield dcf.Component(
        "matcher",
        "dcc",
        "dcf_dcc.matcher:DCC",
        "match gradients averaged over classes, after a class-wise warm-up",
        PAPER,
        "dcf_dcc.options:DCCConfig",
    )
    yield dcf.Component(
        "evaluator",
        "kernel-velocity",
        "dcf_dcc.velocity:KernelVelocity",
        "how fast the tangent kernel of a network moves while it learns from the set",
        "Fort et al., NeurIPS 2020, as used by " + PAPER,
        "dcf_dcc.options:VelocityConfig",
    )
    yield dcf.Component("recipe", "dcc", "dcf_dcc:recipes/dcc.toml", "contrastive gradient matching", PAPER)
    yield dcf.Component(
        "recipe", "dsac", "dcf_dcc:recipes/dsac.toml", "contrastive gradient matching with siamese augmentation", PAPER
    )
