"""What a run will take before it starts: its time, its memory and its bytes, from the first steps of the real thing.

Free of torch: everything is measured in a process of its own, so that neither its memory nor its end is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dcf.estimate.model import DoesNotFitError, Estimate, EvaluationRow, judged
from dcf.estimate.units import parse_size
from dcf.estimate.watch import measure_apart
from dcf.resolve import Request, resolve

__all__ = ["DoesNotFitError", "Estimate", "EvaluationRow", "estimate", "estimate_request"]


def estimate(
    *,
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    memory_limit: int | str | None = None,
    on_stage: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Estimate:
    """What `dcf.condense` with the same settings will take, from its first steps, which are run and thrown away.

    Args:
        recipe: Name of a recipe; options given beside it win.
        overrides: Component options by dotted key, as with `--set`.
        memory_limit: Refuse a run that needs more, in bytes or as text such as "4GiB": of the whole process on a CPU,
            of the GPU otherwise. Without one, what is available here.
        on_stage: Told what is being measured.
        options: Settings of `dcf.runconfig.RunConfig` by name; components as specs, or as objects that can be pickled.

    Raises:
        DoesNotFitError: When the run needs more memory than there is, with advice.
        DcfError: What would keep the run from starting.

    Example:
        >>> dcf.estimate.estimate(matcher="none", data="digits", ipc=1).stored_bytes  # doctest: +SKIP
        2560
    """
    return estimate_request(resolve(options, recipe, overrides), memory_limit, on_stage)


def estimate_request(
    request: Request, memory_limit: int | str | None = None, on_stage: Callable[[str], None] = lambda text: None
) -> Estimate:
    """As `estimate`, for settings that are merged and checked already.

    Raises:
        DoesNotFitError: When the run needs more memory than there is, with advice.
        DcfError: What would keep the run from starting.
    """
    limit = parse_size(memory_limit) if isinstance(memory_limit, str) else memory_limit
    return judged(Estimate.from_json(measure_apart(request, on_stage)), limit)
