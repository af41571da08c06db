"""Artifacts: made once, the same when read, remade when damaged, shared by processes, optional where nothing can be
written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcf.artifacts import Artifacts
from dcf.files import read_tensors, write_tensors

KEY = {"data": "abc", "options": {"lr": 0.1, "steps": [1, 2]}, "seed": 0}


class Maker:
    """Counts how often it is asked."""

    def __init__(self, tensors=None):
        self.tensors = tensors or {"conv1.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.tensors


@pytest.fixture
def store(tmp_path):
    return Artifacts(tmp_path / "cache")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def test_is_made_once_and_read_after_that(store):
    make = Maker()
    first, second = store.get_or_make(KEY, make, "nets"), store.get_or_make(KEY, make, "nets")
    assert make.calls == 1
    assert (first.made, second.made) == (True, False)
    assert same(first.tensors, second.tensors)
    assert same(first.tensors, make.tensors)
    assert first.path == second.path == store.path(KEY, "nets")
    assert first.sha256 == second.sha256


def test_nothing_else_is_left_in_the_folder(store):
    store.get_or_make(KEY, Maker(), "nets")
    assert [p.name for p in (store.root / "nets").iterdir()] == [store.path(KEY, "nets").name]


def test_file_says_what_it_was_made_from(store):
    artifact = store.get_or_make(KEY, Maker(), "nets")
    assert json.loads(read_tensors(artifact.path)[1]["dcf.artifact"]) == [1, "nets", KEY]


def test_get_makes_nothing(store):
    assert store.get(KEY, "nets") is None
    assert not store.root.exists()
    made = store.get_or_make(KEY, Maker(), "nets")
    assert store.get(KEY, "nets").sha256 == made.sha256


def test_default_place_is_the_folder_of_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "place"))
    artifact = Artifacts().get_or_make(KEY, Maker(), "nets")
    assert artifact.path.parent == tmp_path / "place" / "artifacts" / "nets"


@pytest.mark.parametrize(
    ("key", "kind"),
    [({**KEY, "seed": 1}, "nets"), ({**KEY, "options": {"lr": 0.1, "steps": [2, 1]}}, "nets"), (KEY, "experts")],
)
def test_another_key_or_kind_is_another_artifact(store, key, kind):
    make = Maker()
    store.get_or_make(KEY, make, "nets")
    store.get_or_make(key, make, kind)
    assert make.calls == 2


def test_order_of_the_key_does_not_matter(store):
    make = Maker()
    store.get_or_make(KEY, make, "nets")
    store.get_or_make(dict(reversed(KEY.items())), make, "nets")
    assert make.calls == 1


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(), plain, max_size=3), st.dictionaries(st.text(), plain, max_size=3))
def test_two_keys_share_a_file_only_if_they_are_equal_as_json(a, b):
    store = Artifacts("somewhere")
    equal = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (store.path(a, "nets") == store.path(b, "nets")) == equal


@pytest.mark.parametrize("kind", ["", "Nets", "../nets", "a/b", "nets\n", "-a"])
def test_a_kind_that_could_lead_elsewhere_is_refused(store, kind):
    with pytest.raises(ValueError, match="expected a kind"):
        store.path(KEY, kind)


def test_a_key_that_is_not_plain_is_refused(store):
    with pytest.raises(ValueError):
        store.path({"lr": float("nan")}, "nets")
    with pytest.raises(TypeError):
        store.path({"net": object()}, "nets")


@pytest.mark.parametrize("name", ["a/b", "", "..", "x y"])
def test_a_name_that_could_not_be_read_back_is_refused(store, name):
    with pytest.raises(ValueError, match="expected names"):
        store.get_or_make(KEY, Maker({name: torch.zeros(1)}), "nets")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(True),
        torch.zeros(0, 3),
        torch.arange(6, dtype=torch.int16).view(2, 3).T,
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(2, requires_grad=True),
    ],
)
def test_any_tensor_is_kept_as_it_is(store, tensor):
    made = store.get_or_make(KEY, Maker({"t": tensor}), "nets")
    read = store.get(KEY, "nets")
    assert read.tensors["t"].dtype == tensor.dtype
    assert torch.equal(read.tensors["t"], tensor.detach())
    assert made.sha256 == read.sha256


def test_hash_is_of_the_tensors_alone(store):
    tensors = {"a": torch.zeros(2, 3)}
    first = store.get_or_make(KEY, Maker(tensors), "nets").sha256
    assert store.get_or_make({}, Maker(tensors), "nets").sha256 == first
    for number, other in enumerate(({"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.ones(2, 3)})):
        assert store.get_or_make({"n": number}, Maker(other), "nets").sha256 != first


# --- damage, and places that cannot be written --------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def change(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


def empty(path):
    path.write_bytes(b"")


def exchange(path):
    write_tensors(path, {"other": torch.zeros(1)}, {"dcf.artifact": '[1,"nets",{}]'})


@pytest.mark.parametrize("damage", [cut, change, empty, exchange])
def test_a_damaged_file_is_made_again_with_a_warning(store, damage, caplog):
    make = Maker()
    path = store.get_or_make(KEY, make, "nets").path
    damage(path)
    again = store.get_or_make(KEY, make, "nets")
    assert make.calls == 2
    assert same(again.tensors, make.tensors)
    assert "making it again" in caplog.text
    assert str(path) in caplog.text
    assert store.get_or_make(KEY, make, "nets").made is False


def test_what_make_raises_is_passed_on_and_leaves_nothing(store):
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.get_or_make(KEY, fail, "nets")
    assert list((store.root / "nets").iterdir()) == []
    assert store.get_or_make(KEY, Maker(), "nets").made


def test_without_a_place_nothing_is_kept_and_all_works(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    make = Maker()
    for _ in range(2):
        artifact = Artifacts(tmp_path / "file").get_or_make(KEY, make, "nets")
        assert artifact.path is None
        assert same(artifact.tensors, make.tensors)
    assert make.calls == 2
    assert "the next run makes it again" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_read(store, caplog):
    make = Maker()
    store.get_or_make(KEY, make, "nets")
    (store.root / "nets").chmod(0o555)
    try:
        assert store.get_or_make(KEY, make, "nets").made is False
        other = store.get_or_make({}, make, "nets")
    finally:
        (store.root / "nets").chmod(0o755)
    assert (make.calls, other.path) == (2, None)
    assert "cannot write" in caplog.text


def test_a_place_without_locks_is_used_all_the_same(store, monkeypatch):
    def flock(handle, operation):
        raise OSError(37, "no locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    before = len(os.listdir("/dev/fd"))
    assert store.get_or_make(KEY, Maker(), "nets").path is not None
    assert len(os.listdir("/dev/fd")) == before


# --- several at once ----------------------------------------------------------------------------------------------


def test_threads_that_ask_at_once_make_it_once(store):
    calls, found = [], []

    def make():
        calls.append(1)
        time.sleep(0.05)
        return {"t": torch.ones(2)}

    threads = [threading.Thread(target=lambda: found.append(store.get_or_make(KEY, make, "nets"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert sorted(a.made for a in found) == [False] * 7 + [True]
    assert len({a.sha256 for a in found}) == 1
    assert [p.suffix for p in (store.root / "nets").iterdir()] == [".safetensors"]


CHILD = """
import sys, time, torch
from pathlib import Path
from dcf.artifacts import Artifacts

def make():
    with open(sys.argv[2], "a") as file:
        file.write("made\\n")
    time.sleep(0.3)
    return {"t": torch.ones(2)}

# Both come this far before either goes on.
Path(sys.argv[3]).touch()
while not Path(sys.argv[4]).exists():
    time.sleep(0.005)
print(Artifacts(sys.argv[1]).get_or_make({"k": 1}, make, "nets").sha256)
"""


@pytest.mark.slow
def test_processes_that_ask_at_once_make_it_once(tmp_path):
    marks = [str(tmp_path / name) for name in ("first", "second")]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "cache"), str(tmp_path / "log"), own, other],
            stdout=subprocess.PIPE,
            text=True,
        )
        for own, other in (marks, marks[::-1])
    ]
    said = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert (tmp_path / "log").read_text() == "made\n"
    assert said[0] == said[1] != ""


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock(tmp_path):
    code = CHILD.replace("time.sleep(0.3)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    mark = str(tmp_path / "mark")
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cache"), str(tmp_path / "log"), mark, mark], check=False
    )
    assert child.returncode < 0
    assert Artifacts(tmp_path / "cache").get_or_make({"k": 1}, Maker(), "nets").made
