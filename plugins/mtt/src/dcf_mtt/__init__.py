"""Trajectory matching (MTT and its successors) for dcf."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import dcf

if TYPE_CHECKING:
    import typer

__all__ = ["dcf_commands", "dcf_components"]

PAPER = "Cazenavette et al., CVPR 2022"
TESLA = "Cui et al., ICML 2023"
DATM = "Guo et al., ICLR 2024"
LOWRANK = "Yang et al., NeurIPS 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the matcher, the protocols and the recipes."""
    yield dcf.Component(
        "matcher",
        "mtt",
        "dcf_mtt.matcher:MTT",
        "match where training on the set leads with where experts went on the real data",
        PAPER,
        "dcf_mtt.options:MTTConfig",
    )
    yield dcf.Component(
        "protocol",
        "mtt@1",
        "dcf_mtt:protocols/mtt.toml",
        "SGD for 1000 epochs with augmentation and the learned step size, as published for MTT",
        PAPER,
    )
    yield dcf.Component(
        "protocol",
        "datm@1",
        "dcf_mtt:protocols/datm.toml",
        "as mtt@1 with batches of 128, as published for DATM",
        DATM,
    )
    yield dcf.Component(
        "recipe", "mtt", "dcf_mtt:recipes/mtt.toml", "trajectory matching with the published settings", PAPER
    )
    yield dcf.Component(
        "recipe", "lomtt", "dcf_mtt:recipes/lomtt.toml", "trajectory matching of low-rank images", LOWRANK
    )
    yield dcf.Component(
        "recipe", "tesla", "dcf_mtt:recipes/tesla.toml", "trajectory matching by the truncated gradient", TESLA
    )
    yield dcf.Component(
        "recipe",
        "datm",
        "dcf_mtt:recipes/datm.toml",
        "trajectory matching of a part of training as hard as the set is large, with soft labels",
        DATM,
    )


@dcf.hookimpl
def dcf_commands(app: typer.Typer) -> None:
    """Add `dcf experts`."""
    from dcf.cli.later import add_later

    add_later(
        app, "experts", "dcf_mtt.commands:add_to", "Networks trained on the real data, kept for trajectory matching."
    )
