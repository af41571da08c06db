"""ZCA whitening: the mathematics, the fit to training images, and how it is kept and read.

    z = (x - mean) matrix,       matrix  = U diag(1 / sqrt(s + eps)) U'
    x = z inverse + mean,        inverse = U diag(sqrt(s + eps)) U'

with x an image in [0, 1] flattened in the order C, H, W, and U, s the eigenvectors and eigenvalues of the unbiased
covariance of the training images. `eps` stands under the root: only directions with an eigenvalue well above it come
out with variance 1, so that of natural images the result is soft, with a standard deviation of about a quarter.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from dcf.artifacts import Artifacts
from dcf.data.store import PixelStore, digest, pieces
from dcf.errors import DataError

__all__ = [
    "CONVENTION",
    "EPS",
    "LARGEST",
    "TENSORS",
    "Whitening",
    "Zca",
    "fit_whitening",
    "fit_zca",
    "read_whitening",
    "unwhiten",
    "whiten",
]

log = logging.getLogger(__name__)

#: Added to the eigenvalues.
EPS: Final = 0.1
#: Name of the formula above, eps under the root and covariance unbiased; there are others that are called ZCA.
CONVENTION: Final = "zca-kornia"
#: Values of an image at most: the matrices have the square of it, and the fit needs its cube.
LARGEST: Final = 12_288
#: Names of the tensors in a file.
TENSORS: Final = ("space.mean", "space.matrix", "space.inverse")
#: Images whose products are summed at a time.
_ROWS: Final = 2048
#: Values of an image from which on the fit takes long enough to say so.
_SLOW: Final = 512
_ID = re.compile(r"[0-9a-f]{64}\Z")


class Zca(NamedTuple):
    """What a whitening consists of, for images of D values.

    Attributes:
        mean: `(D,)`, of pixels in [0, 1].
        matrix: `(D, D)`, symmetric; whitens.
        inverse: `(D, D)`, symmetric; its inverse.
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor


def fit_zca(images: Iterable[Tensor], eps: float = EPS, levels: float = 1) -> Zca:
    """The whitening of images, in one pass and in float64.

    Args:
        images: Stored values `(n, C, H, W)` piece by piece, at least one image in all. Sums of 8-bit values are exact,
            whatever the pieces.
        eps: Added to the eigenvalues.
        levels: Stored value of a white pixel.

    Returns:
        Tensors in float64, on the CPU.
    """
    count, first, second = 0, torch.zeros(()), torch.zeros(())
    for rows in _rows(images):
        if count == 0:
            first, second = rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1])
        count += len(rows)
        first += rows.sum(0)
        second.addmm_(rows.T, rows)
    mean = first / count
    covariance = second.addr_(mean, mean, alpha=-count).div_(max(1, count - 1) * levels**2)
    values, vectors = torch.linalg.eigh(covariance)
    root = (values.clamp(min=0) + eps).sqrt()
    return Zca(mean / levels, (vectors / root) @ vectors.T, (vectors * root) @ vectors.T)


