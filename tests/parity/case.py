"""One recorded computation: its description, its inputs in the right precision, and what must come out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

__all__ = ["FORMAT", "Case", "ParityError", "read"]

#: Version of the file format that is understood here.
FORMAT = 1

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


class ParityError(Exception):
    """A case that cannot be computed; `str()` of it says why."""


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        name: Of the case.
        kind: Names the computation, and with it the module in `kinds` that does it.
        dtype: What to compute in; every floating input has it.
        tensors: Inputs by name, on the CPU.
        wanted: Expected outputs by name, as stored.
        meta: The whole description.
    """

    name: str
    kind: str
    dtype: torch.dtype
    tensors: Mapping[str, Tensor]
    wanted: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    @property
    def hyper(self) -> Mapping[str, Any]:
        """What the computation needs besides tensors."""
        return self.meta.get("hyper", {})

    @property
    def net(self) -> Mapping[str, Any]:
        """The description of the network."""
        if "net" not in self.meta:
            raise ParityError("the case describes no network")
        return self.meta["net"]

    @property
    def tolerance(self) -> Mapping[str, Any]:
        """`rel` and `floor`, or `exact`."""
        return self.meta.get("tolerance", {})

    def __getitem__(self, name: str) -> Tensor:
        """One input."""
        if name not in self.tensors:
            raise ParityError(f"the input '{name}' is missing")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The inputs `prefix/*` by the last part of their names, in order; empty when there is none."""
        start = prefix + "/"
        found = {
            name.removeprefix(start): self.tensors[name] for name in sorted(self.tensors) if name.startswith(start)
        }
        return {name: tensor for name, tensor in found.items() if "/" not in name}


def read(path: Path) -> Case:
    """Read a case.

    Raises:
        ParityError: When the file is not one.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("case")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except Exception as error:
        raise ParityError(f"the file cannot be read: {error}") from error
    if text is None:
        raise ParityError("the file describes no case in its metadata")
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise ParityError(f"the description is not JSON: {error}") from error
    return _case(meta, stored)


def _case(meta: Any, stored: Mapping[str, Tensor]) -> Case:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ParityError(f"expected a description of format {FORMAT}")
    if meta.get("dtype") not in _DTYPES:
        raise ParityError(f"expected the dtype {' or '.join(_DTYPES)}, got '{meta.get('dtype')}'")
    dtype = _DTYPES[meta["dtype"]]
    wanted = {name: tensor for name, tensor in stored.items() if name.startswith("out/")}
    if not wanted:
        raise ParityError("the file has no expected output")
    inputs = {name: _cast(tensor, dtype) for name, tensor in stored.items() if name not in wanted}
    return Case(str(meta.get("case", "")), str(meta.get("kind", "")), dtype, inputs, wanted, meta)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
