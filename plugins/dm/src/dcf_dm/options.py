"""The options of `dm`; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from pydantic import Field

import dcf

__all__ = ["DMConfig"]


class DMConfig(dcf.Config):
    """Options; the defaults are the paper's."""

    batch_real: int = Field(256, ge=1, description="real images a class and iteration")