def _rows(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same images as `(n, D)` in float64, a bounded number at a time."""
    for piece in images:
        flat = piece.flatten(1)
        for start in range(0, len(flat), _ROWS):
            yield flat[start : start + _ROWS].cpu().double()


def whiten(images: Tensor, zca: Zca) -> Tensor:
    """`(x - mean) matrix` for each image.

    Args:
        images: `(..., C, H, W)` pixels in [0, 1].
        zca: Of the dtype of `images`, on their device.

    Returns:
        Values of the same shape and dtype.
    """
    with _full_precision(images.device):
        return ((images.flatten(-3) - zca.mean) @ zca.matrix).view(images.shape)


def unwhiten(values: Tensor, zca: Zca) -> Tensor:
    """`z inverse + mean` for each image: what `whiten` undoes; arguments as there, pixels not clamped."""
    with _full_precision(values.device):
        return (values.flatten(-3) @ zca.inverse + zca.mean).view(values.shape)


class Whitening:
    """The whitening of a dataset. Two are equal when their ids are: what they were fitted to is, and how.

    Args:
        id: 64 hexadecimal digits, a hash of the training pixels, `shape`, `eps` and the convention.
        shape: `(C, H, W)` of an image.
        eps: Added to the eigenvalues.
        zca: The tensors, or what makes them when they are first asked for; they are kept in float32.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the public name of the field
        shape: tuple[int, int, int],
        eps: float,
        zca: Zca | Callable[[], Zca],
    ) -> None:
        if not _ID.match(id):
            raise ValueError(f"expected an id of 64 hexadecimal digits, got {id[:80]!r}")
        self.id, self.shape, self.eps = id, shape, eps
        self._made: Zca | Callable[[], Zca] = zca
        self._at: dict[tuple[torch.device, torch.dtype], Zca] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whitening) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Whitening({self.id[:12]}, eps={self.eps:g})"

    @property
    def size(self) -> int:
        """Values D of an image."""
        return _size(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file."""
        return 4 * (self.size + 2 * self.size**2)

    @property
    def zca(self) -> Zca:
        """The tensors in float32 on the CPU; the first call may have to fit them."""
        if not isinstance(self._made, Zca):
            self._made = Zca(*(t.float() for t in self._made()))
        return self._made

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], `(..., C, H, W)`, to whitened values; same shape and dtype."""
        return whiten(pixels, self._like(pixels))

    def decode(self, values: Tensor) -> Tensor:
        """Whitened values `(..., C, H, W)` to pixels, nominally in [0, 1] and not clamped."""
        return unwhiten(values, self._like(values))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names that they have in a file."""
        return dict(zip(TENSORS, self.zca, strict=True))

    def to_json(self) -> dict[str, Any]:
        """What a file says of it."""
        return {"id": self.id, "eps": self.eps, "convention": CONVENTION}

    def _like(self, images: Tensor) -> Zca:
        if tuple(images.shape[-3:]) != self.shape:
            raise ValueError(f"expected images of {self.shape}, got {tuple(images.shape[-3:])}")
        key = images.device, images.dtype
        if key not in self._at:
            self._at[key] = Zca(*(t.to(*key) for t in self.zca))
        return self._at[key]


def fit_whitening(store: PixelStore, levels: int = 0, eps: float = EPS) -> Whitening:
    """The whitening of training images; fitted when first used, and then kept among the artifacts.

    Args:
        store: The training images.
        levels: Stored value of a white pixel; 0 for 255 of uint8 and 1 of float32.
        eps: Added to the eigenvalues.

    Raises:
        DataError: When there are no images, or they are too large.
    """
    count, shape = store.shape[0], store.shape[1:]
    size = _size(shape)
    if count == 0:
        raise DataError("there are no training images to fit a ZCA whitening to")
    if size > LARGEST:
        raise DataError(
            f"ZCA whitening of images of {' x '.join(map(str, shape))} takes matrices of {size:,} x {size:,}; at most "
            f"{LARGEST:,} values an image are whitened\n  use smaller images, such as size=64, or norm=auto"
        )
    white = levels or (255 if store.dtype == torch.uint8 else 1)
    # Of the pixels alone: the labels have no part in it.
    key = {"pixels": digest(store, torch.empty(0), white), "eps": eps, "convention": CONVENTION}
    name = hashlib.sha256(json.dumps([key, list(shape)], sort_keys=True).encode()).hexdigest()
    return Whitening(name, shape, eps, lambda: _kept(store, white, eps, key))


def _kept(store: PixelStore, levels: int, eps: float, key: Mapping[str, Any]) -> Zca:
    def make() -> dict[str, Tensor]:
        size, count = _size(store.shape[1:]), store.shape[0]
        if size >= _SLOW:
            log.info("computing the ZCA whitening of %d images of %d values; done once and kept", count, size)
        return {k: t.float() for k, t in fit_zca(pieces(store), eps, levels)._asdict().items()}

    return Zca(**Artifacts().get_or_make(key, make, "whitening").tensors)


def read_whitening(
    described: Mapping[str, Any], tensors: Mapping[str, Tensor], shape: tuple[int, int, int]
) -> Whitening:
    """The whitening in a file.

    Args:
        described: What `Whitening.to_json` wrote.
        tensors: What `Whitening.tensors` gave, by name; further ones do not matter.
        shape: `(C, H, W)` of the images.

    Raises:
        ValueError: When anything is missing or of another form; says what.
    """
    convention, eps, name = (described.get(k) for k in ("convention", "eps", "id"))
    if convention != CONVENTION:
        raise ValueError(f"the whitening '{str(convention)[:40]}' is unknown; expected '{CONVENTION}'")
    if not isinstance(eps, float) or not 0 < eps < 1e6 or not isinstance(name, str) or not _ID.match(name):
        raise ValueError("the description of its whitening is not of the form it must have")
    size = _size(shape)
    for key, form in zip(TENSORS, ((size,), (size, size), (size, size)), strict=True):
        found = tensors.get(key)
        if found is None or tuple(found.shape) != form or found.dtype != torch.float32:
            got = "none" if found is None else f"{tuple(found.shape)} {found.dtype}"
            raise ValueError(f"tensor '{key}' of its whitening: expected {form} torch.float32, got {got}")
        if not bool(torch.isfinite(found).all()):
            raise ValueError(f"tensor '{key}' of its whitening holds NaN or infinite values")
    return Whitening(name, shape, eps, Zca(*(tensors[key] for key in TENSORS)))


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No reduced precision: it would bend the pixels by more than the small eigenvalues are worth."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
