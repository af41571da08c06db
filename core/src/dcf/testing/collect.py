"""Which checks apply to a component, and running them, with or without pytest."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dcf.testing.augmenters as augmenters
import dcf.testing.common as common
import dcf.testing.datasets as datasets
import dcf.testing.evaluators as evaluators
import dcf.testing.latents as latents
import dcf.testing.matchers as matchers
import dcf.testing.networks as networks
import dcf.testing.params as params
import dcf.testing.selectors as selectors
import dcf.testing.storage as storage
import dcf.testing.texts as texts
from dcf.components import Kind
from dcf.spec import parse
from dcf.testing.subject import (
    TEXTS,
    Check,
    CheckFailed,
    CheckSkipped,
    Exercise,
    Subject,
    find_component,
    kind_of,
)

__all__ = ["CheckResult", "checks_for", "parametrize", "run_check", "run_checks", "subject_of"]

_CHECKS: dict[Kind, Sequence[Check]] = {
    Kind.MATCHER: matchers.CHECKS,
    Kind.PARAM: (*params.CHECKS, *latents.CHECKS, *storage.CHECKS),
    Kind.AUGMENTER: augmenters.CHECKS,
    Kind.EVALUATOR: evaluators.CHECKS,
    Kind.DATASET: datasets.CHECKS,
    Kind.NETWORK: networks.CHECKS,
    Kind.SELECTOR: selectors.CHECKS,
    Kind.PROTOCOL: texts.PROTOCOL_CHECKS,
    Kind.RECIPE: texts.RECIPE_CHECKS,
}

_EXERCISES: dict[Kind, Exercise] = {
    Kind.MATCHER: matchers.exercise,
    Kind.PARAM: params.exercise,
    Kind.AUGMENTER: augmenters.exercise,
    Kind.EVALUATOR: evaluators.exercise,
    Kind.DATASET: datasets.exercise,
    Kind.NETWORK: networks.exercise,
    Kind.SELECTOR: selectors.exercise,
}


@dataclass(frozen=True)
class CheckResult:
    """How one check went.

    Attributes:
        name: Of the check.
        status: "expected" is a failure that the class declares in `conformance_xfail`.
        detail: What is wrong, why it was expected, or why it was skipped; empty when ok.
    """

    name: str
    status: Literal["ok", "failed", "expected", "skipped"]
    detail: str = ""


def checks_for(kind: Kind | str) -> list[Check]:
    """The checks of a kind, those of every component first; each takes a `Subject` and raises when it fails."""
    kind = Kind(kind)
    shared = common.ANNOUNCED if kind in TEXTS else (*common.ANNOUNCED, *common.CONFIGURED, *common.EXERCISED)
    return [*shared, *_CHECKS[kind]]


def subject_of(kind: Kind | str | None, spec: str) -> Subject:
    """The component that a spec names, ready to be checked.

    Raises:
        UsageError: When there is none, or the name belongs to several kinds.
        PluginError: When its plugin could not be loaded.
    """
    kind = kind_of(kind, spec)
    registered = find_component(kind, spec)
    text = spec if kind in TEXTS else str(parse(spec, kind.flag))
    return Subject(kind, text, registered, _EXERCISES.get(kind, texts.exercise))


def run_check(check: Check, subject: Subject) -> CheckResult:
    """Run one check; whatever it raises becomes part of the result."""
    name = _name(check)
    reason = subject.gaps.get(name)
    try:
        check(subject)
    except CheckSkipped as skipped:
        return CheckResult(name, "skipped", str(skipped))
    except Exception as error:  # a component may raise anything; that is a result, too
        failed = CheckResult(name, "failed", _detail(error))
        return failed if reason is None else CheckResult(name, "expected", reason)
    if reason is not None:
        return CheckResult(name, "failed", f"passes, but is declared a known gap ({reason}); remove it")
    return CheckResult(name, "ok")


def run_checks(kind: Kind | str | None, spec: str) -> list[CheckResult]:
    """Run all checks of a component.

    Args:
        kind: Its kind; None looks the name up.
        spec: Such as `"lowrank:r=2"`; required options must be given.

    Raises:
        UsageError: When the spec names nothing that can be checked, or does not fit.
        PluginError: When its plugin could not be loaded.
    """
    subject = subject_of(kind, spec)
    if subject.kind not in TEXTS:
        subject.make()
    return [run_check(check, subject) for check in checks_for(subject.kind)]


def parametrize(spec: str, kind: Kind | str | None = None) -> Callable[[Any], Any]:
    """Turn a test that calls its argument `check` into one test for each check of a component.

    Args:
        spec: Such as `"lowrank:r=2"`.
        kind: Its kind; looked up by default.

    Example:
        >>> @parametrize("pixels")  # doctest: +SKIP
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    subject = subject_of(kind, spec)
    cases = [_Case(check, subject) for check in checks_for(subject.kind)]
    mark: Callable[[Any], Any] = pytest.mark.parametrize("check", cases, ids=[_name(c.check) for c in cases])
    return mark


@dataclass(frozen=True)
class _Case:
    """One check of one component, as pytest runs it."""

    check: Check
    subject: Subject

    def __call__(self) -> None:
        import pytest

        result = run_check(self.check, self.subject)
        if result.status == "failed":
            raise CheckFailed(f"{self.subject.spec}: {result.detail}")
        if result.status == "expected":
            pytest.xfail(result.detail)
        if result.status == "skipped":
            pytest.skip(result.detail)


def _name(check: Check) -> str:
    return str(getattr(check, "__name__", check))


def _detail(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, CheckFailed):
        return text
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"
