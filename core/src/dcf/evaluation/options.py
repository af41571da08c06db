"""The options of the evaluators that come with core; free of torch, so that a wrong one is reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from dcf.config import Config
from dcf.errors import SpecError

__all__ = ["CrossArchConfig", "pool_specs"]


class CrossArchConfig(Config):
    """Options of `cross-arch`."""

    pool: tuple[str, ...] = Field(min_length=1, description="name of a pool, or a list of network specs")

    @field_validator("pool", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("pool")
    @classmethod
    def _names_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        pool_specs(value)
        return value


def pool_specs(pool: Sequence[str]) -> list[str]:
    """Network specs of a pool: names of pools are replaced by their members, everything else is a spec.

    Raises:
        SpecError: When an entry is neither the name of a pool nor the spec of a network.
    """
    from dcf.build import check
    from dcf.components import Kind
    from dcf.networks.names import POOLS

    specs: list[str] = []
    for entry in pool:
        if entry in POOLS:
            specs.extend(POOLS[entry])
            continue
        try:
            check(Kind.NETWORK, entry, "pool")
        except SpecError as error:
            hints = [*error.hints, f"pools: {', '.join(sorted(POOLS))}"]
            raise type(error)(error.message, error.text, error.span, hints, error.flag) from None
        specs.append(entry)
    return specs
