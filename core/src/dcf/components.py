"""What a plugin announces: components by kind and name, their code imported on first use."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dcf.errors import DcfError, PluginError

if TYPE_CHECKING:
    from dcf.config import Config

__all__ = ["Component", "Kind"]


class Kind(StrEnum):
    """The closed list of what a plugin can provide."""

    MATCHER = "matcher"
    PARAM = "param"
    AUGMENTER = "augmenter"
    EVALUATOR = "evaluator"
    DATASET = "dataset"
    NETWORK = "network"
    SELECTOR = "selector"
    PROTOCOL = "protocol"
    RECIPE = "recipe"

    @property
    def stacks(self) -> bool:
        """Whether several of this kind may be joined by `+`."""
        return self in (Kind.PARAM, Kind.AUGMENTER)

    @property
    def flag(self) -> str:
        """The command line option that takes this kind."""
        return _FLAGS.get(self, f"--{self.value}")

    @property
    def noun(self) -> str:
        """The word for people, with its article left off."""
        return "parameterization" if self is Kind.PARAM else self.value


_FLAGS = {Kind.AUGMENTER: "--augment", Kind.DATASET: "--data", Kind.SELECTOR: "--init"}


@dataclass(frozen=True)
class Component:
    """One thing that a plugin provides.

    Args:
        kind: A `Kind` or its value, such as `"param"`.
        name: `[a-z][a-z0-9]*(-[a-z0-9]+)*`; unique within its kind. A protocol's ends in `@VERSION`.
        target: `"package.module:Class"`, imported on first use; for recipes and protocols
            `"package:path/inside.toml"`.
        summary: One line for listings.
        paper: Short reference, such as `"Zhao et al., ICLR 2021"`.
        config: `"package.module:Class"` of the options, in a module free of torch, so that a wrong option is reported
            without importing it; empty to take the class's own `Config`.
    """

    kind: Kind | str
    name: str
    target: str
    summary: str
    paper: str = ""
    config: str = ""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "kind", Kind(self.kind))
        except ValueError:
            choices = ", ".join(k.value for k in Kind)
            raise ValueError(
                f"component '{self.name}': unknown kind '{self.kind}'; expected one of {choices}"
            ) from None

    def load(self) -> Any:
        """Import and return the class behind `target`.

        Raises:
            PluginError: When it cannot be imported.
        """
        return self._import(self.target)

    def load_config(self) -> type[Config]:
        """The class of the options; imports the component only where `config` does not name it.

        Raises:
            PluginError: When there is none, or it cannot be imported.
        """
        # The library behind options takes as long to import as all that help needs.
        from dcf.config import Config

        found = self._import(self.config) if self.config else getattr(self.load(), "Config", None)
        if not (isinstance(found, type) and issubclass(found, Config)):
            raise self._broken(f"'{self.config or self.target}' gives no options, which are a dcf.Config")
        return found

    def read_text(self) -> str:
        """The contents of a `"package:path"` target."""
        from importlib.resources import files

        package, _, path = self.target.partition(":")
        return files(package).joinpath(path).read_text(encoding="utf-8")

    def _import(self, target: str) -> Any:
        # A plugin is other people's code: whatever its import raises is the reason why it cannot be used.
        try:
            return _attribute(target)
        except DcfError:
            raise
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            raise self._broken(f"the import of '{target}' failed: {type(error).__name__}: {text}") from error

    def _broken(self, reason: str) -> PluginError:
        return PluginError(f"{Kind(self.kind).noun} '{self.name}' cannot be loaded\n  reason: {reason}")


def _attribute(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
