"""The configuration of a run: as TOML and back, with options changed by `--set`, and its budget."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcf.budget import Budget
from dcf.errors import ConfigError, RunError, SpecError, UsageError
from dcf.resolve import Request, complete
from dcf.runconfig import RunConfig, apply_overrides, from_toml, parse_budget, to_toml
from dcf.spec import parse


@pytest.fixture
def round_trip(tmp_path):
    def there_and_back(config):
        (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
        return from_toml(tmp_path / "config.toml")

    return there_and_back


# --- as TOML -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ipc": 3, "seed": 2**63 - 1, "lr": 1e-7, "momentum": 0.0, "clip": 1e22, "class_chunk": 4, "networks": 2},
        {"budget": "bytes=4096", "evaluate": False, "baselines": ("random", "whole")},
        {"baselines": ()},
        {"data": 'folder:path="/a \\"b\\" \\\\c/é 日本 😀",size=64', "param": "lowrank:r=4+up:f=2"},
        {"data": "folder:path='tab\tnewline\ndel\x7fbell\x07'"},
        {"protocol_set": {"epochs": "30", "augment": "dsa:ops=[color,crop]", "note": 'é "q" 😀 \\ \x7f'}},
        {"protocol_set": {"epochs": 30, "extra_epoch": True, "lr": 0.01, "list": [1, "a"], "odd key.é😀": "x"}},
        {"protocol_set": {"augment_for": {"cifar10": "dsa", "a.b": {"c": [1.5, {"d": "é"}]}}, "empty": {}}},
    ],
    ids=lambda c: str(c)[:40],
)
def test_a_configuration_survives_its_file(round_trip, changes):
    config = RunConfig(**changes)
    assert round_trip(config) == config


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_its_file(round_trip, text, key):
    config = RunConfig(recipe=text, protocol_set={key: text})
    assert round_trip(config) == config


def test_the_file_is_flat_and_in_order(round_trip):
    text = to_toml(RunConfig(ipc=1, protocol_set={"epochs": 2}))
    values = tomllib.loads(text)
    assert [k for k in values if k != "protocol_set"] == [
        k for k in RunConfig.model_fields if k in values and k != "protocol_set"
    ]
    assert "budget" not in values
    assert text.endswith('[protocol_set]\n"epochs" = 2\n')


@pytest.mark.parametrize(
    "text",
    [
        "x = ",
        "x = 1",
        "ipc = 0",
        "ipc = 'x'",
        "ipc = 1\nbudget = 'bytes=1'",
        "seed = -1",
        "lr = nan",
        "store = 'odd'",
        "lr = inf",
        "x = " + "[" * 5000,
    ],
    ids=lambda t: t[:20],
)
def test_a_file_that_is_no_configuration_is_an_error(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(RunError, match=str(path)):
        from_toml(path)


@pytest.mark.parametrize("what", ["missing", "directory", "bytes"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, what):
    path = tmp_path / "config.toml"
    if what == "directory":
        path.mkdir()
    elif what == "bytes":
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunError):
        from_toml(path)


# --- budget --------------------------------------------------------------------------------------


def test_the_budget_of_a_run():
    assert RunConfig(ipc=3).budget_of(64, 10).limit == 3 * 10 * 64
    assert RunConfig().budget_of(64, 10).to_json() == {"ipc": 1, "floats": 640}
    assert RunConfig(budget="floats=100", store="uint8").budget_of(64, 10).to_json() == {"floats": 100}
    assert RunConfig(budget="bytes=403").budget_of(64, 10).to_json() == {"bytes": 403}
    # A plain image stored with a scale and a zero costs two numbers more: ipc stays what it says.
    assert RunConfig(ipc=3, store="uint8").budget_of(64, 10).limit == 3 * 10 * 66
    assert RunConfig(ipc=3, store="fp16").budget_of(64, 10).limit == 3 * 10 * 64


@pytest.mark.parametrize("run", [None, [], {}, {"ipc": 0}, {"ipc": True}, {"ipc": "1"}, {"ipc": 1.0}, {"budget": 3},
                                 {"budget": "x"}, {"budget": "bytes=0"}, {"ipc": 1, "budget": ["x"]}])  # fmt: skip
def test_a_file_that_tells_of_no_budget_has_none(run):
    assert Budget.recorded(run, 64, 10, "fp32") is None


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes=", "bytes=0", "bytes=-1", "bytes=1.5", "bits=8", "100", "bytes=1e3"]
)
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected bytes=N or floats=N"):
        parse_budget(text)
    with pytest.raises(ValueError, match="expected bytes=N or floats=N"):
        RunConfig(budget=text)


def test_two_budgets_are_refused():
    with pytest.raises(ValueError, match="either ipc or budget"):
        RunConfig(ipc=1, budget="bytes=1")


# --- --set ---------------------------------------------------------------------------------------

VALUES = {"matcher": "dc:metric=mse,batch_real=8", "param": "lowrank:r=2+up:f=2", "augment": "dsa"}


@pytest.mark.parametrize(
    ("key", "value", "role", "expected"),
    [
        ("matcher.metric", "ours", "matcher", "dc:batch_real=8,metric=ours"),
        ("matcher.new", "1", "matcher", "dc:metric=mse,batch_real=8,new=1"),
        ("matcher.opt.lr", "1", "matcher", "dc:metric=mse,batch_real=8,opt.lr=1"),
        ("param.f", "3", "param", "lowrank:r=2+up:f=3"),
        ("param.lowrank.r", "4", "param", "lowrank:r=4+up:f=2"),
        ("param.up.f", "3", "param", "lowrank:r=2+up:f=3"),
        ("param.lowrank.opt.lr", "4", "param", "lowrank:r=2,opt.lr=4+up:f=2"),
        ("augment.ops", "[color,crop]", "augment", "dsa:ops=[color,crop]"),
        ("augment.inner", "(a:b=1+c)", "augment", "dsa:inner=(a:b=1+c)"),
        ("data.path", '"a b,c"', "data", 'digits:path="a b,c"'),
        ("network.width", "16", "network", "convnet:width=16"),
    ],
)
def test_an_option_of_a_component_is_set(key, value, role, expected):
    changed = apply_overrides(VALUES, {key: value})
    assert changed[role] == expected
    assert parse(changed[role]) == parse(expected)
    assert {k: v for k, v in changed.items() if k != role} == {k: v for k, v in VALUES.items() if k != role}


def test_the_settings_given_are_left_alone():
    values = {"matcher": "dc", "protocol_set": {"lr": 1}}
    changed = apply_overrides(values, {"matcher.a": "1", "protocol.epochs": "3", "clip": "2", "param": "lowrank"})
    assert values == {"matcher": "dc", "protocol_set": {"lr": 1}}
    assert changed == {"matcher": "dc:a=1", "protocol_set": {"lr": 1, "epochs": "3"}, "clip": "2", "param": "lowrank"}


def test_settings_of_a_group_are_set(round_trip):
    given = {"optim": {"images": {"momentum": 0.9}}}
    changed = apply_overrides(given, {"optim.images.lr": "2", "optim.lr.lr": "1e-5"})
    config = RunConfig(**changed)
    assert {k: v.model_dump() for k, v in config.optim.items()} == {
        "images": {"lr": 2.0, "momentum": 0.9, "optimizer": None},
        "lr": {"lr": 1e-5, "momentum": None, "optimizer": None},
    }
    assert given == {"optim": {"images": {"momentum": 0.9}}}
    assert round_trip(config) == config


@pytest.mark.parametrize(
    ("key", "text"),
    [("rate", "optim.images has no option 'rate'"), ("lr", "optim.images: option 'lr' expects float > 0, got '-1'")],
)
def test_a_wrong_setting_of_a_group_is_an_error(key, text):
    with pytest.raises(ConfigError, match=text):
        apply_overrides({}, {f"optim.images.{key}": "-1"})


def test_what_is_set_survives_the_file(round_trip):
    overrides = {"param.lowrank.r": "4", "data.path": "'it''s'".replace("''", '"'), "protocol.note": 'say "é"'}
    config = RunConfig(**apply_overrides(VALUES, overrides))
    assert round_trip(config) == config
    assert config.param == "lowrank:r=4+up:f=2"


@pytest.mark.parametrize(
    "key",
    ["", ".", "x", "x.y", "matcher.", ".metric", "protocol.", "Matcher.metric", "optim", "optim.lr", "protocol_set"],
)
def test_a_key_that_addresses_nothing_is_an_error(key):
    with pytest.raises(UsageError, match="addresses nothing"):
        apply_overrides(VALUES, {key: "1"})


@pytest.mark.parametrize("value", ["", "a,b=2", "a+b", "a+b:c=1", "a b", "[a", "(", "C:/d", "a=b", "'open", "(" * 3000])
def test_a_value_that_is_not_one_value_is_an_error(value):
    with pytest.raises(SpecError) as caught:
        apply_overrides(VALUES, {"matcher.metric": value})
    assert "x:k" not in str(caught.value)
    assert value == "(" * 3000 or "--set matcher.metric" in str(caught.value) or value == ""


def test_the_configuration_needs_no_torch():
    code = (
        "import sys, dcf.runconfig as r; r.to_toml(r.RunConfig(**r.apply_overrides({}, {'matcher.a': '1'})));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("ipc", "budget", "plain"),
    [(10, None, 10), (None, "floats=1567", 1), (None, "floats=783", 0), (None, "bytes=15679", 4), (None, None, 1)],
)
def test_a_budget_in_plain_images_a_class(ipc, budget, plain):
    assert Budget.of(ipc, budget, 784, 1, "fp32").plain_images == plain


def test_a_method_of_long_iterations_does_fewer_where_the_data_say_how_many():
    from dcf.types import MatcherDefaults

    long = MatcherDefaults(iterations=1000, iterations_small=40)
    asked = Request({"matcher": "none"}, {})
    assert complete(asked, {"iterations": 200}, long).iterations == 40
    assert complete(asked, {}, long).iterations == 1000
    assert complete(asked, {"iterations": 200}, MatcherDefaults()).iterations == 200
    assert complete(Request({"iterations": 7}, {}), {"iterations": 200}, long).iterations == 7
