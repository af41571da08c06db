"""Conformance checks for components, and small stand-ins for writing a plugin's own tests.

In a plugin's test file::

    import dcf.testing

    @dcf.testing.parametrize("lowrank:r=2")
    def test_conformance(check):
        check()

gives one test for each check; `run_checks` does the same without pytest, and `dcf check SPEC` prints it. A gap that is
known is declared on the component's class, with its reason, and shown as such::

    conformance_xfail = {"check_gradient_reaches_every_latent": "the codebook is not learned"}

A declared gap that no longer fails is a failure: the declaration is stale.
"""

from __future__ import annotations

from dcf.testing.collect import CheckResult, checks_for, parametrize, run_checks
from dcf.testing.fakes import (
    PullToMean,
    SoftPixels,
    TinyFactory,
    TinyNet,
    fake_context,
    fake_data,
    fake_set,
    fake_spec,
)
from dcf.testing.registries import registry_with
from dcf.testing.subject import CheckFailed, CheckSkipped, Subject, require

__all__ = [
    "CheckFailed",
    "CheckResult",
    "CheckSkipped",
    "PullToMean",
    "SoftPixels",
    "Subject",
    "TinyFactory",
    "TinyNet",
    "checks_for",
    "fake_context",
    "fake_data",
    "fake_set",
    "fake_spec",
    "parametrize",
    "registry_with",
    "require",
    "run_checks",
]
