"""The file layer: what a damaged or hostile file can do, and what a write leaves behind when it fails."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from contextlib import contextmanager

import pytest
import torch

from dcf.errors import FormatError, RunError
from dcf.files import MAX_HEADER, atomic_write, pack, read_header, read_tensors, verify, write_tensors

TENSORS = {"images": torch.arange(24.0).view(2, 1, 3, 4), "labels": torch.tensor([0, 1]), "flag": torch.tensor(True)}
TEXT = {"dcf.format": "1", "dcf.note": json.dumps("naïve 日本 😀", ensure_ascii=False)}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header, payload=b""):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + payload


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture
def refused(path):
    """Both readers refuse these bytes, in the words of `FormatError`."""

    def check(content, match=None):
        path.write_bytes(content)
        for reader in (read_header, read_tensors):
            with pytest.raises(FormatError, match=match):
                reader(path)

    return check


# --- what is read --------------------------------------------------------------------------------


def test_what_was_written_is_read(path):
    write_tensors(path, TENSORS, TEXT)
    tensors, metadata = read_tensors(path)
    assert metadata == TEXT
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], t) and tensors[k].dtype == t.dtype for k, t in TENSORS.items())
    assert read_header(path).tensors["images"]["shape"] == [2, 1, 3, 4]


def test_other_programs_can_read_it(path):
    from safetensors import safe_open

    write_tensors(path, TENSORS, TEXT)
    with safe_open(path, "pt") as file:
        assert file.metadata()["dcf.note"] == TEXT["dcf.note"]
        assert torch.equal(file.get_tensor("images"), TENSORS["images"])


def test_a_file_of_another_program_without_digest_is_read(path):
    path.write_bytes(raw({"x": ENTRY}, struct.pack("<2f", 1, 2)))
    assert read_tensors(path)[0]["x"].tolist() == [1, 2]


@pytest.mark.parametrize("start", [0, 1, 4, 7, 8, 9, 10])
def test_a_file_cut_off_near_its_start_is_refused(refused, start):
    refused(pack(TENSORS, TEXT)[:start])


def test_a_file_cut_off_anywhere_is_refused(refused):
    whole = pack(TENSORS, TEXT)
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    ends = {*range(0, len(whole), 5), header_end - 1, header_end, header_end + 1, len(whole) - 1}
    for end in ends:
        refused(whole[:end])


def test_a_file_with_something_appended_is_refused(refused):
    refused(pack(TENSORS, TEXT) + b"\0", "bytes of tensors where")


def test_a_flipped_bit_is_refused_or_changes_nothing(path):
    whole = pack(TENSORS, TEXT)
    rng = random.Random(0)
    for at in [*range(8), *(rng.randrange(len(whole)) for _ in range(400))]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            tensors, _ = read_tensors(path)
        except FormatError:
            continue
        assert all(torch.equal(tensors[k], t) for k, t in TENSORS.items()), at


def test_every_byte_of_tensors_and_metadata_is_under_the_digest(path):
    whole = bytearray(pack(TENSORS, TEXT))
    for at in (len(whole) - 1, whole.index("naïve".encode()), whole.index(b"[2,1,3,4]") + 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        for read in (read_tensors, verify):
            with pytest.raises(FormatError):
                read(path)
    path.write_bytes(whole)
    verify(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"12",
        b'"text"',
        b"{",
        b"\xff\xfe",
        b'{"x": 1}',
        b'{"x": []}',
        b'{"x": {}}',
        b'{"x": NaN}',
        b'{"__metadata__": []}',
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": {"a": {"b": "c"}}}',
        b'{"__metadata__": {"a": "\\ud800"}}',
        b'{"__metadata__": {"\\udfff": "a"}}',
        b'{"__metadata__": {"a": ' + b"9" * 5000 + b"}}",
        b'{"x": ' + b"[" * 100_000,
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=lambda h: h[:24].decode("latin-1"),
)
def test_a_header_that_is_no_header_is_refused(refused, header):
    refused(raw(header))


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [-1, -2]},
        {"shape": ["2"]},
        {"shape": ["a", 10**12]},
        {"shape": [True, 2]},
        {"shape": [2.0]},
        {"shape": [float("nan")]},
        {"shape": 2},
        {"shape": None},
        {"shape": [[2]]},
        {"shape": [10**30, 0]},
        {"shape": [1] * 10_000 + [2]},
        {"shape": [9] * 1_000_000},
        {"dtype": "F99"},
        {"dtype": []},
        {"dtype": None},
        {"data_offsets": [0]},
        {"data_offsets": [0, 8, 8]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-8, 0]},
        {"data_offsets": [0, 8.0]},
        {"data_offsets": [4, 12]},
        {"data_offsets": ["0", "8"]},
        {"shape": [2**40], "data_offsets": [0, 2**42]},
        {"surprise": 1},
    ],
    ids=lambda c: str(c)[:40],
)
def test_a_tensor_that_is_described_wrongly_is_refused(refused, change):
    begin = time.process_time()
    refused(raw({"x": {**ENTRY, **change}}, bytes(8)), "damaged")
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/passwd", "", ".hidden", "a..b", "a\nb", "a\0b", "ä", "x" * 70 + "/"]
)
def test_a_tensor_whose_name_could_be_a_path_is_refused(refused, name):
    refused(raw({name: ENTRY}, bytes(8)), "a tensor is named")


def test_overlapping_tensors_and_holes_are_refused(path):
    for header, size in (({"a": ENTRY, "b": ENTRY}, 8), ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [12, 20]}}, 20)):
        path.write_bytes(raw(header, bytes(size)))
        with pytest.raises(FormatError):
            read_tensors(path)


@pytest.mark.parametrize("size", [0, 1000, 200 * 2**20])
@pytest.mark.parametrize("claim", [100 * 2**20, MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_that_claims_too_much_costs_no_memory(path, claim, size):
    with path.open("wb") as file:
        file.write(struct.pack("<Q", claim) + b'{"a"')
        file.truncate(max(size, 12))  # sparse: the claimed bytes may well be there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="claims"):
            read_header(path)
        with pytest.raises(FormatError, match="claims"):
            read_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50 * 2**20


@pytest.mark.parametrize("what", ["missing", "directory", "pipe", "device", "empty", "text"])
def test_what_is_no_set_is_refused_at_once(path, what):
    if what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what in ("empty", "text"):
        path.write_text("" if what == "empty" else "once upon a time there was a set")
    for reader in (read_header, read_tensors):
        with pytest.raises(FormatError, match=str(path)):
            reader(path)


# --- what is written -----------------------------------------------------------------------------


def test_equal_contents_give_equal_bytes():
    first = pack(TENSORS, TEXT)
    assert pack(dict(reversed(TENSORS.items())), dict(reversed(TEXT.items()))) == first
    strided = {k: t.repeat(2, *[1] * (t.ndim - 1))[: len(t)] if t.ndim else t for k, t in TENSORS.items()}
    assert pack(strided, TEXT) == first


@pytest.mark.slow
def test_equal_contents_give_equal_bytes_in_every_process():
    code = (
        "import torch, sys; from dcf.files import pack;"
        "sys.stdout.buffer.write(pack({c: torch.arange(3.0) for c in 'abcdefgh'}, {c: c for c in 'stuvwxyz'}))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True)
        for s in "12"
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def left_in(directory):
    return sorted(p.name for p in directory.iterdir())


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "sub" / ("n" * 250)  # as long a name as file systems have
    for text in ("first", "second"):
        atomic_write(target, text)
        assert target.read_text() == text
    assert left_in(target.parent) == [target.name]
    (target.parent / "plain").touch()
    assert target.stat().st_mode == (target.parent / "plain").stat().st_mode


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch):
    atomic_write(tmp_path / "a", "old")

    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", "new")
    assert (left_in(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")


@contextmanager
def files_of_at_most(nbytes):
    """What a full disk does, for this process: writes beyond the limit fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_does_not_fit_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, TEXT)
    before = path.read_bytes()
    with files_of_at_most(4096), pytest.raises(RunError, match=f"cannot write '{path}': .*nothing was changed"):
        write_tensors(path, {"big": torch.zeros(10_000)}, {})
    assert (left_in(tmp_path), path.read_bytes()) == ([path.name], before)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_full_or_read_only_file_system_leaves_the_old_file(tmp_path, trouble):
    options = {"full": "size=64k", "read-only": "remount,ro"}[trouble]
    mount = "mount -t tmpfs -o size=64k tmpfs ." if trouble == "full" else "mount -t tmpfs tmpfs ."
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    code = (
        "import os, subprocess; from dcf.errors import RunError; from dcf.files import atomic_write\n"
        f"os.chdir({str(tmp_path)!r}); atomic_write('a', 'old')\n"
        f"if {trouble!r} == 'read-only': subprocess.run(['mount', '-o', {options!r}, '.'], check=True)\n"
        "try: atomic_write('a', bytes(10**6))\n"
        "except RunError as error: print(error, os.listdir(), open('a').read())\n"
    )
    script = f'cd "$0" && {mount} && cd "$0" && exec "$1" -c "$2"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, str(tmp_path), sys.executable, code], capture_output=True, text=True
    )
    reason = {"full": "No space left on device", "read-only": "Read-only file system"}[trouble]
    assert done.stdout.strip() == f"cannot write 'a': {reason}; nothing was changed there ['a'] old", done.stderr


