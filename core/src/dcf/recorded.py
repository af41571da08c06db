"""The real data that a run or a set names, found without running code that a file names."""

from __future__ import annotations

import shlex
from typing import Any

from dcf.build import create
from dcf.components import Kind
from dcf.data.nested import datasets_in, map_datasets
from dcf.data.real import RealData
from dcf.errors import DataError, UsageError
from dcf.registry import registry
from dcf.spec import Option, Spec, parse_one
from dcf.synthetic import SyntheticSet

__all__ = ["data_of", "load_data"]


def load_data(what: Any) -> RealData:
    """Data from a spec, a dataset component, or data.

    Raises:
        DataError: When they cannot be had.
    """
    if isinstance(what, RealData):
        return what
    made = create(Kind.DATASET, what, "--data")
    return made if isinstance(made, RealData) else made.load()


def data_of(synthetic: SyntheticSet, given: Any = None) -> RealData:
    """The real data of a set: those that are given, or those that it names.

    Raises:
        UsageError: When it names none, or code.
        DataError: When they are not here.
    """
    if given is not None:
        return load_data(given)
    text = str(synthetic.config.get("data", ""))
    if not text:
        raise UsageError("the set names no dataset, such as one of parts that differ: say which one (--data SPEC)")
    if any(spec.name == "python" for spec in datasets_in(text)):
        raise UsageError(
            f"the file names the dataset '{text}', which is code; code that a file names is not run\n"
            f"  give it yourself if you trust it: --data {text}"
        )
    try:
        return load_data(_without_download(text))
    except DataError as error:
        raise DataError(
            f"the data of this set are not here: {error}\n  say where they are: --data {_place_of(text)}"
        ) from None


def _place_of(text: str) -> str:
    """How to say where a dataset is: the same spec with its places, and those of what it is made of, as DIR."""
    return shlex.quote(str(map_datasets(parse_one(text), _placeless)))


def _placeless(spec: Spec) -> Spec:
    known = registry().find(Kind.DATASET, spec).component.load_config().model_fields
    place = next((Option(key, "DIR") for key in ("root", "path") if key in known), None)
    if place is None:
        return spec
    given = [o.key for o in spec.options]
    others = tuple(place if o.key == place.key else o for o in spec.options)
    return Spec(spec.name, others if place.key in given else (place, *others))


def _without_download(text: str) -> str:
    """The spec with downloads off: a file must not make this machine fetch or write anything."""
    return str(map_datasets(parse_one(text, "--data"), _offline))


def _offline(spec: Spec) -> Spec:
    known = registry().find(Kind.DATASET, spec).component.load_config().model_fields
    kept = tuple(o for o in spec.options if o.key != "download")
    return Spec(spec.name, (*kept, Option("download", "false"))) if "download" in known else spec
