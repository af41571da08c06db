"""Counter-based seeds: every random stream is a function of the run's seed, its name and a counter.

Nothing depends on how often a generator was used before, so a run needs no generator state to be
resumed, and adding an evaluation cannot change a run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["generator", "global_seed", "seed_for"]


def seed_for(seed: int, *stream: str | int) -> int:
    """A 63-bit seed for one stream.

    Args:
        seed: The run's seed.
        stream: Name and counters of the stream, such as `("network", iteration)`.

    Example:
        >>> seed_for(0, "network", 3) == seed_for(0, "network", 3) != seed_for(0, "network", 4)
        True
    """
    key = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *stream))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *stream: str | int) -> torch.Generator:
    """A CPU generator for one stream; draws made on the CPU are the same on every device."""
    import torch

    return torch.Generator().manual_seed(seed_for(seed, *stream))


@contextmanager
def global_seed(seed: int, *stream: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator for library code that knows no other, and put it back afterwards."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, *stream))
        yield
