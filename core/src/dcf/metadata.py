"""The header of a condensed set's file, read without torch, without plugins and in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dcf.budget import STORES, Store
from dcf.errors import FormatError
from dcf.files import read_header
from dcf.space import ValueSpace
from dcf.types import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FORMAT", "data_spec", "decode_metadata", "format_of", "read_metadata"]

#: Newest version of the file format that is read. It only grows, and every older version stays readable; a file has
#: the smallest version that it can do with: 1 holds floats as they are, 2 holds rounded ones, 3 holds whitened images
#: with the tensors of their whitening, floats as in 1 or 2.
FORMAT: Final = 3
_PREFIX: Final = "dcf."
#: Values that are tables where they are there.
_TABLES: Final = (
    *(
        "assembled",
        "config",
        "data",
        "environment",
        "hints",
        "imported",
        "options",
        "packages",
        "results",
        "run",
        "selection",
    ),
    "storage",
)
#: Characters of one entry of `config`, such as a spec, and levels that a value may be nested: what nobody needs.
_LONGEST: Final = 4096
_DEEPEST: Final = 32
#: Elements of one decoded image that a file may claim; a hostile one could otherwise exhaust the memory.
_MAX_IMAGE: Final = 2**26
#: Networks that an evaluation trains at most.
_MOST_NETWORKS: Final = 10_000


def read_metadata(path: Path | str) -> dict[str, Any]:
    """The decoded header of a condensed set, without its tensors.

    Args:
        path: The `.safetensors` file.

    Returns:
        The header's values by name, without the prefix `dcf.`; `format` and `config` are always there.

    Raises:
        FormatError: When the file is damaged, is no condensed set, or is of a newer format.
    """
    return decode_metadata(read_header(path).metadata, path)


def decode_metadata(metadata: Mapping[str, str], path: Path | str) -> dict[str, Any]:
    """The decoded header of strings that were read from `path`; as `read_metadata`."""
    found = {k.removeprefix(_PREFIX): v for k, v in metadata.items() if k.startswith(_PREFIX)}
    if "format" not in found:
        raise FormatError(f"'{path}' is a safetensors file, but not a condensed set: it has no 'dcf.format'")
    try:
        decoded = {
            k: json.loads(v, parse_constant=_no_number, parse_float=_finite) for k, v in found.items() if k != "digest"
        }
        _require_plain(decoded)
    except (ValueError, RecursionError):  # ValueError: no JSON, NaN, or an integer of thousands of digits
        raise FormatError(f"'{path}' is damaged: its metadata is not JSON, or not of a form that is read") from None
    version = decoded["format"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError(f"'{path}' has the unknown format version {str(version)[:12]!r}")
    if version > FORMAT:
        shown = str(version)[:12]
        raise FormatError(f"'{path}' has format version {shown}; this dcf reads up to {FORMAT}: update dcf-core")
    if not isinstance(decoded.get("config"), dict):
        raise FormatError(f"'{path}' is damaged: it does not say how it was made")
    wrong = next(_misplaced(decoded), None)
    if wrong is not None:
        raise FormatError(f"'{path}' is damaged: its entry '{wrong}' is not of the form it must have")
    return decoded


def format_of(store: Store, space: ValueSpace) -> int:
    """The version of a file whose floats are written in this way, and whose images are of this value space."""
    if space.whitening is not None:
        return 3
    return 1 if store == "fp32" else 2


def data_spec(meta: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> DataSpec:
    """What the images of a file are.

    Args:
        meta: The decoded header.
        tensors: Of the file, by name; those of a whitening are read.
        path: The file.

    Raises:
        FormatError: When the header does not say, or says what cannot be.
    """
    try:
        channels, height, width = meta["shape"]
        classes = tuple(meta["classes"])
        sizes = (channels, height, width)
        if not all(type(n) is int and n > 0 for n in sizes) or channels * height * width > _MAX_IMAGE:
            claimed = " x ".join(str(n)[:20] for n in sizes)
            raise FormatError(f"'{path}' is damaged: it claims images of {claimed}")
        if not classes or not isinstance(meta["classes"], list) or not all(isinstance(c, str) for c in classes):
            raise FormatError(f"'{path}' is damaged: it names no classes")
        space = _value_space(meta["space"], tensors, sizes, path)
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"'{path}' is damaged: it does not say what its images are") from None
    if len(space.mean) != channels:
        raise FormatError(
            f"'{path}' is damaged: {len(space.mean)} channels in its value space, {channels} in its images"
        )
    return DataSpec(channels, height, width, classes, space)


def _value_space(
    described: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int, int], path: Path
) -> ValueSpace:
    if described["kind"] != "zca":
        return ValueSpace.from_json(described)
    from dcf.whitening import read_whitening  # with torch, which the rest of this module does without

    try:
        return ValueSpace.whitened(read_whitening(described, tensors, shape))
    except ValueError as error:
        raise FormatError(f"'{path}' is damaged: {error}") from None


def _misplaced(decoded: Mapping[str, Any]) -> Iterator[str]:
    """Entries that are not of the form that readers rely on."""
    yield from (key for key in _TABLES if not isinstance(decoded.get(key, {}), dict))
    for key, value in decoded["config"].items():
        if isinstance(value, (dict, list)) or len(str(value)) > _LONGEST:
            yield f"config.{key[:40]}"
    if not _is_count(decoded.get("seed", 0), 0):
        yield "seed"
    if not _is_store(decoded.get("store"), decoded["format"]):
        yield "store"
    space = decoded.get("space")
    if (decoded["format"] == 3) != (isinstance(space, dict) and space.get("kind") == "zca"):
        yield "space"
    run = decoded.get("run", {})
    if isinstance(run, dict):
        if not isinstance(run.get("protocol_set", {}), dict):
            yield "run.protocol_set"
        if run.get("networks") is not None and not _is_count(run["networks"], 1, _MOST_NETWORKS):
            yield "run.networks"


def _is_store(value: Any, version: int) -> bool:
    """Whether the entry `store` is that of this version: none in 1, `{"dtype": ...}` of rounded floats in 2."""
    if version == 1 or (version == 3 and value is None):
        return value is None
    return isinstance(value, dict) and list(value) == ["dtype"] and value["dtype"] in STORES[1:]


def _is_count(value: Any, least: int, most: int = 2**63 - 1) -> bool:
    return type(value) is int and least <= value <= most


def _require_plain(value: Any) -> None:
    """Refuse what is nested beyond reason, or holds halves of characters, before anybody has to work on it.

    Raises:
        ValueError: When it is so.
    """
    level = [value]
    for _ in range(_DEEPEST):
        level = [child for node in level for child in _children(node)]
    if level:
        raise ValueError(f"nested deeper than {_DEEPEST} levels")
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than a float")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
