"""What composes with what is as the packages' files say: every cell is run again."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dcf
from dcf.cli import main
from dcf.compositions import Cell, Status, axes, cells, file_text
from dcf.registry import Candidate, Registry, registry

FILE = Path(__file__).with_name("compositions.py")


def load():
    spec = importlib.util.spec_from_file_location("compositions_script", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load()
HINT = "run: python tests/compositions.py"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("matcher", registry().names(dcf.Kind.MATCHER))
def test_every_composition_is_what_the_files_say(matcher):
    recorded = {cell.key: (cell.status, cell.reason) for cell in cells()}
    for cell in SCRIPT.tried(matcher):
        assert recorded[cell.key] == (cell.status, cell.reason), f"{' '.join(cell.key)}; {HINT}"


def test_nothing_that_is_installed_is_untested_and_nothing_else_is_recorded():
    found = cells()
    assert [cell.key for cell in found if cell.status is Status.UNTESTED] == [], HINT
    matchers, params, augmenters = axes(registry(), SCRIPT.recipe_triples())
    assert {cell.key for cell in found} == {(m, p, a) for m in matchers for p in params for a in augmenters}, HINT
    assert {cell.key for cell in found if cell.status is Status.TESTED} == SCRIPT.recipe_triples(), HINT
    assert all(bool(cell.reason) == (cell.status is Status.IMPOSSIBLE) for cell in found)


def test_a_composition_that_learns_nothing_is_refused_with_the_reason():
    (reason,) = {c.reason for c in cells() if (c.matcher, c.param, c.augmenter) == ("ld", "pixels", "none")}
    assert "teaches labels, but Pixels learns images" in reason


@pytest.mark.slow
def test_a_matcher_that_changes_nothing_does_not_run():
    from dcf.testing.compositions import try_composition
    from dcf.testing.fakes import PullToMean

    class Idle(PullToMean):
        def outer(self, ctx, it):
            for step in super().outer(ctx, it):
                yield step._replace(loss=step.loss * 0)

    assert try_composition(PullToMean(), "pixels", "none") == (Status.RUNS, "")
    with pytest.raises(AssertionError, match="changed nothing"):
        try_composition(Idle(), "pixels", "none")


def third_party(tmp_path, monkeypatch, text=None):
    """A registry with a foreign parameterization, and the file of its package."""
    package = tmp_path / "dcf_foreign"
    package.mkdir()
    (package / "__init__.py").write_text("")
    if text is not None:
        (package / "compositions.json").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dcf_foreign", raising=False)  # that of the test before
    module = ModuleType("dcf_foreign")
    component = dcf.Component("param", "foreign", "dcf_foreign.code:Foreign", "of somebody else")
    module.dcf_components = dcf.hookimpl(lambda: [component])
    module.dcf_components.__name__ = "dcf_components"
    from dcf import builtin

    return Registry.of(
        [
            Candidate("builtin", "dcf-core", "0.1.0", module=builtin),
            Candidate("foreign", "dcf-foreign", "1.0", module=module),
        ]
    )


def status(reg, *key):
    return next(cell for cell in cells(reg) if cell.key == key)


def test_what_a_foreign_package_does_not_speak_of_is_untested(tmp_path, monkeypatch):
    reg = third_party(tmp_path, monkeypatch)
    assert status(reg, "none", "foreign", "none").status is Status.UNTESTED
    assert status(reg, "none", "pixels", "none").status is Status.TESTED


def test_a_foreign_package_speaks_of_its_own_components_only(tmp_path, monkeypatch):
    said = [Cell("none", "foreign", "none", Status.RUNS), Cell("none", "pixels", "none", Status.IMPOSSIBLE, "mine")]
    reg = third_party(tmp_path, monkeypatch, file_text(said))
    assert status(reg, "none", "foreign", "none") == Cell("none", "foreign", "none", Status.RUNS, "", "dcf-foreign")
    assert status(reg, "none", "pixels", "none").status is Status.TESTED


UNKNOWN_STATUS = '{"schema": "dcf.compositions/1", "cells": {"none foreign": {"none": "fine"}}}'


@pytest.mark.parametrize("text", ["", "[]", "{}", UNKNOWN_STATUS])
def test_a_damaged_file_is_left_out_with_a_warning(text, tmp_path, monkeypatch, caplog):
    reg = third_party(tmp_path, monkeypatch, text)
    assert status(reg, "none", "foreign", "none").status is Status.UNTESTED
    assert "dcf-foreign" in caplog.text


def test_the_matrix_is_shown_and_written(capsys):
    assert main(["list-plugins", "--matrix"]) == 0
    out = capsys.readouterr().out
    assert "no (1): " in out
    assert "impossible: " in out
    assert main(["list-plugins", "--matrix", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["cells"]) == sum(shown["counts"].values()) == len(cells())
    assert main(["list-plugins", "--matrix", "--kind", "param"]) == 2
