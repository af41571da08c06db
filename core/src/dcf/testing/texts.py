"""Checks of recipes and protocols, which are files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcf.build import check
from dcf.components import Kind
from dcf.config import validate_mapping
from dcf.evaluation.protocol import load_protocol, require_augmenter
from dcf.recipes import Recipe, load_recipe
from dcf.runconfig import SPEC_ROLES, RunConfig
from dcf.testing.subject import Check, Subject, require

__all__ = ["PROTOCOL_CHECKS", "RECIPE_CHECKS", "exercise"]


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Files compute nothing."""
    return []


def check_protocol_is_readable(subject: Subject) -> None:
    """The file is a protocol, and calls itself what the plugin announces."""
    protocol = load_protocol(subject.spec)
    require(protocol.id == subject.spec, f"expected '{subject.spec}', the file says '{protocol.id}'")


def check_protocol_can_be_carried_out(subject: Subject) -> None:
    """Network and augmentations that it names are installed and take the options it gives."""
    protocol = load_protocol(subject.spec)
    for text in {protocol.augment, *protocol.augment_for.values()} - {"same"}:
        require_augmenter(text, protocol)
        check(Kind.AUGMENTER, text)
    if protocol.network != "same":
        check(Kind.NETWORK, protocol.network)


def check_recipe_is_readable(subject: Subject) -> None:
    """The file is a recipe, and calls itself what the plugin announces."""
    recipe = load_recipe(subject.spec)
    require(recipe.recipe.name == subject.spec, f"expected '{subject.spec}', the file says '{recipe.recipe.name}'")


def check_recipe_settings_are_valid(subject: Subject) -> None:
    """For every dataset that it lists, settings and specs are ones that a run takes."""
    recipe = load_recipe(subject.spec)
    for data in ("digits", *recipe.data):
        settings = _settings(recipe, data)
        validate_mapping(RunConfig, settings, f"recipe '{subject.spec}' for '{data}'")
        for role, kind in SPEC_ROLES.items():
            if role in settings:
                check(kind, str(settings[role]))
        if "protocol" in settings:
            load_protocol(str(settings["protocol"]))


def _settings(recipe: Recipe, data: str) -> dict[str, object]:
    return {**recipe.settings(data), "recipe": recipe.recipe.name}


def check_recipe_values_name_their_protocol(subject: Subject) -> None:
    """A published or measured accuracy without the protocol and the source it was obtained with says nothing."""
    recipe = load_recipe(subject.spec)
    for value in recipe.published:
        require(bool(value.protocol), f"the value {value.accuracy} for {value.data} names no protocol")
        require(bool(value.source), f"the value {value.accuracy} for {value.data} names no source")
    for value in recipe.measured:
        require(
            bool(value.protocol and value.n), f"the measured value {value.accuracy} names no protocol, or not its n"
        )


PROTOCOL_CHECKS: Sequence[Check] = (check_protocol_is_readable, check_protocol_can_be_carried_out)
RECIPE_CHECKS: Sequence[Check] = (
    check_recipe_is_readable,
    check_recipe_settings_are_valid,
    check_recipe_values_name_their_protocol,
)
