"""Recipes run again: what is run, what is compared, what is said; without running anything."""

import json
from types import SimpleNamespace

import pytest

from dcf.bench import verify as module
from dcf.bench.model import BenchRow
from dcf.bench.plan import plan
from dcf.bench.run import _in_order
from dcf.bench.verify import Verdict, allowed, given_data, trials
from dcf.cli import main
from dcf.components import Kind
from dcf.errors import UsageError
from dcf.evaluation.statistics import summarize
from dcf.recipes import Recipe, Value, load_recipe
from dcf.registry import registry

MEASURED = {"data": "digits", "ipc": 2, "accuracy": 60.0, "std": 1.0, "n": "2 x 3", "protocol": "dcf-std@1[epochs=7]"}
PUBLISHED = {"data": "digits", "ipc": 2, "accuracy": 70.0, "source": "a table"}


def recipe(*measured, published=(PUBLISHED,)):
    return Recipe.model_validate({"recipe": {"name": "random"}, "measured": measured, "published": published})


def verdict(mean, spread=0.0, value=MEASURED, nets=2):
    trial = trials(recipe(value), {})[0]
    values = ((mean / 100 - spread / 100, mean / 100 + spread / 100)[:nets],)
    made = {
        "label": "random", "role": "method", "specs": {}, "data": {"id": "digits"}, "budget": "ipc=2", "iterations": 0,
        "protocol": "p@1", "protocol_hash": "0", "augment": "none", "network": "convnet", "sets": 1, "nets": nets,
    }  # fmt: skip
    return Verdict(trial, BenchRow.model_validate({**made, "values": values, "stat": summarize(values)}))


def test_two_points_or_three_spreads_are_allowed():
    assert allowed(None, 0.0) == 2.0
    assert allowed(0.5, 0.0) == 2.0
    assert allowed(3.0, 4.0) == 15.0


@pytest.mark.parametrize(("mean", "agrees"), [(60.0, True), (62.9, True), (63.1, False), (56.9, False)])
def test_a_value_agrees_within_what_is_allowed(mean, agrees):
    assert verdict(mean).agrees is agrees  # std 1 and 0: three points


def test_a_wide_spread_now_allows_more():
    assert verdict(63.1, spread=2.0).agrees


def test_nothing_run_is_no_verdict():
    assert Verdict(trials(recipe(MEASURED), {})[0], None, "not here").agrees is None


def test_data_are_named_by_their_component_or_by_hand():
    assert given_data(["mnist:root=/x,norm=unit", "cifar10=folder:path=/y"]) == {
        "mnist": "mnist:root=/x,norm=unit",
        "cifar10": "folder:path=/y",
    }


def test_a_measured_value_is_run_as_it_was_obtained():
    settings = {"network": "convnet:width=8", "init.x": "y"}
    value = {**MEASURED, "iterations": 9, "settings": {"network": "convnet:width=8", "seed": 4, "lr": 0.5}}
    (trial,) = trials(recipe(value), {})
    assert (trial.settings.sets, trial.settings.nets, trial.settings.seed) == (2, 3, 4)
    (point,) = plan(trial.settings)
    run = point.request.settings
    assert (run["iterations"], run["lr"], run["network"]) == (9, "0.5", "convnet:width=8")
    assert (run["protocol"], run["protocol_set"]) == ("dcf-std@1", {"epochs": 7})
    assert trial.published.accuracy == 70.0
    with pytest.raises(UsageError, match="random has no option 'x'"):
        trials(recipe({**MEASURED, "settings": settings}), {})


def test_numbers_can_be_asked_for():
    (trial,) = trials(recipe(MEASURED), {}, sets=1, nets=4, jobs=2)
    assert (trial.settings.sets, trial.settings.nets, trial.settings.jobs) == (1, 4, 2)


def test_published_values_are_run_where_nothing_was_measured():
    (trial,) = trials(recipe(), {})
    assert trial.value is trial.published
    assert (trial.settings.sets, trial.settings.nets) == (1, 5)


