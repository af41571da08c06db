"""Formats of other programs by name, and what can be refused before torch is imported."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

from dcf.errors import FormatError, UsageError

__all__ = ["FORMATS", "MANIFEST", "Format", "Values", "check_format", "require_free", "require_pt"]

#: What a set can be exported as.
Format = Literal["pt", "pt-pair", "pt-files", "npz", "png"]
#: What the numbers of a file are: of the value space of the dataset, or pixels in [0, 1].
Values = Literal["auto", "space", "pixels"]

FORMATS: Final[Mapping[str, str]] = {
    "pt": "one file, a table whose `data` lists [images, labels], as most evaluation scripts read it",
    "pt-pair": "one file with the list [images, labels]",
    "pt-files": "a folder with images_best.pt and labels_best.pt, and lr_best.pt where a step size was learned",
    "npz": "one file of numpy arrays",
    "png": "a folder of 8-bit pictures, one folder a class",
}
#: File of an exported folder that says what it is; a folder without it is never replaced.
MANIFEST: Final = "export.json"
_FOLDERS: Final = ("pt-files", "png")
#: First bytes of a zip archive and of a pickle of protocol 2 to 5: the two forms of a `.pt` file.
_MAGIC: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_format(name: str) -> None:
    """Make sure that there is such a format.

    Raises:
        UsageError: With the choices.
    """
    if name not in get_args(Format):
        raise UsageError(f"--to {name}: no such format\n  expected one of {', '.join(get_args(Format))}")


def require_free(out: Path, form: str, force: bool) -> None:
    """Make sure that an export may be written to a place.

    Args:
        out: File or folder to write.
        form: Its format.
        force: Whether an export that is there may be replaced.

    Raises:
        UsageError: When something is there that must not be lost.
    """
    if form not in _FOLDERS:
        if out.is_dir():
            raise UsageError(f"--out {out}: expected a file to write, got a directory")
        if out.exists() and not force:
            raise UsageError(f"--out {out}: there is a file of that name     (write over it: --force)")
        return
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder to write, got a file")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise UsageError(f"--out {out}: the folder holds something else than an export; name a new one")
    if not force:
        raise UsageError(f"--out {out}: there is an export in that folder     (replace it: --force)")


def require_pt(path: Path) -> None:
    """Make sure that a file can be a `.pt` file, without reading more than its beginning.

    Raises:
        FormatError: When it is not there, or is something else.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            head = file.read(8) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    except FileNotFoundError:
        raise FormatError(f"no file '{path}'") from None
    except OSError as error:
        raise FormatError(f"cannot read '{path}': {error.strerror}") from None
    if head.startswith(_MAGIC):
        return
    hint = "; sets of dcf need no import" if path.suffix == ".safetensors" else ""
    raise FormatError(f"'{path}' is not a .pt file: it begins like neither of their two forms{hint}")
