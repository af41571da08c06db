"""`.pt` files of other people, read as data: tensors, numbers, texts, lists and tables, and nothing that runs."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dcf.errors import FormatError
from dcf.exchange.options import require_pt

__all__ = ["NumpyValue", "read_pt"]

#: Entries that a file's lists and tables may have together, and levels that they may be nested.
_MOST: Final = 1_000_000
_DEEPEST: Final = 16


class NumpyValue:
    """Stands for a number or a type of numpy in a file: accuracies and the like, which are of no use here."""

    def __init__(self, *parts: Any) -> None:
        """Forget the parts."""

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


def _made(*parts: Any) -> NumpyValue:
    """Stands for what makes such numbers, arrays and texts."""
    return NumpyValue()


#: What older files ask for beside tensors. The names lead to the stand-ins above: nothing of numpy is called.
_STAND_INS: Final[list[Any]] = [
    *((_made, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((_made, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    (NumpyValue, "numpy.dtype"),
    (NumpyValue, "numpy.ndarray"),
    (_made, "_codecs.encode"),
]


def read_pt(path: Path | str) -> Any:
    """What a `.pt` file holds.

    Such a file is a program that makes objects. Only tensors, numbers, texts, lists, tuples and tables are made here;
    whatever else it asks for is an error, and nothing of it is looked up or called. For values of numpy stand
    `NumpyValue`s, which hold nothing.

    Args:
        path: A file that `torch.save` wrote, of any version.

    Raises:
        FormatError: When it is damaged, or asks for anything else.
    """
    path = Path(path)
    require_pt(path)
    raw = path.read_bytes()
    _require_plain_archive(raw, path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")  # the loader's, about the age of the file
            found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatError(_refused(path, error)) from None
    except MemoryError:
        raise FormatError(f"'{path}' does not fit into memory, or claims sizes that it has not") from None
    except Exception as error:  # a damaged file can make the loader raise anything
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise FormatError(f"'{path}' is damaged, or no file of tensors: {text}") from None
    _require_backed(found, len(raw), path)
    return found


def _require_plain_archive(raw: bytes, path: Path) -> None:
    """Refuse an archive that would grow when it is unpacked: what torch writes is not compressed."""
    if not raw.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        raise FormatError(f"'{path}' is cut off or damaged: its list of contents cannot be read") from None
    if unpacked > len(raw):
        raise FormatError(f"'{path}' has {len(raw):,} bytes and would unpack to {unpacked:,}: no program writes it so")


def _refused(path: Path, error: Exception) -> str:
    text = str(error)
    _, found, rest = text.partition("GLOBAL ")
    name = rest.split(" ")[0].strip(".,") if found else ""
    if name:
        return f"'{path}' asks for '{name[:80]}', which tensors do not need; nothing of it was run"
    return f"'{path}' is damaged, or holds more than tensors, numbers, lists and tables; nothing of it was run"


def _require_backed(found: Any, size: int, path: Path) -> None:
    """Make sure that every tensor is a plain one, with all of its bytes in the file, before anybody computes with it.

    Raises:
        FormatError: When one is not, or there are more entries than any set has.
    """
    level, count = [found], 0
    for _ in range(_DEEPEST):
        count += len(level)
        if not level or count > _MOST:
            break
        for one in level:
            if isinstance(one, Tensor) and not _is_backed(one, size):
                raise FormatError(f"'{path}' is damaged: a tensor of it is not a plain one, or larger than the file")
        level = [child for one in level for child in _children(one)]
    if level:
        raise FormatError(
            f"'{path}' is no condensed set: its lists are nested deeper, or are longer, than those of any"
        )


def _is_backed(tensor: Tensor, size: int) -> bool:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= size


def _children(one: Any) -> list[Any]:
    if isinstance(one, dict):
        return list(one.values())
    return list(one) if isinstance(one, (list, tuple)) else []
