"""Hallucinator-basis factorisation (HaBa) for dcf: bases that a few shared networks turn into images."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Liu et al., NeurIPS 2022"
LOWRANK = "Yang et al., NeurIPS 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the parameterization, the protocol and the recipes."""
    yield dcf.Component(
        "param",
        "haba",
        "dcf_haba.param:Haba",
        "store bases, and a few small networks for all classes that each make another image of a basis",
        PAPER,
        "dcf_haba.options:HabaConfig",
    )
    yield dcf.Component(
        "protocol",
        "haba@1",
        "dcf_haba:protocols/haba.toml",
        "SGD for 1000 epochs with augmentation and the learned step size, each basis in one random version an epoch",
        PAPER,
    )
    yield dcf.Component(
        "recipe", "haba", "dcf_haba:recipes/haba.toml", "trajectory matching of bases and hallucinators", PAPER
    )
    yield dcf.Component(
        "recipe", "lohaba", "dcf_haba:recipes/lohaba.toml", "the same with bases stored as thin factors", LOWRANK
    )
