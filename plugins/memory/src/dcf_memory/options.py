"""The options of `memory`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import dcf

__all__ = ["MemoryConfig"]


class MemoryConfig(dcf.Config):
    """Options. `init=xavier` is the published start, `images` is ours."""

    bases: int = Field(
        16, ge=1, le=65536, description="bases that all classes share; each further one lengthens every address"
    )
    down: int = Field(
        2, ge=1, le=1024, description="bases are so many times smaller than images along each axis; 1 is as large"
    )
    init: Literal["images", "xavier"] = Field(
        "images",
        description="images: best approximation of real images by so many bases; xavier: small uniform noise, as "
        "published",
    )
