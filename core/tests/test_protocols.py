"""Protocols: what their ids say, what may be changed, and what they cost."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

from dcf.components import Component
from dcf.config import validate_mapping
from dcf.errors import ConfigError, DcfError, EvaluationError, PluginError, SpecError, UsageError
from dcf.evaluation.fit import schedule_for
from dcf.evaluation.protocol import Protocol, cost, load_protocol, require_augmenter
from dcf.hookspecs import hookimpl
from dcf.registry import Candidate, Registry

PUBLISHED = """
name = "field-aug"
version = 1
summary = "as published"
paper = "somebody"
epochs = 1000
extra_epoch = true
batch = 256
optimizer = "sgd"
lr = 0.01
momentum = 0.9
weight_decay = 5e-4
schedule = "step-restart"
augment = "shake:ops=[a,b]"
steps_min = 0
networks = 20
network = "same"

[augment_for]
digits = "shake:ops=[a]"
"""


def plugin(*components):
    module = types.SimpleNamespace(dcf_components=hookimpl(lambda: components))
    return Candidate("stub", "dcf-stub", "1.0", module=module)


@pytest.fixture
def reg(tmp_path, monkeypatch):
    package = tmp_path / "stub_protocols"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.toml").write_text(PUBLISHED)
    (package / "two.toml").write_text(PUBLISHED.replace("version = 1", "version = 2"))
    (package / "typo.toml").write_text(PUBLISHED.replace("epochs = 1000", "epoch = 1000"))
    (package / "torn.toml").write_text("name = ")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stub_protocols", raising=False)
    names = {"field-aug@1": "one", "field-aug@2": "two", "typo@1": "typo", "torn@1": "torn", "other@1": "one"}
    found = [Component("protocol", k, f"stub_protocols:{v}.toml", "") for k, v in names.items()]
    core = Component("protocol", "dcf-std@1", "dcf.evaluation:protocols/dcf-std.toml", "")
    none = Component("augmenter", "none", "dcf.augmenter:NoAugmentation", "")
    return Registry.of([plugin(core, none, *found)])


@pytest.fixture
def protocol(reg):
    return load_protocol("field-aug@1", reg)


# --- ids ----------------------------------------


def test_id_is_name_and_version(protocol):
    assert protocol.id == protocol.published_id == "field-aug@1"


def test_every_override_shows_in_the_id(protocol):
    assert protocol.with_overrides(epochs=200).id == "field-aug@1[epochs=200]"
    assert protocol.with_overrides(lr="0.1", epochs="200").id == "field-aug@1[epochs=200,lr=0.1]"
    assert protocol.with_overrides(extra_epoch=False).id == "field-aug@1[extra_epoch=false]"


def test_an_override_by_the_published_value_is_none(protocol):
    assert protocol.with_overrides(epochs="1000").id == "field-aug@1"
    assert protocol.with_overrides(epochs=200).with_overrides(epochs=1000) == protocol


def test_overrides_add_up(protocol):
    changed = protocol.with_overrides(epochs=200).with_overrides(batch=32)
    assert changed.id == "field-aug@1[batch=32,epochs=200]"
    assert changed.original == {"epochs": 1000, "batch": 256}


def test_overriding_the_augmentation_beats_the_table_and_shows(protocol):
    changed = protocol.with_overrides(augment="none")
    assert changed.augment_spec("dsa", "digits") == "none"
    assert changed.id == "field-aug@1[augment=none]"
    assert protocol.with_overrides(augment="shake:ops=[a,b]").id == 'field-aug@1[augment="shake:ops=[a,b]"]'


@pytest.mark.parametrize(
    "changes", [{"epochs": 200}, {"augment": "shake:ops=[a,b]"}, {"extra_epoch": False, "lr": 0.5}]
)
def test_an_id_reads_back_as_the_same_protocol(protocol, reg, changes):
    changed = protocol.with_overrides(**changes)
    assert load_protocol(changed.id, reg) == changed
    assert Protocol.model_validate_json(changed.model_dump_json()) == changed


@pytest.mark.parametrize("key", ["name", "version", "original", "augment_for"])
def test_what_identifies_a_protocol_cannot_be_overridden(protocol, key):
    with pytest.raises(UsageError, match="cannot be overridden"):
        protocol.with_overrides(**{key: "x"})


def test_unknown_and_wrong_overrides_are_errors(protocol):
    with pytest.raises(ConfigError, match="no option 'epoch'"):
        protocol.with_overrides(epoch=3)
    with pytest.raises(ConfigError, match="'epochs' expects int >= 1"):
        protocol.with_overrides(epochs=0)
    with pytest.raises(ConfigError, match="lr > 0"):
        protocol.with_overrides(lr=-1.0)


def test_schedule_with_two_drops_is_one_of_the_choices(protocol):
    changed = protocol.with_overrides(schedule="step-fifth", extra_epoch=False)
    assert changed.id == "field-aug@1[extra_epoch=false,schedule=step-fifth]"
    assert changed.config_hash != protocol.config_hash
    assert schedule_for(changed, 10).lrs[665:668] == pytest.approx((0.01, 0.002, 0.002))


def test_hash_follows_what_changes_numbers_and_nothing_else(protocol):
    assert protocol.config_hash != protocol.with_overrides(epochs=200).config_hash
    reworded = protocol.model_copy(update={"summary": "other words", "paper": ""})
    assert protocol.config_hash == reworded.config_hash
    assert protocol.config_hash == protocol.with_overrides(epochs=3).with_overrides(epochs=1000).config_hash


# --- reading ----------------------------------------


def test_a_name_without_version_is_the_highest(reg):
    assert load_protocol("field-aug", reg).id == "field-aug@2"
    assert load_protocol("field-aug[lr=0.1]", reg).id == "field-aug@2[lr=0.1]"


@pytest.mark.parametrize("text", ["typo@1", "torn@1", "other@1"])
def test_a_file_that_is_not_that_protocol_names_the_plugin(reg, text):
    with pytest.raises(PluginError, match=f"'{text}' of 'dcf-stub'"):
        load_protocol(text, reg)


@pytest.mark.parametrize("text", ["field-aux@1", "field-aug@7", "Field", "field-aug@1[epochs"])
def test_unknown_or_malformed_names_are_spec_errors(reg, text):
    with pytest.raises(SpecError):
        load_protocol(text, reg)


def test_an_unknown_name_is_answered_with_a_suggestion(reg):
    with pytest.raises(SpecError, match="did you mean 'field-aug@1'"):
        load_protocol("field-aux@1", reg)


def test_reading_a_protocol_needs_no_torch():
    code = "import sys, dcf.evaluation.protocol, dcf.evaluation.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what it says ----------------------------------------


def test_standard_trains_1000_steps_and_30_epochs_at_least(reg):
    standard = load_protocol("dcf-std@1", reg)
    for n in (1, 10, 100, 257, 1437, 50000):
        paid = cost(standard, n)
        assert paid.epochs >= 30
        assert paid.steps >= 1000
        assert paid.epochs == 30 or paid.steps - (-(-n // 256)) < 1000
        assert paid.images_seen == paid.epochs * n
    assert (standard.schedule, standard.lr, standard.momentum, standard.weight_decay) == ("cosine", 0.01, 0.9, 5e-4)
    assert (standard.augment, standard.network, standard.networks) == ("same", "same", 5)


def test_cost_counts_the_extra_epoch(protocol):
    assert cost(protocol, 300) == type(cost(protocol, 300))(1001, 2002, 300300)


def test_augmentation_follows_the_data_then_the_set():
    values = {"name": "p", "version": 1, "epochs": 1, "lr": 0.1, "schedule": "constant", "augment": "same"}
    same = validate_mapping(Protocol, {**values, "augment_for": {"svhn": "x:a=1"}}, "p")
    assert same.augment_spec("dsa", "cifar10") == "dsa"
    assert same.augment_spec("dsa", "svhn:root=/d") == "x:a=1"


def test_network_and_step_size_come_from_the_set_when_asked(protocol):
    assert protocol.network_spec("convnet") == "convnet"
    assert protocol.with_overrides(network="mlp").network_spec("convnet") == "mlp"
    assert protocol.step_size(0.5) == 0.01
    learned = protocol.with_overrides(lr="learned")
    assert learned.step_size(0.5) == 0.5
    with pytest.raises(EvaluationError, match="'field-aug@1\\[lr=learned\\]'"):
        learned.step_size(None)
    with pytest.raises(EvaluationError, match="records none"):
        protocol.network_spec("")


def test_a_missing_augmenter_is_named_with_its_package(protocol, reg):
    require_augmenter("none", protocol, reg)
    with pytest.raises(DcfError, match=r"'field-aug@1' trains with the augmenter 'shake'.*dcf-shake"):
        require_augmenter("none+shake:ops=[a]", protocol, reg)
