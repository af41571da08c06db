"""Value spaces: what the numbers of an image tensor mean, and how to get back to pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcf.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

    from dcf.whitening import Whitening

__all__ = ["ValueSpace"]


@dataclass(frozen=True)
class ValueSpace:
    """What values mean: `(pixel - mean) / std` for each channel, with pixels in [0, 1], or whitened pixels.

    The space belongs to the dataset, travels in the file and is checked before a set is used: a set of one
    space evaluated against test images of another gives a plausible and wrong number.

    Args:
        mean: One per channel, in units of pixels in [0, 1].
        std: One per channel, positive.
        whitening: What is applied to plain pixels instead, in which case every mean is 0 and every std 1; two spaces
            with whitening are equal when its id is.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"expected one mean and one std a channel, got {len(self.mean)} and {len(self.std)}")
        if any(not 0 < s < math.inf for s in self.std):
            raise ValueError(f"expected positive stds, got {self.std}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"expected finite means, got {self.mean}")
        if self.whitening is not None and (self.std != (1.0,) * self.whitening.shape[0] or any(self.mean)):
            raise ValueError("expected means of 0 and stds of 1 beside a whitening, one a channel")

    @classmethod
    def unit(cls, channels: int) -> ValueSpace:
        """Plain pixels in [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def whitened(cls, whitening: Whitening) -> ValueSpace:
        """The space of images that are whitened."""
        channels = whitening.shape[0]
        return cls((0.0,) * channels, (1.0,) * channels, whitening)

    @property
    def kind(self) -> str:
        """`unit`, `normalized` or `zca`."""
        if self.whitening is not None:
            return "zca"
        return "unit" if set(self.mean) == {0.0} and set(self.std) == {1.0} else "normalized"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that a file holds of the space: those of the whitening, else none."""
        return 0 if self.whitening is None else self.whitening.nbytes

    def __str__(self) -> str:
        """A short text for messages."""
        if self.whitening is not None:
            return f"zca ({self.whitening.id[:12]}, eps {self.whitening.eps:g})"
        if self.kind == "unit":
            return "unit"
        return f"normalized (mean {_shown(self.mean)}, std {_shown(self.std)})"

    def suits(self, wanted: str) -> bool:
        """Whether it has the values that an augmentation expects.

        Args:
            wanted: "unit": pixels in [0, 1]; "normalized": values around 0, which whitened ones are too; "any".
        """
        return wanted in ("any", self.kind) or (wanted, self.kind) == ("normalized", "zca")

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], `(..., C, H, W)`, to this space; same shape and dtype."""
        if self.whitening is not None:
            return self.whitening.encode(pixels)
        mean, std = self._constants(pixels)
        return (pixels - mean) / std

    def decode(self, values: Tensor) -> Tensor:
        """Values of this space, `(..., C, H, W)`, to pixels, nominally in [0, 1] and not clamped."""
        if self.whitening is not None:
            return self.whitening.decode(values)
        mean, std = self._constants(values)
        return values * std + mean

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-3] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} channels, got {like.shape[-3]}")
        return like.new_tensor(self.mean).view(-1, 1, 1), like.new_tensor(self.std).view(-1, 1, 1)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description, the inverse of `from_json`; of a whitening without its tensors."""
        if self.whitening is not None:
            return {"kind": self.kind, **self.whitening.to_json()}
        return {"kind": self.kind, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ValueSpace:
        """Read what `to_json` wrote of a space without whitening; `dcf.whitening.read_whitening` reads one.

        Raises:
            FormatError: When the kind is unknown or the constants are not usable.
        """
        try:
            if value["kind"] not in ("unit", "normalized"):
                raise FormatError(f"unknown value space {str(value['kind'])[:40]!r}; a newer dcf may know it")
            return cls(tuple(map(float, value["mean"])), tuple(map(float, value["std"])))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the value space in the file is not usable: {error}") from None


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:4]) + (", ..." if len(values) > 4 else "")
