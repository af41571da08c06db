"""What the plugin announces, and the files it carries."""

import subprocess
import sys
import tomllib

import pytest

import dcf
import dcf_dsa

DIGITS = "dsa:ops=[color,crop,cutout,scale,rotate]"


def component(kind, name):
    return next(c for c in dcf_dsa.dcf_components() if (c.kind, c.name) == (dcf.Kind(kind), name))


def test_package_announces_three_components():
    found = {(str(c.kind), c.name) for c in dcf_dsa.dcf_components()}
    assert found == {("augmenter", "dsa"), ("protocol", "vico-dsa@1"), ("recipe", "dsa")}
    assert all(c.summary and c.paper for c in dcf_dsa.dcf_components())
    assert component("augmenter", "dsa").load().__name__ == "DSA"


def test_import_does_not_load_torch():
    code = "import sys, dcf_dsa; list(dcf_dsa.dcf_components()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_protocol_is_the_published_one():
    protocol = tomllib.loads(component("protocol", "vico-dsa@1").read_text())
    assert f"{protocol['name']}@{protocol['version']}" == "vico-dsa@1"
    published = {
        "epochs": 1000,
        "extra_epoch": True,
        "batch": 256,
        "optimizer": "sgd",
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "step-restart",
        "augment": "dsa",
        "networks": 5,
    }
    assert {key: protocol[key] for key in published} == published


@pytest.mark.parametrize("name", ["mnist", "svhn", "digits"])
def test_digits_are_never_mirrored(name):
    protocol = tomllib.loads(component("protocol", "vico-dsa@1").read_text())
    recipe = tomllib.loads(component("recipe", "dsa").read_text())
    assert protocol["augment_for"][name] == recipe["data"][name]["augment"] == DIGITS
    augmenter = component("augmenter", "dsa").load()
    strategy = DIGITS.partition("[")[2].rstrip("]").split(",")
    assert "flip" not in augmenter.Config(ops=strategy).ops


def test_recipe_keeps_both_published_values_where_they_differ():
    recipe = tomllib.loads(component("recipe", "dsa").read_text())
    assert recipe["run"]["matcher"] == "dc"
    values = {}
    for row in recipe["published"]:
        assert row["protocol"] == "vico-dsa@1"
        values.setdefault((row["data"], row["ipc"]), set()).add(row["accuracy"])
    assert values["mnist", 10] == {97.8, 97.1}
    assert values["cifar10", 10] == {52.1, 51.1}
    assert len({(r["data"], r["ipc"], r["source"]) for r in recipe["published"]}) == len(recipe["published"])
