"""`export_set`: a condensed set as files that other programs read, and what these cannot hold."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from dcf.errors import RunError, UsageError
from dcf.exchange.options import MANIFEST, Format, check_format, require_free
from dcf.files import atomic_write
from dcf.synthetic import SyntheticSet

__all__ = ["Exported", "export_set"]

#: Channels of a picture at most: colour and transparency.
_CHANNELS: Final = 4
_ODD: Final = re.compile(r"[^A-Za-z0-9 _.+-]")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: Everything, in order.
        lost: What the set has and these files have not, a line for each.
    """

    files: tuple[Path, ...]
    lost: tuple[str, ...]


def export_set(one: SyntheticSet, to: Format, out: Path | str, force: bool = False) -> Exported:
    """Write the training images of a set for other programs.

    Images are decoded; numbers are float32 of the set's value space, but for pictures, which are 8-bit pixels.

    Args:
        one: The set.
        to: What to write; see `dcf.exchange.options.FORMATS`.
        out: File to write; of formats that are folders, the folder.
        force: Replace an export that is there.

    Raises:
        UsageError: When there is no such format, something is there, or the images cannot be pictures.
        RunError: When it cannot be written; nothing is changed then.
    """
    out = Path(out)
    check_format(to)
    require_free(out, to, force)
    content = _Content(one)
    if to == "png":
        pictures, lost = _pictures(content), [*content.lost(lr=False, soft=False), *_eight_bits(content)]
        return _write_folder(out, pictures, one, lost)
    if to == "pt-files":
        lost = content.lost(lr=True)
        return _write_folder(out, {f"{n}_best.pt": _saved(t) for n, t in content.tensors().items()}, one, lost)
    if to == "npz":
        atomic_write(out, _npz(content))
        return Exported((out,), tuple(content.lost(whitening=True)))
    pair = [content.images, content.labels]
    atomic_write(out, _saved(pair if to == "pt-pair" else {"data": [pair], **content.facts()}))
    return Exported((out,), tuple(content.lost(lr=to == "pt")))


class _Content:
    """The training images of a set, and what can be said beside them."""

    def __init__(self, one: SyntheticSet) -> None:
        self.one = one
        images, labels = one.tensors()
        self.images = images.detach().cpu().float().contiguous()
        self.labels = labels.detach().cpu().contiguous()
        self.targets = one.param.view_class.cpu()

    def tensors(self) -> dict[str, Tensor]:
        """Images, labels and, where one was learned, the step size."""
        lr = self.one.hints.lr
        return {"images": self.images, "labels": self.labels, **({} if lr is None else {"lr": torch.tensor(lr)})}

    def facts(self) -> dict[str, Any]:
        """What a table can say beside the images, in plain values."""
        spec, lr = self.one.spec, self.one.hints.lr
        constants = {} if spec.space.kind == "zca" else {"mean": list(spec.space.mean), "std": list(spec.space.std)}
        soft = {"targets": self.targets} if self.labels.ndim == 2 else {}
        return {"classes": list(spec.classes), **constants, **soft, **({} if lr is None else {"lr": lr})}

    def lost(self, *, lr: bool = True, soft: bool = True, whitening: bool = False) -> list[str]:
        """What the files lack, but for what they hold: a step size, soft labels, a whitening."""
        one, found = self.one, []
        stored, decoded = one.storage().nbytes, self.images.numel() * 4
        if stored != decoded:
            found.append(f"how it is stored: {stored:,} bytes become {decoded:,} of plain images")
        if one.hints.program is not None or one.hints.ordered:
            found.append("the program: order and step sizes of its training")
        if one.hints.lr is not None and not lr:
            found.append(f"the learned step size {one.hints.lr:g}")
        if one.hints.steps is not None:
            found.append(f"the learned length of training, {one.hints.steps} steps")
        if self.labels.ndim == 2 and not soft:
            found.append("soft labels: of each image only the class that it started from is left")
        if one.space.whitening is not None and soft and not whitening:
            found.append(f"the whitening: test images must be whitened alike, as {one.space}")
        return found