def test_other_data_and_budgets_are_left_out():
    many = [MEASURED, {**MEASURED, "ipc": 5}, {**MEASURED, "data": "mnist"}]
    assert [t.value.ipc for t in trials(recipe(*many), {"digits": "digits"})] == [2, 5]
    assert [t.value.data for t in trials(recipe(*many), {}, ipc=2)] == ["digits", "mnist"]
    with pytest.raises(UsageError, match="it has: digits ipc 2"):
        trials(recipe(MEASURED), {}, ipc=9)


def test_every_installed_recipe_can_be_run_again():
    for name in registry().names(Kind.RECIPE):
        known = load_recipe(name)
        if known.measured or known.published:
            assert len(trials(known, {})) == len(known.measured or known.published)


def test_settings_of_a_value_default_to_none():
    assert Value.model_validate({"data": "digits", "ipc": 1, "accuracy": 5}).settings == {}


@pytest.mark.parametrize(("mean", "code", "word"), [(60.4, 0, "agrees"), (20.0, 1, "DISAGREES")])
def test_the_command_shows_published_recorded_and_now(monkeypatch, capsys, mean, code, word):
    monkeypatch.setattr("dcf.cli.recipes.load_recipe", lambda name: recipe(MEASURED))
    monkeypatch.setattr(module, "verify", lambda todo, out, progress: [verdict(mean)])
    assert main(["recipes", "--verify", "random"]) == code
    shown = capsys.readouterr().out
    assert word in shown
    assert "70.0" in shown
    assert "60.0 ± 1.0" in shown
    assert f"{mean:.1f} ± 0.0" in shown
    assert main(["recipes", "--verify", "random", "--json"]) == code
    (told,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert told["agrees"] is (code == 0)
    assert told["now"] == pytest.approx(mean)


def test_one_value_has_no_spread(monkeypatch, capsys):
    monkeypatch.setattr("dcf.cli.recipes.load_recipe", lambda name: recipe(MEASURED))
    monkeypatch.setattr(module, "verify", lambda todo, out, progress: [verdict(60.4, nets=1)])
    assert main(["recipes", "--verify", "random"]) == 0
    shown = capsys.readouterr().out
    assert "60.4 ±" not in shown
    assert "one value has no spread" in shown
    assert main(["recipes", "--verify", "random", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdicts"][0]["spread"] is None


def test_the_command_says_what_was_not_run(monkeypatch, capsys):
    monkeypatch.setattr("dcf.cli.recipes.load_recipe", lambda name: recipe())
    left_out = Verdict(trials(recipe(), {})[0], None, "not here: no such folder")
    monkeypatch.setattr(module, "verify", lambda todo, out, progress: [left_out])
    # One who asked for a comparison and got none must not take it for one that agrees.
    assert main(["recipes", "--verify", "random"]) == 1
    shown = capsys.readouterr()
    assert "not run" in shown.out
    assert "digits ipc 2: not here: no such folder" in shown.out
    assert "to the published value" in shown.out
    assert "error: nothing was run" in shown.err


def test_only_what_is_compared_is_run():
    facts = SimpleNamespace(text="digits")
    rows = [
        SimpleNamespace(
            label=role, role=role, budget="ipc=1", facts=facts, cells=[SimpleNamespace(key=role, name=f"cell-{role}")]
        )
        for role in ("random", "method", "whole")
    ]
    assert [cell.key for cell in _in_order(rows, "", alone=True)] == ["method"]
    assert [cell.key for cell in _in_order(rows, "")] == ["random", "method", "whole"]
    baseline = [rows[0]]  # the recipe of the baseline itself
    assert [cell.key for cell in _in_order(baseline, "", alone=True)] == ["random"]


def test_a_dataset_of_no_name_here_is_left_out(tmp_path):
    (trial,) = trials(recipe({**MEASURED, "data": "moon-photos"}), {})
    (found,) = module.verify([trial], tmp_path)
    assert (found.row, found.agrees) == (None, None)
    assert "--data moon-photos=SPEC" in found.note
    (given,) = trials(recipe({**MEASURED, "data": "moon-photos"}), {"moon-photos": "digits"})
    assert given.settings.data == ("digits",)
