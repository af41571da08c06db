"""Value spaces: what the numbers of an image tensor mean, and how to get back to pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcf.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ValueSpace"]


@dataclass(frozen=True)
class ValueSpace:
    """Per-channel affine image space, `value = (pixel - mean) / std` with pixels in [0, 1].

    The space belongs to the dataset, travels in the file and is checked before a set is used: a set of one
    space evaluated against test images of another gives a plausible and wrong number.

    Args:
        mean: One per channel, in units of pixels in [0, 1].
        std: One per channel, positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"expected one mean and one std a channel, got {len(self.mean)} and {len(self.std)}")
        if any(not 0 < s < math.inf for s in self.std):
            raise ValueError(f"expected positive stds, got {self.std}")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"expected finite means, got {self.mean}")

    @classmethod
    def unit(cls, channels: int) -> ValueSpace:
        """Plain pixels in [0, 1]."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @property
    def kind(self) -> str:
        """`unit` or `normalized`."""
        return "unit" if set(self.mean) == {0.0} and set(self.std) == {1.0} else "normalized"

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], `(..., C, H, W)`, to this space; same shape and dtype."""
        mean, std = self._constants(pixels)
        return (pixels - mean) / std

    def decode(self, values: Tensor) -> Tensor:
        """Values of this space, `(..., C, H, W)`, to pixels, nominally in [0, 1] and not clamped."""
        mean, std = self._constants(values)
        return values * std + mean

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if like.shape[-3] != len(self.mean):
            raise ValueError(f"expected {len(self.mean)} channels, got {like.shape[-3]}")
        return like.new_tensor(self.mean).view(-1, 1, 1), like.new_tensor(self.std).view(-1, 1, 1)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready description, the inverse of `from_json`."""
        return {"kind": self.kind, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ValueSpace:
        """Read what `to_json` wrote.

        Raises:
            FormatError: When the kind is unknown or the constants are not usable.
        """
        try:
            if value["kind"] not in ("unit", "normalized"):
                raise FormatError(f"unknown value space {str(value['kind'])[:40]!r}; a newer dcf may know it")
            return cls(tuple(map(float, value["mean"])), tuple(map(float, value["std"])))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the value space in the file is not usable: {error}") from None
