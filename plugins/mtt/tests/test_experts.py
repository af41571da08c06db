"""Experts and their files: what decides them, prefixes, lazy rows, damage, other processes."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import dcf
from dcf import compiled
from dcf.augmenter import NoAugmentation
from dcf.errors import Stopped
from dcf.files import DIGEST, pack, read_tensors
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf.testing.fakes import TinyFactory, fake_data
from dcf.training import BLOWN_UP
from dcf_dsa.augment import DSA
from dcf_mtt import experts as module
from dcf_mtt.experts import ExpertSet
from dcf_mtt.options import Training
from dcf_mtt.store import (
    checksum,
    claimed,
    examine,
    expert_path,
    experts_in,
    read_facts,
    read_row,
    split_row,
    write_expert,
)
from dcf_mtt.workers import Job, Tally, expert_set, spread


def experts(root, data=None, networks=None, augmenter=None, **training):
    how = Training(**{"lr": 0.05, "batch": 5, **training})
    return ExpertSet(data or fake_data(), networks or TinyFactory(), augmenter or NoAugmentation(), how, root)


def make(made, count, epochs, check_stop=lambda: None, notes=None):
    made.make(count, epochs, lambda *n: notes.append(n) if notes is not None else None, check_stop)
    return made


def theta(made, number):
    return read_tensors(expert_path(made.folder, number))[0]["theta"]


# --- training ---------------------------------------------------------------------------------------------------


def test_rows_are_the_weights_after_each_epoch(tmp_path):
    made, notes = make(experts(tmp_path), 1, 3, notes=(notes := [])), notes
    state, rows = made.network(0), []
    for epoch in range(3):
        rows.append(torch.cat([p.detach().reshape(-1) for p in state.parameters()]))
        made.run(state, 0, epoch, 1, lambda _: None)
    rows.append(torch.cat([p.detach().reshape(-1) for p in state.parameters()]))
    assert torch.equal(theta(made, 0), torch.stack(rows))
    assert [n[:2] for n in notes] == [(0, 1), (0, 2), (0, 3)]


def test_snapshots_are_distinct_and_training_helps(tmp_path):
    made = make(experts(tmp_path, lr=0.5), 1, 8)
    rows = theta(made, 0)
    assert all(float((a - b).norm()) > 0 for i, a in enumerate(rows) for b in rows[:i])
    facts = read_facts(expert_path(made.folder, 0))
    assert facts.losses[-1] < facts.losses[0]
    assert facts.accuracies[-1] > 0.9


def test_lazy_rows_are_those_of_the_trajectory(tmp_path):
    made = make(experts(tmp_path), 1, 4)
    path, whole = expert_path(made.folder, 0), theta(made, 0)
    facts = read_facts(path)
    for epoch in range(5):
        row = read_row(path, facts, epoch)
        assert torch.equal(row, whole[epoch])
        weights = made.weights(0, epoch)
        assert list(weights) == list(made.network(0).params)
        assert torch.equal(torch.cat([w.reshape(-1) for w in weights.values()]), row)


@pytest.mark.parametrize("augmenter", [NoAugmentation(), DSA(DSA.Config())])
def test_longer_training_has_the_shorter_one_as_its_beginning(tmp_path, augmenter):
    short = make(experts(tmp_path / "a", augmenter=augmenter), 1, 2)
    before = theta(short, 0)
    grown = make(experts(tmp_path / "a", augmenter=augmenter), 1, 5)
    straight = make(experts(tmp_path / "b", augmenter=augmenter), 1, 5)
    assert torch.equal(theta(grown, 0), theta(straight, 0))
    assert torch.equal(theta(grown, 0)[:3], before)


def test_momentum_is_trained_from_the_beginning_to_the_same_rows(tmp_path):
    short = make(experts(tmp_path / "a", momentum=0.9, lr=0.01), 1, 2)
    before = theta(short, 0)
    grown = make(experts(tmp_path / "a", momentum=0.9, lr=0.01), 1, 4)
    straight = make(experts(tmp_path / "b", momentum=0.9, lr=0.01), 1, 4)
    assert torch.equal(theta(grown, 0), theta(straight, 0))
    assert torch.equal(theta(grown, 0)[:3], before)


def test_first_experts_do_not_depend_on_how_many_there_are(tmp_path):
    few, many = make(experts(tmp_path / "a"), 1, 2), make(experts(tmp_path / "b"), 3, 2)
    assert torch.equal(theta(few, 0), theta(many, 0))
    assert not torch.equal(theta(many, 0)[0], theta(many, 1)[0])
    assert few.folder.name == many.folder.name


def test_what_is_there_is_not_made_again(tmp_path):
    made = make(experts(tmp_path), 2, 3)
    stamps = [path.stat().st_mtime_ns for path in experts_in(made.folder)]
    notes = []
    make(experts(tmp_path), 2, 3, notes=notes)
    make(experts(tmp_path), 1, 2, notes=notes)
    assert notes == []
    assert [path.stat().st_mtime_ns for path in experts_in(made.folder)] == stamps
    assert made.missing(3, 5) == {0: 2, 1: 2, 2: 5}


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.1},
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"batch": 6},
        {"seed": 1},
        {"data": fake_data(seed=1)},
        {"networks": ConvNetFactory(ConvNetConfig(width=2, depth=1))},
        {"augmenter": DSA(DSA.Config())},
        {"augmenter": DSA(DSA.Config(crop=0.2))},
    ],
)
def test_whatever_decides_them_is_in_the_key(tmp_path, change):
    assert experts(tmp_path, **change).folder != experts(tmp_path).folder


def test_key_survives_the_file(tmp_path):
    made = make(experts(tmp_path, augmenter=DSA(DSA.Config())), 1, 1)
    assert read_facts(expert_path(made.folder, 0)).key == made.key


def test_expert_that_blows_up_short_of_infinity_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_probe", lambda *_: (BLOWN_UP, 0.1))
    with pytest.raises(dcf.NonFiniteError, match="diverged in epoch 0"):
        make(experts(tmp_path), 1, 2)


@pytest.mark.parametrize("lr", [1e20, 1e6])
def test_diverging_expert_is_named(lr, tmp_path):
    with pytest.raises(dcf.NonFiniteError, match=r"expert 0 with lr_expert=1e\+\d+ diverged.*smaller lr_expert"):
        make(experts(tmp_path, lr=lr), 1, 3)
    assert experts_in(experts(tmp_path, lr=lr).folder) == []


def test_expert_that_stands_still_is_refused(tmp_path):
    with pytest.raises(dcf.RunError, match="stands still in epoch 1"):
        make(experts(tmp_path, lr=1e-30), 1, 2)


def test_batch_norms_are_trained_and_rows_hold_weights_only(tmp_path):
    networks = ConvNetFactory(ConvNetConfig(width=2, depth=1, norm="batch"))
    made = make(experts(tmp_path, networks=networks), 1, 2)
    assert theta(made, 0).shape[1] == sum(p.numel() for p in made.network(0).parameters())
    grown = theta(make(experts(tmp_path, networks=networks), 1, 3), 0)
    straight = theta(make(experts(tmp_path / "b", networks=networks), 1, 3), 0)
    assert torch.equal(grown, straight)


# --- stopping ---------------------------------------------------------------------------------------------------


def test_stopped_training_keeps_its_epochs_and_goes_on_with_them(tmp_path):
    asked = []

    def stop_later():
        asked.append(None)
        if len(asked) == 4:
            raise Stopped("now")

    made = experts(tmp_path / "a")
    with pytest.raises(Stopped):
        make(made, 2, 3, stop_later)
    assert [made.epochs(n) for n in (0, 1)] == [3, 1]
    make(made, 2, 3)
    straight = make(experts(tmp_path / "b"), 2, 3)
    assert all(torch.equal(theta(made, n), theta(straight, n)) for n in (0, 1))


def test_unfinished_expert_is_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY", -1.0)
    made, seen = experts(tmp_path), []
    make(made, 1, 3, lambda: seen.append(made.epochs(0)))
    assert seen == [1, 2, 3]


def test_expert_that_another_process_makes_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.01)
    ready = make(experts(tmp_path / "b"), 1, 2)
    made, notes = experts(tmp_path / "a"), []
    path = expert_path(made.folder, 0)
    path.parent.mkdir(parents=True)
    handle = os.open(path.with_suffix(".lock"), os.O_RDONLY | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    worker = threading.Thread(target=make, args=(made, 1, 2), kwargs={"notes": notes})
    worker.start()
    time.sleep(0.1)
    assert worker.is_alive()
    path.write_bytes(expert_path(ready.folder, 0).read_bytes())
    os.close(handle)
    worker.join(10)
    assert not worker.is_alive()
    assert notes == []


def test_claim_goes_with_its_holder(tmp_path):
    path = tmp_path / "0000.safetensors"
    with claimed(path) as first, claimed(path) as second:
        assert (first, second) == (True, False)
    with claimed(path) as again:
        assert again
    assert list(tmp_path.iterdir()) == []


# --- damage -----------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 255
    path.write_bytes(bytes(raw))


def rewritten(path, **changes):
    tensors, metadata = read_tensors(path)
    facts = {**json.loads(metadata["dcf.expert"]), **changes}
    path.write_bytes(pack(tensors, {"dcf.expert": json.dumps(facts)}))


def huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")


DAMAGE = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "no safetensors": lambda path: path.write_bytes(b"x" * 5000),
    "huge header": huge_header,
    "not an expert": lambda path: path.write_bytes(pack({"theta": torch.zeros(3, 4)}, {})),
    "newer": lambda path: rewritten(path, version=999),
    "other number": lambda path: rewritten(path, number=5),
    "other key": lambda path: rewritten(path, key={}),
    "rows missing": lambda path: rewritten(path, sums=[1, 2]),
    "negative shape": lambda path: rewritten(path, shapes=[[-1]] * 4),
    "shapes of others": lambda path: rewritten(path, shapes=[[2]] * 4),
    "nested": lambda path: path.write_bytes(pack({"theta": torch.zeros(3, 4)}, {"dcf.expert": "[" * 100_000})),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_file_is_said_and_made_again(tmp_path, how, caplog):
    made = make(experts(tmp_path), 1, 2)
    path, before = expert_path(made.folder, 0), theta(made, 0)
    DAMAGE[how](path)
    with pytest.raises(dcf.FormatError, match=str(path)):
        examine(path)
    again = make(experts(tmp_path), 1, 2)
    assert torch.equal(theta(again, 0), before)
    assert "training this expert again" in caplog.text
    examine(path)


def test_changed_weight_is_noticed_where_it_is_read(tmp_path):
    made = make(experts(tmp_path), 1, 2)
    path = expert_path(made.folder, 0)
    flip(path)
    with pytest.raises(dcf.FormatError, match="digest"):
        examine(path)
    assert len(made.weights(0, 0)) == 4  # the first row is whole
    with pytest.raises(dcf.RunError, match=r"damaged(.|\n)*dcf resume"):
        made.weights(0, 2)
    assert not path.exists()
    make(experts(tmp_path), 1, 2)
    examine(path)


def test_changed_weight_is_noticed_before_training_goes_on_from_it(tmp_path):
    made = make(experts(tmp_path / "a"), 1, 2)
    flip(expert_path(made.folder, 0))
    grown = make(experts(tmp_path / "a"), 1, 3)
    assert torch.equal(theta(grown, 0), theta(make(experts(tmp_path / "b"), 1, 3), 0))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(lambda t: t.fill_(float("nan")), "not finite"), (lambda t: t[1].copy_(t[0]), "changed no weight")],
)
def test_useless_weights_are_found(tmp_path, spoil, reason):
    made = make(experts(tmp_path), 1, 2)
    path = expert_path(made.folder, 0)
    tensors, metadata = read_tensors(path)
    spoil(tensors["theta"])
    assert DIGEST not in metadata
    path.write_bytes(pack(tensors, metadata))
    with pytest.raises(dcf.FormatError, match=reason):
        examine(path)


def test_useless_weights_are_not_trained_towards(tmp_path):
    made = make(experts(tmp_path), 1, 2)
    path = expert_path(made.folder, 0)
    facts, row = read_facts(path), torch.full_like(theta(made, 0)[0], float("nan"))
    write_expert(path, row.repeat(3, 1), facts.model_copy(update={"sums": (checksum(row),) * 3}))
    with pytest.raises(dcf.RunError, match=r"epoch 1 are not finite(.|\n)*dcf resume"):
        made.weights(0, 1)
    assert not path.exists()


def test_a_file_of_no_use_is_complained_of_once(tmp_path, caplog):
    path = expert_path(make(experts(tmp_path), 2, 1).folder, 0)
    path.write_bytes(path.read_bytes()[:100])
    made = make(experts(tmp_path), 2, 1)
    assert made.missing(2, 1) == {}
    assert caplog.text.count("training this expert again") == 1


def test_file_in_another_place_is_found(tmp_path):
    made = make(experts(tmp_path), 1, 1)
    path = expert_path(made.folder, 0)
    other = expert_path(made.folder, 7)
    other.write_bytes(path.read_bytes())
    examine(path)
    with pytest.raises(dcf.FormatError, match="something else"):
        examine(other)


def test_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "experts").write_text("a file where a folder should be")
    with pytest.raises(dcf.RunError, match=r"cannot write(.|\n)*DCF_CACHE"):
        make(experts(tmp_path), 1, 1)


def test_rows_are_split_in_the_order_of_the_network(tmp_path):
    made = make(experts(tmp_path), 1, 1)
    facts = read_facts(expert_path(made.folder, 0))
    row = torch.arange(facts.size, dtype=torch.float32)
    assert torch.equal(torch.cat([w.reshape(-1) for w in split_row(row, facts).values()]), row)


# --- how far, and several processes ------------------------------------------------------------------------------


def test_tally_counts_epochs_of_all_experts_and_says_how_long(caplog):
    caplog.set_level("INFO")
    told = []
    tally = Tally({0: 2, 4: 1}, lambda *facts: told.append(facts))
    for number, epoch in ((0, 1), (0, 2), (4, 1)):
        tally(number, epoch, 0.25, 0.5)
    assert [(done, total) for _, done, total, _ in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][3] == "expert 4, epoch 1, loss 0.250, accuracy 50.0 %"
    assert caplog.text.count("the experts will take about") == 1


@pytest.mark.parametrize(("processes", "left"), [(1, "36 s"), (2, "16 s")])
def test_what_comes_before_training_is_not_taken_for_it(processes, left, caplog, monkeypatch):
    caplog.set_level("INFO")
    clock = iter([100.0, 102.0])
    monkeypatch.setattr("dcf_mtt.workers.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tally = Tally({0: 10, 1: 10}, lambda *facts: None, processes)
    for epoch in range(20):
        tally(epoch % 2, epoch // 2, 0.25, 0.5)
    assert caplog.messages == [f"the experts will take about {left}"]


def test_seconds_per_epoch_are_measured_and_leave_nothing(tmp_path):
    made = experts(tmp_path)
    assert made.seconds_per_epoch(2) > 0
    assert not made.folder.exists()


def test_the_time_of_an_epoch_is_that_of_a_training_as_long_as_it_will_be(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(compiled, "worthwhile", lambda kind, net, images, calls, strict: bool(asked.append(calls)))
    with compiled.allowed("default", torch.device("cpu")):
        experts(tmp_path).seconds_per_epoch(200)
    assert set(asked) == {200}


def job(root, count, epochs):
    return Job("digits", "convnet:width=2,depth=1", "dsa", Training(lr=0.05), root, count, epochs, ("cpu",), 1)


@pytest.fixture
def one_thread():
    """As each of several processes has; sums of other numbers of threads round differently on some processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_several_processes_make_the_same_experts(tmp_path):
    together, alone = job(tmp_path / "a", 3, 2), job(tmp_path / "b", 3, 2)
    notes = []
    spread(together, 2, lambda *n: notes.append(n), lambda: None)
    assert sorted(n[:2] for n in notes) == [(n, e) for n in range(3) for e in (1, 2)]
    found, wanted = expert_set(together, "cpu"), make(expert_set(alone, "cpu"), 3, 2)
    assert found.missing(3, 2) == {}
    assert all(torch.equal(theta(found, n), theta(wanted, n)) for n in range(3))


@pytest.mark.slow
def test_processes_stop_when_asked_and_keep_what_they_have(tmp_path):
    work, notes = job(tmp_path, 2, 10_000), []

    def check_stop():
        if len(notes) >= 4:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        spread(work, 2, lambda *n: notes.append(n), check_stop)
    kept = expert_set(work, "cpu")
    assert sum(kept.epochs(n) for n in (0, 1)) >= 4


@pytest.mark.slow
def test_failure_of_a_process_is_one_message(tmp_path):
    work = Job("digits", "convnet:width=2,depth=1", "none", Training(lr=1e20), tmp_path, 2, 3, ("cpu",), 1)
    with pytest.raises(dcf.RunError, match=r"diverged(.|\n)*kept"):
        spread(work, 2, lambda *n: None, lambda: None)
