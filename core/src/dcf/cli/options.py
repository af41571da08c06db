"""Options that several commands share, and what can be checked of them without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from dcf.errors import ConfigError, UsageError

__all__ = [
    "AsJson",
    "Baselines",
    "Data",
    "Device",
    "Epochs",
    "Network",
    "Networks",
    "Precision",
    "ProtocolName",
    "Seed",
    "baseline_rows",
    "check_protocol",
    "in_flags",
    "require_device_name",
    "set_file",
    "set_options",
]

#: Settings whose option is not simply `--name-of-the-setting`.
_FLAG_OF: Final = {"networks": "--nets", "evaluate": "--no-eval", "augment": "--augment"}
_HOW = "How it runs"
_JUDGE = "How it is judged"

# Numbers are text here: the settings' own types and bounds convert and check them, once and with one kind of message.
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="SPEC", help="dataset, such as cifar10 or 'folder:path=DIR,size=64'"),
]
Network = Annotated[
    str | None, typer.Option("--network", metavar="SPEC", help="network, such as convnet:depth=3,width=128")
]
Seed = Annotated[
    str | None,
    typer.Option("--seed", metavar="INT", help="seed of everything random", rich_help_panel=_HOW),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N", rich_help_panel=_HOW),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="MODE", help="default, or strict: fp32 everywhere", rich_help_panel=_HOW),
]
ProtocolName = Annotated[
    str | None,
    typer.Option("--protocol", metavar="NAME", help="evaluation protocol, such as dcf-std@1", rich_help_panel=_JUDGE),
]
Networks = Annotated[
    str | None,
    typer.Option("--nets", metavar="INT", help="networks trained for each set", rich_help_panel=_JUDGE),
]
Epochs = Annotated[
    str | None,
    typer.Option(
        "--epochs", metavar="INT", help="epochs of evaluation instead of the protocol's", rich_help_panel=_JUDGE
    ),
]
Baselines = Annotated[
    str | None,
    typer.Option(
        "--baselines",
        metavar="LIST",
        help="rows beside the result: random,whole or none",
        rich_help_panel=_JUDGE,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="write one JSON object to stdout and nothing else")]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")
_SETTING = re.compile(r"^run: (?:option '(?P<key>\w+)' )?")


def baseline_rows(text: str | None) -> tuple[str, ...] | str | None:
    """The rows that `--baselines` names; None and "auto" as they are.

    Raises:
        UsageError: For a row that does not exist.
    """
    if text is None or text == "auto":
        return text
    names = () if text == "none" else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in ("random", "whole"):
            raise UsageError(f"--baselines {text}: expected random, whole, both joined by ',', or none, got '{name}'")
    return names


def set_options(pairs: Sequence[str]) -> dict[str, str]:
    """The `--set key=value` options as a dictionary.

    Raises:
        UsageError: For one that is not `key=value`, or a key that comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: expected key=value, such as param.r=4")
        if key in found:
            raise UsageError(f"--set {pair}: '{key}' is given twice")
        found[key] = value
    return found


def require_device_name(name: str | None) -> None:
    """Make sure that a device has a name of the right form; whether it exists only torch knows.

    Raises:
        UsageError: When it has not.
    """
    if name is not None and not _DEVICE.fullmatch(name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")


def in_flags(error: UsageError) -> UsageError:
    """The complaint about a setting of a run, in terms of the option that the user typed."""

    def flag(match: re.Match[str]) -> str:
        key = match["key"]
        return "" if key is None else f"{_FLAG_OF.get(key, '--' + key.replace('_', '-'))} "

    if type(error) is not UsageError:
        return error
    return UsageError(_SETTING.sub(flag, str(error)).replace(" | NoneType", "").replace(" | None", ""))


def set_file(path: Path) -> Path:
    """The file of a set: itself, or the one in a run directory."""
    return path / "synthetic.safetensors" if path.is_dir() else path


def check_protocol(name: str, overrides: dict[str, Any]) -> None:
    """Make sure that a protocol exists and takes the changes.

    Raises:
        SpecError: Or another usage error, naming what is wrong.
    """
    from dcf.evaluation.protocol import load_protocol

    rules = load_protocol(name)
    try:
        rules.with_overrides(**overrides)
    except ConfigError as error:
        # A wrong value names its type already; the list of all options would bury it.
        raise (error if "has no option" in error.message else UsageError(error.message)) from None
