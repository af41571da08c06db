"""Files of experts: one safetensors file for each, all weights of an epoch in one row, read a row at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field, ValidationError

import dcf
from dcf.estimate.units import size_text
from dcf.files import Header, read_header, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "KIND",
    "VERSION",
    "ExpertFacts",
    "checksum",
    "claimed",
    "examine",
    "expert_path",
    "experts_in",
    "folder_of",
    "read_facts",
    "read_row",
    "split_row",
    "write_expert",
]

#: Raised when the same options train other experts, or the form of their files changes.
VERSION: Final = 1
#: Names the folder among the artifacts.
KIND: Final = "experts"
_METADATA: Final = "dcf.expert"
_THETA: Final = "theta"


class ExpertFacts(dcf.Config):
    """What a file says about its expert."""

    version: int = Field(ge=1, le=VERSION, description="form of the file")
    key: dict[str, Any] = Field(description="everything that decides it but its number and length")
    number: int = Field(ge=0, lt=10**6, description="number among the experts of this key")
    data: str = Field(max_length=10_000, description="the dataset as it was named")
    names: tuple[str, ...] = Field(min_length=1, description="names of the weights, in the order of a row")
    shapes: tuple[tuple[int, ...], ...] = Field(description="shape of each")
    sums: tuple[int, ...] = Field(min_length=1, description="CRC-32 of each row")
    accuracies: tuple[float, ...] = Field(description="after each epoch, on some training images, in [0, 1]")
    losses: tuple[float, ...] = Field(description="cross-entropy likewise, in nats")
    seconds: float = Field(ge=0, description="time that its training took")
    made_with: str = Field("", max_length=200, description="version of the program")

    @property
    def epochs(self) -> int:
        """Epochs it was trained; there is one row more, as row 0 is where it began."""
        return len(self.sums) - 1

    @property
    def size(self) -> int:
        """Weights in a row."""
        return sum(math.prod(shape) for shape in self.shapes)


# --- places -----------------------------------------------------------------------------------------------------------


def folder_of(root: Path, key: Mapping[str, Any]) -> Path:
    """The folder of all experts of a key, whether it exists or not.

    Args:
        root: Folder of all artifacts.
        key: JSON-ready; the order of its entries does not matter.
    """
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return root / KIND / hashlib.sha256(text.encode()).hexdigest()


def expert_path(folder: Path, number: int) -> Path:
    """The file of an expert."""
    return folder / f"{number:04d}.safetensors"


def experts_in(folder: Path) -> list[Path]:
    """Files of experts in a folder, by number."""
    found = [path for path in folder.glob("*.safetensors") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: int(path.stem))


# --- writing ----------------------------------------------------------------------------------------------------------


def write_expert(path: Path, theta: Tensor, facts: ExpertFacts) -> None:
    """Write a trajectory, whole or not at all.

    Args:
        path: Where to.
        theta: `(T + 1, P)` float32 on the CPU; row 0 has the weights before training.
        facts: What it is.

    Raises:
        RunError: When it cannot be written; what was there stays.
    """
    try:
        write_tensors(path, {_THETA: theta}, {_METADATA: facts.model_dump_json()})
    except dcf.RunError as error:
        raise dcf.RunError(
            f"{error}\n  an expert takes {size_text(theta.nbytes)}; set DCF_CACHE to a folder that has room"
        ) from None


def checksum(row: Tensor) -> int:
    """CRC-32 of a row of float32 on the CPU."""
    return zlib.crc32(row.numpy().data)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_facts(path: Path) -> ExpertFacts:
    """What a file says about itself, read from its header alone and compared with the shape of its tensor.

    Raises:
        FormatError: When it is no expert, damaged, or newer than this program.
    """
    return _facts(path, read_header(path))


def _facts(path: Path, header: Header) -> ExpertFacts:
    try:
        facts = ExpertFacts.model_validate_json(header.metadata[_METADATA])
    except KeyError:
        raise dcf.FormatError(f"'{path}' is not an expert") from None
    except (ValidationError, RecursionError) as error:
        reason = str(error).splitlines()[1].strip() if isinstance(error, ValidationError) else "it is nested too deeply"
        raise dcf.FormatError(f"'{path}' is not an expert that this version can read: {reason[:100]}") from None
    entry, rows = header.tensors.get(_THETA, {}), len(facts.sums)
    told = (len(facts.names), rows, rows)
    if (len(facts.shapes), len(facts.accuracies), len(facts.losses)) != told or any(
        n < 0 for shape in facts.shapes for n in shape
    ):
        raise dcf.FormatError(f"'{path}' is damaged: its description contradicts itself")
    if set(header.tensors) != {_THETA} or (entry["dtype"], entry["shape"]) != ("F32", [rows, facts.size]):
        raise dcf.FormatError(f"'{path}' is damaged: expected {rows} rows of {facts.size} weights")
    return facts


def read_row(path: Path, facts: ExpertFacts, epoch: int) -> Tensor:
    """The weights after some epochs, without reading the others.

    Returns:
        `(P,)` float32 on the CPU.

    Raises:
        FormatError: When the file has changed since `facts` were read, or the row is not what was written, or no
            network can have such weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            row: Tensor = file.get_slice(_THETA)[epoch : epoch + 1][0]
    except (SafetensorError, OSError, IndexError) as error:
        raise dcf.FormatError(f"cannot read '{path}': {error}") from None
    if checksum(row) != facts.sums[epoch]:
        raise dcf.FormatError(f"'{path}' is damaged: the weights of epoch {epoch} are not those that were written")
    if not bool(row.isfinite().all()):
        raise dcf.FormatError(f"'{path}' is useless: some weights of epoch {epoch} are not finite")
    return row


