"""What a set costs, to the byte, and how its floats are written: as they are, in 16 bits, or as 8-bit codes.

With `uint8` a tensor X of at least two axes is written as `X` (codes), `X.scale` and `X.zero` (float32, one a row of
the first axis), and read as zero + scale * code in float32: affine, for each item or output channel apart. Rows of
fewer than three elements, and so single numbers and vectors, stay as they are: a scale would cost more than it saves.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from dcf.budget import Budget, Store, is_coded
from dcf.errors import PluginError, RunError
from dcf.parameterization import Parameterization, Storage, TensorStorage

__all__ = ["SCALE", "ZERO", "StorageReport", "content_hash", "decode", "encode", "layout", "measure", "stored"]

#: What is appended to the name of a tensor for the scales and zeros of its rows.
SCALE: Final = ".scale"
ZERO: Final = ".zero"
_LEVELS: Final = 255
#: Bytes of the class number of one item, which the file holds and no budget is charged for.
_LABEL_BYTES: Final = 8


@dataclass(frozen=True)
class StorageReport(Storage):
    """What a set costs in its file, and the share of its budget that this is.

    Attributes:
        store: How floats are written.
        class_views: `(K,)` training images of each class.
        label_bytes: Of the class numbers, which are in the file and free.
        space_bytes: Of the whitening, if any: in the file so that it can be used by itself, and free, since it is a
            function of the training data alone, the same for every set made of them.
        budget: What it may cost; None where that is not known.
    """

    store: Store = "fp32"
    class_views: tuple[int, ...] = ()
    label_bytes: int = 0
    space_bytes: int = 0
    budget: Budget | None = None

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors of the file."""
        return self.nbytes + self.label_bytes + self.space_bytes

    @property
    def views_per_class(self) -> int | dict[str, int]:
        """Training images a class; the smallest and the largest number, `min` and `max`, where they differ."""
        least, most = min(self.class_views, default=0), max(self.class_views, default=0)
        return least if least == most else {"min": least, "max": most}

    @property
    def utilisation(self) -> float | None:
        """The share of the budget that is used; None where there is no budget."""
        return None if self.budget is None else self.budget.spent(self.floats, self.nbytes) / self.budget.limit

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **super().to_json(),
            "store": self.store,
            "views_per_class": self.views_per_class,
            "label_bytes": self.label_bytes,
            **({"space_bytes": self.space_bytes} if self.space_bytes else {}),
            "payload_bytes": self.payload_bytes,
            "budget": None if self.budget is None else self.budget.to_json(),
            "utilisation": self.utilisation,
        }


def measure(
    param: Parameterization, store: Store = "fp32", budget: Budget | None = None, space_bytes: int = 0
) -> StorageReport:
    """What an allocated parameterization costs in a file.

    Args:
        param: What is stored.
        store: How its floats are written.
        budget: What it may cost.
        space_bytes: Bytes of the tensors of its value space.
    """
    counts = torch.bincount(param.view_class.cpu(), minlength=param.num_classes).tolist()
    return StorageReport(
        stored(param.state_dict(), store),
        len(param.view_class),
        math.prod(param.shape),
        store,
        tuple(counts),
        _LABEL_BYTES * len(param.item_class),
        space_bytes,
        budget,
    )


