"""What is recorded of how the images were chosen, and that rounding and records survive an interruption."""

from __future__ import annotations

import json

import pytest
import torch

import dcf
import dcf.testing
from dcf.metadata import read_metadata
from dcf.resolve import resolve
from dcf.run import prepare, resume, start
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.selection import select
from dcf.selector import Noise, Random, Selector
from dcf.session import Session
from dcf.testing.fakes import fake_data

CALLS = []


class Told(Random):
    """Random, and tells about it what JSON cannot keep apart: tuples and numbers as keys."""

    def indices(self, data, view_class, generator):
        CALLS.append(len(view_class))
        self.record = {"network": "convnet", "epochs": (1, 2), "per_class": {0: 0.5}}
        return super().indices(data, view_class, generator)


RECORD = {"network": "convnet", "epochs": [1, 2], "per_class": {"0": 0.5}}


@pytest.fixture
def installed():
    CALLS.clear()
    made = [
        dcf.Component("selector", "told", f"{__name__}:Told", "random, and tells about it"),
        dcf.Component("matcher", "pull", "dcf.testing.fakes:PullToMean", "to the mean"),
    ]
    with dcf.testing.registry_with(*made):
        yield


def prepared(**options):
    usual = {"data": "digits", "matcher": "pull", "ipc": 2, "iterations": 4, "network": "mlp", "device": "cpu"}
    return prepare(resolve({**usual, "init": "told", "networks": 1, "baselines": (), **options},
                           overrides={"protocol.epochs": 1, "protocol.steps_min": 0}))  # fmt: skip


def test_a_record_is_in_the_file_and_in_the_report(installed, tmp_path):
    outcome = start(prepared(), RunDir(tmp_path / "run"))
    assert outcome.synthetic.metadata["selection"] == RECORD
    assert read_metadata(tmp_path / "run" / "synthetic.safetensors")["selection"] == RECORD
    assert json.loads((tmp_path / "run" / "report.json").read_text())["sets"][0]["selection"] == RECORD
    assert dcf.evaluate(tmp_path / "run" / "synthetic.safetensors", networks=1).sets[0].selection == RECORD


@pytest.mark.parametrize("options", [{"matcher": "none"}, {"iterations": 0}], ids=str)
def test_a_coreset_says_which_images_it_consists_of(installed, options):
    made = prepared(**options, evaluate=False)
    one = start(made, None).synthetic
    kept = torch.tensor(one.metadata["selection"]["indices"])
    assert one.metadata["selection"] == {**RECORD, "indices": kept.tolist()}
    assert torch.equal(made.data.train.images(kept), one.tensors().x)
    assert made.data.train.labels[kept].tolist() == one.targets


def test_what_is_learned_does_not_list_images_and_plain_selectors_say_nothing(installed):
    assert "indices" not in start(prepared(evaluate=False), None).synthetic.metadata["selection"]
    assert "selection" not in start(prepared(init="random", evaluate=False), None).synthetic.metadata
    assert "selection" not in start(prepared(init="noise", matcher="none", evaluate=False), None).synthetic.metadata


def test_images_are_chosen_once(installed):
    start(prepared(evaluate=False), None)
    assert CALLS == [20]


@pytest.mark.parametrize("store", ["fp32", "fp16", "uint8"])
@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_ends_with_the_same_bytes(installed, tmp_path, store, stop_at):
    made = prepared(store=store)
    straight, broken = RunDir(tmp_path / "straight"), RunDir(tmp_path / "broken")
    start(made, straight)
    session = Session(made.config, made.data, made.matcher)
    session.config = made.config.model_copy(update={"class_chunk": session.ctx.class_chunk})
    broken.create(session.config)
    assert session.run(broken, stop=lambda: session.ctx.it + 1 >= stop_at) == stop_at
    del CALLS[:]
    resume(broken.path)
    assert CALLS == [], "a resumed run does not choose again"
    assert broken.result.read_bytes() == straight.result.read_bytes()
    assert broken.preview.read_bytes() == straight.preview.read_bytes()


def test_checkpoints_stay_exact_where_the_file_is_rounded(installed, tmp_path):
    states = []
    for store in ("fp32", "uint8"):
        directory = RunDir(tmp_path / store)
        start(prepared(store=store, evaluate=False), directory)
        states.append(directory.newest_checkpoint()[1])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_values_out_of_reach_of_fp16_stop_before_a_file_and_leave_a_way_out(installed, tmp_path, monkeypatch):
    directory = RunDir(tmp_path / "run")
    made = prepared(store="fp16", iterations=0, evaluate=False)
    monkeypatch.setattr(Told, "images", lambda self, data, view_class, generator: torch.full((20, 1, 8, 8), 1e5))
    with pytest.raises(dcf.DcfError, match="'images' holds values up to 100000, which cannot be stored as fp16"):
        start(made, directory)
    assert not directory.result.exists()
    text = directory.config_file.read_text().replace('store = "fp16"', 'store = "fp32"')
    directory.config_file.write_text(text)
    assert resume(directory.path).synthetic.tensors().x.max() == 1e5


# --- records that cannot be kept -----------------------------------------------------------------


def chosen(selector, **run):
    data = fake_data()
    return select(selector, data, torch.tensor([0, 0, 1]), RunConfig(**{"matcher": "none", **run}))


@pytest.mark.parametrize(
    "record", [{"x": object()}, {"x": float("nan")}, {"x": torch.zeros(1)}, {"x": "\ud800"}, {"x": "y" * 3_000_000}]
)  # fmt: skip
def test_a_record_that_is_no_json_is_an_error_of_the_plugin(record):
    selector = Random()
    selector.record = record
    with pytest.raises(dcf.PluginError, match=r"Random\.record"):
        chosen(selector)


def test_a_coreset_that_repeats_images_is_warned_of(caplog):
    data = fake_data(train=3)
    coreset = RunConfig(data="digits", matcher="none", network="mlp", ipc=4)
    select(Random(), data, torch.tensor([0, 0, 0, 1, 1, 1]), coreset)
    assert not caplog.text
    select(Random(), data, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), coreset)
    assert f"as 1 classes have fewer than it has places for, such as 2 places too many in '{data.spec.classes[1]}'" in (
        caplog.text
    )
    caplog.clear()
    learned = coreset.model_copy(update={"matcher": "pull", "iterations": 2})
    select(Random(), data, torch.tensor([1, 1, 1, 1]), learned)  # a start, of which something else is made
    assert not caplog.text


def test_selectors_that_make_images_are_asked_for_images():
    class Own(Selector):
        def images(self, data, view_class, generator):
            self.record = {"own": True}
            return data.train.images(torch.zeros(len(view_class), dtype=torch.long))

    assert chosen(Own())[1] == {"own": True}
    assert chosen(Noise())[1] == {}
    images, record = chosen(Random(), seed=3)
    assert torch.equal(images, fake_data().train.images(torch.tensor(record["indices"])))


def test_long_lists_of_images_are_left_out(monkeypatch):
    monkeypatch.setattr("dcf.selection._MOST_INDICES", 2)
    assert chosen(Random())[1] == {}
