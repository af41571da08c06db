"""The options of the evaluators that come with core; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from dcf.config import Config

__all__ = ["CrossArchConfig"]


class CrossArchConfig(Config):
    """Options of `cross-arch`."""

    pool: tuple[str, ...] = Field(min_length=1, description="name of a pool, or a list of network specs")

    @field_validator("pool", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