def test_a_place_that_cannot_hold_files_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "a", tmp_path / ("n" * 300), tmp_path / "file" / "sub" / "a", "/dev/full/a"):
        with pytest.raises(RunError, match="cannot write"):
            atomic_write(target, "text")
    with pytest.raises(RunError, match="not Unicode"):
        atomic_write(tmp_path / "a", "\udcff")
    assert left_in(tmp_path) == ["file"]


def test_a_killed_writer_never_leaves_an_unreadable_file(path, tmp_path):
    kinds = [{"x": torch.zeros(n)} for n in (10, 200_000)]
    for number, tensors in enumerate(kinds):
        (tmp_path / f"content{number}").write_bytes(pack(tensors, TEXT))
    code = (
        "from pathlib import Path; from dcf.files import atomic_write\n"
        f"here = Path({str(tmp_path)!r}); contents = [(here / f'content{{i}}').read_bytes() for i in (0, 1)]\n"
        "while True:\n  for content in contents: atomic_write(here / 'a.safetensors', content)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        end = time.monotonic() + 0.3
        seen = {len(read_tensors(path)[0]["x"])}
        while time.monotonic() < end:
            seen.add(len(read_tensors(path)[0]["x"]))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(read_tensors(path)[0]["x"]) in seen <= {10, 200_000}