def stored(tensors: Mapping[str, Tensor], store: Store = "fp32") -> tuple[TensorStorage, ...]:
    """What the file of these tensors holds, each tensor with its elements and bytes; nothing is computed.

    Args:
        tensors: Of the parameterization, by name, on any device, "meta" included.
        store: How floats are written.
    """
    return tuple(
        TensorStorage(name, tuple(t.shape), _dtype_name(t), t.numel(), t.numel() * t.element_size())
        for name, t in layout(tensors, store).items()
    )


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 over names, dtypes, shapes and values of tensors: of what a set stores, not of what its file says."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layout(tensors: Mapping[str, Tensor], store: Store) -> dict[str, Tensor]:
    """Empty tensors, on the device "meta", of the names, shapes and dtypes that the file has.

    Args:
        tensors: Of the parameterization, by name, on any device.
        store: How floats are written.

    Raises:
        PluginError: When a name is taken that a scale or zero would have.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        coded = _coded(tensor, store)
        made[name] = torch.empty(tensor.shape, dtype=_stored_dtype(tensor, store), device="meta")
        for beside in (name + SCALE, name + ZERO) if coded else ():
            if beside in tensors:
                raise PluginError(
                    f"tensors called '{name}' and '{beside}' cannot be stored as uint8, which writes a '{beside}' of "
                    "its own; expected another name"
                )
            made[beside] = torch.empty(len(tensor), dtype=torch.float32, device="meta")
    return made


@torch.no_grad()
def encode(tensors: Mapping[str, Tensor], store: Store) -> dict[str, Tensor]:
    """What the file holds of tensors. Always computed on the CPU, so that it is the same on every device.

    Args:
        tensors: Of the parameterization, by name; integers stay as they are.
        store: How floats are written.

    Returns:
        Tensors on the CPU, with the names, shapes and dtypes of `layout`.

    Raises:
        RunError: When a value is beyond what `store` can hold.
        PluginError: When a name is taken that a scale or zero would have.
    """
    made: dict[str, Tensor] = {}
    for name, form in layout(tensors, store).items():
        if name in tensors:
            plain = tensors[name].detach().cpu()
            parts = _codes(name, plain) if _coded(plain, store) else {name: plain.to(form.dtype)}
            _require_finite(parts, name, plain, store)
            made |= parts
    return made


@torch.no_grad()
def decode(written: Mapping[str, Tensor], like: Mapping[str, Tensor], store: Store) -> dict[str, Tensor]:
    """The tensors of a parameterization from what `encode` made of them.

    Args:
        written: As in the file.
        like: Tensors of the names, shapes and dtypes that are wanted, on any device, "meta" included.
        store: How floats are written.

    Returns:
        Tensors on the CPU. Values are those of the file, exactly: float16 fits into float32.
    """
    made = {}
    for name, form in like.items():
        tensor = written[name]
        if _coded(form, store):
            tensor = _values(tensor, written[name + SCALE], written[name + ZERO])
        made[name] = tensor.to(form.dtype)
    return made


def _coded(tensor: Tensor, store: Store) -> bool:
    if store != "uint8" or not tensor.is_floating_point() or tensor.ndim < 2:
        return False
    return len(tensor) > 0 and is_coded(math.prod(tensor.shape[1:]), tensor.element_size())


def _stored_dtype(tensor: Tensor, store: Store) -> torch.dtype:
    if _coded(tensor, store):
        return torch.uint8
    halved = store == "fp16" and tensor.is_floating_point() and tensor.element_size() > 2
    return torch.float16 if halved else tensor.dtype


def _codes(name: str, plain: Tensor) -> dict[str, Tensor]:
    """`code = round((x - zero) / scale)` in 0..255, with the smallest value of each row as its zero."""
    rows = plain.double().flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    scale, zero = ((high - low) / _LEVELS).float(), low.float()
    # A constant row has scale 0 and is its zero.
    step = torch.where(scale > 0, scale, 1).double()
    codes = ((rows - zero.double()[:, None]) / step[:, None]).round().clamp(0, _LEVELS)
    codes = torch.where(scale[:, None] > 0, codes, 0)
    return {name: codes.nan_to_num().to(torch.uint8).view(plain.shape), name + SCALE: scale, name + ZERO: zero}


def _values(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """`zero + scale * code`, each operation rounded to float32 by itself."""
    rest = (1,) * (codes.ndim - 1)
    product = scale.view(-1, *rest) * codes.float()
    return zero.view(-1, *rest) + product


def _require_finite(parts: Mapping[str, Tensor], name: str, plain: Tensor, store: Store) -> None:
    """Refuse what would be read back as NaN or infinite."""
    if store == "fp32" or not plain.is_floating_point():
        return
    given = decode(parts, {name: plain}, store)[name]
    if not bool(torch.isfinite(given).all()):
        largest = float(plain.abs().max())
        reach = ", which reaches to 65504" if store == "fp16" else ""
        raise RunError(
            f"'{name}' holds values up to {largest:.6g}, which cannot be stored as {store}{reach}\n"
            "  use --store fp32; to save a finished run, set store = 'fp32' in its config.toml and resume it"
        )


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
