"""Recipes: settings that belong together, with the published values and ours beside them. Torch-free."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from pydantic import Field, ValidationError

from dcf.components import Kind
from dcf.config import Config
from dcf.errors import PluginError
from dcf.registry import Registry, registry
from dcf.spec import Spec

__all__ = ["Recipe", "Value", "all_recipes", "load_recipe", "starter"]

log = logging.getLogger(__name__)


class Value(Config):
    """One accuracy, in percent, and under which conditions it was obtained."""

    data: str = Field(description="dataset name")
    ipc: int = Field(ge=1, description="budget in plain images a class")
    accuracy: float = Field(ge=0, le=100, description="test accuracy in percent")
    std: float | None = Field(None, ge=0, description="its spread, in points")
    network: str = Field("convnet", description="network it was evaluated on")
    protocol: str = Field("", description="evaluation protocol")
    source: str = Field("", description="where the value stands")
    n: str = Field("", description="synthetic sets x networks")
    iterations: int | None = Field(None, ge=0, description="outer iterations")
    hardware: str = Field("", description="what it ran on")
    wall_time: str = Field("", description="time of the condensation")
    version: str = Field("", description="version of dcf")
    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="what it was obtained with beside the recipe, by dotted key, such as matcher.batch_real",
    )


class Header(Config):
    """What a recipe is."""

    name: str = Field(description="name of the recipe")
    summary: str = Field("", description="one line")
    paper: str = Field("", description="short reference")
    requires: tuple[str, ...] = Field((), description="distributions whose components it uses")
    starter: int = Field(0, ge=0, description="rank as the recipe of a first run that names nothing; 0: never")


class Recipe(Config):
    """A recipe as its TOML file says it."""

    recipe: Header = Field(description="what it is")
    run: dict[str, Any] = Field(default_factory=dict, description="settings of the run")
    data: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings that differ by dataset")
    published: tuple[Value, ...] = Field((), description="values of the paper")
    measured: tuple[Value, ...] = Field((), description="values that we measured")

    def settings(self, data: str) -> dict[str, Any]:
        """The settings for a dataset, by its component name."""
        return {**self.run, **self.data.get(data, {})}


def load_recipe(name: str, reg: Registry | None = None) -> Recipe:
    """A recipe by name.

    Raises:
        SpecError: When there is none of that name.
        PluginError: When its file is unusable or a distribution it needs is missing.
    """
    reg = reg or registry()
    item = reg.find(Kind.RECIPE, Spec(name, (), name, (0, len(name))), "--recipe")
    recipe = _parse(item.component.read_text(), item.component.target)
    missing = [d for d in recipe.recipe.requires if not _installed(d)]
    if missing:
        raise PluginError(
            f"recipe '{name}' needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}"
        )
    return recipe


def all_recipes(reg: Registry | None = None) -> dict[str, Recipe]:
    """Every usable recipe that is installed, by name; one whose file is broken is left out with a warning."""
    found = {}
    for item in (reg or registry()).items(Kind.RECIPE):
        try:
            found[item.component.name] = _parse(item.component.read_text(), item.component.target)
        except (PluginError, OSError) as error:
            log.warning("recipe '%s' of '%s' is left out: %s", item.component.name, item.plugin.distribution, error)
    return found


def starter(reg: Registry | None = None) -> Recipe | None:
    """The recipe that a run takes when the user names neither matcher nor recipe."""
    usable = [r for r in all_recipes(reg).values() if r.recipe.starter and all(map(_installed, r.recipe.requires))]
    return max(usable, key=lambda r: r.recipe.starter, default=None)


def _parse(text: str, where: str) -> Recipe:
    try:
        values: Mapping[str, Any] = tomllib.loads(text)
        return Recipe.model_validate(values)
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise PluginError(f"the recipe file {where} is not usable: {' '.join(str(error).split())}") from None


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
