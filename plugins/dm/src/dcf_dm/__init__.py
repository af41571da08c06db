"""Distribution matching (DM) for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

PAPER = "Zhao and Bilen, WACV 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the matcher and its recipes."""
    yield dcf.Component(
        "matcher",
        "dm",
        "dcf_dm.matcher:DM",
        "match each class's mean embedding in random networks",
        PAPER,
        "dcf_dm.options:DMConfig",
    )
    yield dcf.Component(
        "recipe", "dm", "dcf_dm:recipes/dm.toml", "distribution matching with the published settings", PAPER
    )
    yield dcf.Component(
        "recipe",
        "dm-quick",
        "dcf_dm:recipes/dm-quick.toml",
        "distribution matching for a first run, in a minute",
        PAPER,
    )