def split_row(row: Tensor, facts: ExpertFacts) -> dict[str, Tensor]:
    """The weights by name: views of a row `(P,)`."""
    import torch

    parts = torch.split(row, [math.prod(shape) for shape in facts.shapes])
    return {name: part.view(shape) for name, part, shape in zip(facts.names, parts, facts.shapes, strict=True)}


def examine(path: Path) -> ExpertFacts:
    """Read a whole file and make sure that everything in it is as it must be.

    Raises:
        FormatError: For the first thing that is wrong.
    """
    facts = read_facts(path)
    tensors, _ = read_tensors(path)
    theta = tensors[_THETA]
    if not bool(theta.isfinite().all()):
        raise dcf.FormatError(f"'{path}' is useless: some weights are not finite; train with a smaller lr_expert")
    still = [epoch for epoch in range(facts.epochs) if bool((theta[epoch] == theta[epoch + 1]).all())]
    if still:
        raise dcf.FormatError(f"'{path}' is useless: epoch {still[0] + 1} changed no weight")
    wrong = [epoch for epoch, row in enumerate(theta) if checksum(row) != facts.sums[epoch]]
    if wrong:
        raise dcf.FormatError(f"'{path}' is damaged: the weights of epoch {wrong[0]} are not those that were written")
    if folder_of(path.parent.parent.parent, facts.key) != path.parent or expert_path(path.parent, facts.number) != path:
        raise dcf.FormatError(f"'{path}' holds expert {facts.number} of something else than its place says")
    return facts


# --- several processes ------------------------------------------------------------------------------------------------


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim a file that is to be made, without waiting; the claim goes with the process, however it ends.

    Yields:
        Whether nobody else has it. True also where no lock can be had, such as in some shared folders: then two
        processes may make the same.
    """
    lock = path.with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError:
        yield True
        return
    try:
        mine = _hold(handle, lock)
        yield mine
        if mine:
            # Removed while it is held: whoever has it open finds that its file is gone.
            lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _hold(handle: int, lock: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(lock))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return True
