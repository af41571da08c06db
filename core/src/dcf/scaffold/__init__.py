"""A package that works, is tested and is found, to be changed into what its author wants. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from dcf.components import Kind
from dcf.errors import UsageError

__all__ = ["KINDS", "Plan", "contents", "kind_named", "plan"]

#: Kinds that are code, and so can be begun from a template.
KINDS: Final = (
    Kind.MATCHER,
    Kind.PARAM,
    Kind.AUGMENTER,
    Kind.EVALUATOR,
    Kind.DATASET,
    Kind.NETWORK,
    Kind.SELECTOR,
)
_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_LONGEST: Final = 40
#: What separates the parts of a template: code, options and tests of a kind.
_PART: Final = re.compile(r"^=== (\w+) ===\n", re.M)


@dataclass(frozen=True)
class Plan:
    """Names of a new plugin.

    Attributes:
        name: Of the component, such as `cosine`.
        kind: What it is.
    """

    name: str
    kind: Kind

    @property
    def distribution(self) -> str:
        """Name of the package, such as `dcf-cosine`."""
        return f"dcf-{self.name}"

    @property
    def module(self) -> str:
        """Name of the module, such as `dcf_cosine`."""
        return self.distribution.replace("-", "_")

    @property
    def class_name(self) -> str:
        """Name of the class, such as `Cosine`."""
        return "".join(part.capitalize() for part in self.name.split("-"))


def kind_named(text: str) -> Kind:
    """The kind that a word stands for: its name, or the word for people.

    Raises:
        UsageError: When there is none, or it is a file and no code.
    """
    found = {name: kind for kind in Kind for name in (kind.value, kind.noun)}.get(text)
    if found in KINDS:
        return found
    choices = f"expected one of {', '.join(KINDS)}"
    if found is None:
        raise UsageError(f"--kind {text}: no such kind\n  {choices}")
    raise UsageError(f"--kind {text}: a {text} is a TOML file and no class; copy one of a plugin's\n  {choices}")


def plan(name: str, kind: str) -> Plan:
    """The names of a new plugin; a leading `dcf-` is that of the package and no part of the component's name.

    Raises:
        UsageError: When it cannot be called so.
    """
    plain = name.removeprefix("dcf-")
    if not _NAME.match(plain) or len(plain) > _LONGEST:
        raise UsageError(
            f"a plugin cannot be called '{name[:60]}': expected lower case letters, digits and '-', such as my-plugin, "
            f"and at most {_LONGEST} of them"
        )
    return Plan(plain, kind_named(kind))


def contents(made: Plan, core: str) -> Iterator[tuple[Path, str]]:
    """The files of a new plugin: path below its folder, and text.

    Args:
        made: Its names.
        core: The requirement on core, such as `dcf-core>=0.1,<0.2`.
    """
    parts = _parts(f"kinds/{made.kind}.txt")
    words = {
        "name": made.name,
        "kind": made.kind.value,
        "noun": made.kind.noun,
        "flag": made.kind.flag,
        "distribution": made.distribution,
        "module": made.module,
        "Class": made.class_name,
        "core": core,
        **{key: parts[key].strip() for key in ("summary", "spec", "try", "idea")},
    }
    words |= {key: Template(text).substitute(words) for key, text in words.items()}
    source = Path("src") / made.module
    yield Path("pyproject.toml"), _filled("pyproject.txt", words)
    yield Path("README.md"), _filled("readme.txt", words)
    yield source / "__init__.py", _filled("init.txt", words)
    yield source / "options.py", Template(parts["options"]).substitute(words)
    yield source / f"{made.kind}.py", Template(parts["code"]).substitute(words)
    yield source / "py.typed", ""
    yield Path("tests") / f"test_{made.name.replace('-', '_')}.py", Template(parts["tests"]).substitute(words)


def _filled(name: str, words: dict[str, str]) -> str:
    return Template(_text(f"package/{name}")).substitute(words)


def _parts(name: str) -> dict[str, str]:
    _, *pieces = _PART.split(_text(name))
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
