"""Computing a case and comparing: from a file to a verdict."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.parity.case import Case, ParityError, read
from torch import Tensor

__all__ = ["Verdict", "check", "compute", "judge", "kinds", "output_error"]

_KINDS = Path(__file__).parent / "kinds"


@dataclass(frozen=True)
class Verdict:
    """What came of one case.

    Attributes:
        name: Of the case, or of the file where it says none.
        error: The largest relative error over all outputs; infinite where there is nothing to compare.
        output: Name of the output that has it.
        tolerance: The largest error allowed; 0 for equality.
        reason: Why it is bad beyond the numbers.
    """

    name: str
    error: float = math.inf
    output: str = "-"
    tolerance: float = math.nan
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the case passes."""
        return not self.reason and self.error <= self.tolerance

    def line(self) -> str:
        """One line for people: name, error, output, tolerance, and `ok` or `BAD` with the reason."""
        tolerance = "-" if math.isnan(self.tolerance) else f"{self.tolerance:.0e}"
        words = [f"{self.name:<34}", f"{self.error:9.2e}", f"{self.output:<18}", f"{tolerance:>6}"]
        return "  ".join([*words, "ok" if self.ok else f"BAD  {self.reason}".rstrip()])


def kinds() -> list[str]:
    """The kinds that can be computed: one a module."""
    return sorted(path.stem.replace("_", "-") for path in _KINDS.glob("[a-z]*.py"))


def compute(case: Case) -> dict[str, Tensor]:
    """The outputs of a case by name, computed with dcf; may be more than it lists.

    Raises:
        ParityError: When nothing computes its kind.
    """
    if case.kind not in kinds():
        raise ParityError(f"unknown kind '{case.kind}'")
    module = importlib.import_module(f"tests.parity.kinds.{case.kind.replace('-', '_')}")
    function: Callable[[Case], dict[str, Tensor]] = module.compute
    return {name: tensor.detach() for name, tensor in function(case).items()}


def output_error(got: Tensor | None, want: Tensor, floor: float = 0.0, exact: bool = False) -> float:
    """Error of one output: 0 or infinite for integers and where equality is asked for, else relative.

    The relative error is the largest absolute difference over the largest expected magnitude, or over `floor`
    where that is larger. It is infinite when the output is missing, has another shape or is not finite.
    """
    if got is None or got.shape != want.shape:
        return math.inf
    if exact or not want.is_floating_point():
        same = got.is_floating_point() == want.is_floating_point() and torch.equal(got.to(want.dtype), want)
        return 0.0 if same else math.inf
    if want.numel() == 0:
        return 0.0
    got, want = got.to(torch.float64), want.to(torch.float64)
    difference, scale = float((got - want).abs().max()), max(float(want.abs().max()), floor)
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 and math.isfinite(difference) else math.inf


def judge(case: Case, outputs: Mapping[str, Tensor]) -> Verdict:
    """Compare computed outputs with the expected ones; those that are not expected do not matter."""
    exact = bool(case.tolerance.get("exact", False))
    floor = float(case.tolerance.get("floor", 0.0))
    errors = {name: output_error(outputs.get(name), want, floor, exact) for name, want in case.wanted.items()}
    worst = max(errors, key=lambda name: errors[name])
    limit = 0.0 if exact else float(case.tolerance.get("rel", 0.0))
    reason = _reason(outputs.get(worst), case.wanted[worst], errors[worst])
    return Verdict(_one_line(case.name), errors[worst], worst, limit, reason)


def _reason(got: Tensor | None, want: Tensor, error: float) -> str:
    if math.isfinite(error):
        return ""
    if got is None:
        return "not computed"
    if got.shape != want.shape:
        return f"expected shape {tuple(want.shape)}, got {tuple(got.shape)}"
    return "not equal" if not want.is_floating_point() or bool(torch.isfinite(got).all()) else "not finite"


def check(path: Path) -> Verdict:
    """Read, compute and compare one file; whatever goes wrong is a verdict, too."""
    name = path.stem
    limit: Any = math.nan
    try:
        case = read(path)
        name = _one_line(case.name) or name
        limit = float(case.tolerance.get("rel", 0.0))
        return judge(case, compute(case))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        return Verdict(name, tolerance=limit, reason=f"needs {missing.replace('_', '-')}")
    except ParityError as error:
        return Verdict(name, tolerance=limit, reason=_one_line(str(error)))
    except Exception as error:  # a broken case must not hide the verdicts of the others
        return Verdict(name, tolerance=limit, reason=_one_line(f"{type(error).__name__}: {error}"))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:300]