# --- single files ------------------------------------------------------------------------------------


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _npz(content: _Content) -> bytes:
    """Numpy arrays without any object in them, so that they load with `allow_pickle=False`."""
    one = content.one
    arrays: dict[str, Any] = {"images": content.images.numpy(), "labels": content.targets.numpy()}
    arrays |= {"soft_labels": content.labels.numpy()} if content.labels.ndim == 2 else {}
    arrays |= {"classes": np.array(one.classes, dtype=np.str_)}
    arrays |= {"mean": np.array(one.space.mean), "std": np.array(one.space.std)}
    arrays |= {} if one.hints.lr is None else {"lr": np.array(one.hints.lr)}
    if one.space.whitening is not None:
        arrays |= {name.replace(".", "_"): t.numpy() for name, t in one.space.whitening.tensors().items()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# --- pictures ----------------------------------------------------------------------------------------


def _pixels(content: _Content) -> Tensor:
    return content.one.space.decode(content.images)


def _pictures(content: _Content) -> dict[str, bytes]:
    """PNG files by path, `CLASS/NUMBER.png`."""
    from PIL import Image

    channels = content.images.shape[1]
    if channels > _CHANNELS:
        raise UsageError(
            f"--to png: a picture has 1 to 4 channels, and these images have {channels}; expected --to npz"
        )
    folders = _folders(content.one.classes)
    codes = (_pixels(content).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    found: dict[str, bytes] = {}
    seen = dict.fromkeys(range(len(folders)), 0)
    for target, code in zip(content.targets.tolist(), codes, strict=True):
        buffer = io.BytesIO()
        grey = code.numpy() if channels > 1 else code[..., 0].numpy()
        Image.fromarray(grey).save(buffer, format="PNG")
        found[f"{folders[target]}/{seen[target]:05d}.png"] = buffer.getvalue()
        seen[target] += 1
    return found


def _folders(classes: list[str]) -> list[str]:
    """A folder for each class: its name, of which a file may claim anything, made harmless."""
    plain = [_ODD.sub("_", name).strip(" .")[:100] or "_" for name in classes]
    if len({name.lower() for name in plain}) == len(plain):
        return plain
    return [f"{number:04d} {name}" for number, name in enumerate(plain)]


def _eight_bits(content: _Content) -> list[str]:
    pixels = _pixels(content)
    outside = float(((pixels < 0) | (pixels > 1)).float().mean())
    change = (pixels - (pixels.clamp(0, 1) * 255).round() / 255).abs()
    return [
        f"8 bits a value: {100 * outside:.1f} % of the values lie outside [0, 1] and are cut off; a pixel in [0, 1] "
        f"changes by {float(change.mean()):.4f} in the mean and {float(change.max()):.4f} at most"
    ]


# --- folders -----------------------------------------------------------------------------------------


def _write_folder(out: Path, files: Mapping[str, bytes], one: SyntheticSet, lost: list[str]) -> Exported:
    """Write a folder whole or not at all, in place of an export that may be there."""
    about = {"classes": one.classes, "config": one.config, "space": one.space.to_json(), "lost": lost}
    contents = {**files, MANIFEST: (json.dumps(about, indent=1) + "\n").encode()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name[:100]}.{os.getpid()}.tmp")
        temporary.mkdir()
    except OSError as error:
        raise RunError(f"cannot write '{out}': {error.strerror}; nothing was changed there") from None
    try:
        for name, content in contents.items():
            target = temporary / name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        _replace(out, temporary)
    except OSError as error:
        raise RunError(f"cannot write '{out}': {error.strerror}; nothing was changed there") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(tuple(out / name for name in contents), tuple(lost))


def _replace(out: Path, made: Path) -> None:
    """Put a folder in its place; what was there goes when the new one is there."""
    old = made.with_name(made.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        made.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
