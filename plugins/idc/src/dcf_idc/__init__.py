"""Condensation by multi-formation (IDC) for dcf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import dcf

__all__ = ["dcf_components"]

_PAPER: Final = "Kim et al., ICML 2022"
_LOW_RANK: Final = "Yang et al., NeurIPS 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the matcher, the parameterization, both augmenters, the protocol and the recipes."""
    yield dcf.Component(
        "matcher",
        "idc",
        "dcf_idc.matcher:IDC",
        "match gradients or features of networks that are trained on the real data meanwhile",
        _PAPER,
        "dcf_idc.options:IDCConfig",
    )
    yield dcf.Component(
        "param",
        "multiformation",
        "dcf_idc.param:MultiFormation",
        "cut each stored image into tiles and enlarge each to an image: more images at equal floats",
        _PAPER,
        "dcf_idc.options:MultiFormationConfig",
    )
    yield dcf.Component(
        "augmenter",
        "idc",
        "dcf_idc.augment:IDCAugment",
        "flip, colour and cutout always, and one of crop, scale and rotate",
        _PAPER,
        "dcf_idc.options:IDCAugmentConfig",
    )
    yield dcf.Component(
        "augmenter",
        "cutmix",
        "dcf_idc.cutmix:CutMix",
        "paste a box of another image of the batch and mix the labels; where networks are trained",
        "Yun et al., ICCV 2019",
        "dcf_idc.options:CutMixConfig",
    )
    yield dcf.Component(
        "protocol",
        "idc@1",
        "dcf_idc:protocols/idc.toml",
        "SGD for 1000 epochs with augmentation and CutMix, as published for IDC",
        _PAPER,
    )
    for name, summary, paper in (
        ("idc-i", "IDC-I: plain pixels with the published settings", _PAPER),
        ("idc", "IDC: multi-formation with the published settings", _PAPER),
        ("loidc-i", "IDC-I on low-rank images", _LOW_RANK),
        ("loidc", "IDC with multi-formation of low-rank images", _LOW_RANK),
    ):
        yield dcf.Component("recipe", name, f"dcf_idc:recipes/{name}.toml", summary, paper)
