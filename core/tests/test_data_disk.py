"""Images that stay in a file: the same as in memory, for datasets that do not fit there."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dcf
from dcf import DataError
from dcf.config import validate
from dcf.data import cache
from dcf.data.ahead import ReadAhead, Request
from dcf.data.disk import DiskStore
from dcf.data.folder import Folder
from dcf.data.store import TensorStore
from dcf.estimate.memory import Machine
from dcf.run import resume
from dcf.spec import parse_one
from dcf.testing import fake_context

rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def make(root, classes=("a", "b", "c"), n=7, mode="RGB", size=(8, 8)):
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = (*size, 3) if mode == "RGB" else size
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(root / name / f"{i}.png")
    return root


def load(path, **options):
    return Folder(Folder.Config(path=str(path), **options)).load()


def both(path, **options):
    return (load(path, memory=memory, **options) for memory in ("resident", "disk"))


def same(one, two):
    """The same datasets, the second of which is in a file."""
    assert isinstance(two.train.store, DiskStore)
    assert one.checksum == two.checksum
    assert (one.spec, one.id) == (two.spec, two.id)
    index = torch.tensor([[3, 0, 3], [1, 2, len(one.train) - 1]])
    assert torch.equal(one.train.images(index), two.train.images(index))
    for a, b in zip(one.train.batches(5), two.train.batches(5), strict=True):
        assert torch.equal(a.x, b.x)


@pytest.mark.parametrize("options", [{}, {"size": "5x6"}, {"split": 0}, {"norm": "unit"}, {"norm": "zca"}], ids=str)
def test_nothing_differs_from_images_in_memory(tmp_path, options):
    make(tmp_path / "d")
    (tmp_path / "d" / "b" / "3.png").write_bytes(b"broken")
    same(*both(tmp_path / "d", **options))


@pytest.mark.parametrize("first", ["resident", "disk"])
def test_one_kept_file_serves_both(tmp_path, first, monkeypatch):
    make(tmp_path / "d" / "train")
    make(tmp_path / "d" / "test", n=2)
    load(tmp_path / "d", memory=first)
    for name in ("decode_tree", "decode_blocks"):
        monkeypatch.setattr(f"dcf.data.cache.{name}", lambda *_: pytest.fail("decoded again"))
    same(*both(tmp_path / "d"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_channels_follow_the_files(tmp_path, mode):
    make(tmp_path / "d", mode=mode)
    data = load(tmp_path / "d", memory="disk")
    assert data.spec.channels == (1 if mode == "L" else 3)
    assert data.checksum == load(tmp_path / "d", cache=False).checksum


def test_files_are_decoded_block_by_block(tmp_path, monkeypatch):
    make(tmp_path / "d", n=40)
    monkeypatch.setattr("dcf.data.decode._BLOCK", 1)  # sixteen files, the least there is
    data = load(tmp_path / "d", memory="disk")
    assert data.checksum == load(tmp_path / "d", cache=False).checksum


def test_different_sizes_are_refused_and_nothing_is_kept(tmp_path):
    make(tmp_path / "d")
    Image.new("RGB", (9, 9)).save(tmp_path / "d" / "a" / "x.png")
    with pytest.raises(DataError, match=r"differ in size: 8x8 \(21\), 9x9 \(1\)"):
        load(tmp_path / "d", memory="disk")
    assert list((tmp_path / "cache" / "folders").iterdir()) == []


def test_parts_of_it_stay_in_the_file(tmp_path):
    path = make(tmp_path / "d")
    base = f'folder:path="{path}",split=0,memory='
    one, two = (dcf.data.load(f"subset:base=({base}{m}),classes=[c,a],per_class=4") for m in ("resident", "disk"))
    same(one, two)
    held = [data.holdout(0.25, torch.Generator().manual_seed(1)) for data in (one, two)]
    assert isinstance(held[1].train.store, DiskStore)
    assert held[0].checksum == held[1].checksum


def test_a_store_gives_what_a_tensor_gives(tmp_path):
    path = make(tmp_path / "d")
    store = load(path, memory="disk", split=0).train.store
    tensor = TensorStore(store.take(slice(None)))
    for index in (slice(2, 9), slice(None, None, 3), torch.tensor([5, 4, 4, 20]), torch.arange(0)):
        assert torch.equal(store.take(index), tensor.take(index))
        numbers = torch.arange(len(tensor.pixels))[index] if isinstance(index, slice) else index
        assert torch.equal(store.select(numbers).take(slice(None)), tensor.take(index))
    nested = store.select(torch.tensor([3, 1])).select(torch.tensor([1]))
    assert torch.equal(nested.take(slice(None)), tensor.take(slice(1, 2)))


# --- when it is used --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "resident"), [(10**9, True), (1000, False), (None, True)])
def test_by_default_it_depends_on_the_memory_that_is_free(tmp_path, monkeypatch, free, resident):
    monkeypatch.setattr(Machine, "available", lambda self: free)
    assert load(make(tmp_path / "d")).train.resident is resident
    assert load(tmp_path / "d", cache=False).train.resident


def test_without_a_cache_there_is_no_file():
    with pytest.raises(dcf.SpecError, match="memory=disk takes the images from the cache"):
        validate(Folder.Config, parse_one("folder:path=x,memory=disk,cache=false"))


def test_limits_of_the_process_count_as_memory(tmp_path, monkeypatch):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 4000 kB\n")
    (tmp_path / "proc/self/status").write_text("VmSize: 900 kB\nVmData: 100 kB\n")
    limits = {}
    monkeypatch.setattr("resource.getrlimit", lambda which: (limits.get(which, -1), -1))
    assert Machine(tmp_path).available() == 4000 * 1024
    limits[resource.RLIMIT_DATA] = 1100 * 1024
    assert Machine(tmp_path).available() == 1000 * 1024


# --- what can go wrong ------------------------------------------------------------------------------------------------


def test_a_changed_image_is_decoded_again(tmp_path):
    first = load(make(tmp_path / "d"), memory="disk")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "d" / "a" / "0.png")
    os.utime(tmp_path / "d" / "a" / "0.png", ns=(1, 1))
    again = load(tmp_path / "d", memory="disk")
    assert again.checksum != first.checksum
    same(load(tmp_path / "d", cache=False), again)


@pytest.mark.parametrize("damage", [lambda b: b[:40], lambda b: b[:-9], lambda b: b[:5000] + b"\0" + b[5001:]])
def test_a_damaged_file_is_made_anew(tmp_path, caplog, damage):
    first = load(make(tmp_path / "d"), memory="disk").checksum
    (file,) = cache.cache_dir().rglob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(damage(good))
    assert load(tmp_path / "d", memory="disk").checksum == first
    assert "is damaged" in caplog.text
    assert file.read_bytes() == good


def test_a_file_that_is_cut_off_in_use_is_an_error_and_one_that_is_removed_is_none(tmp_path):
    data = load(make(tmp_path / "d"), memory="disk")
    (file,) = cache.cache_dir().rglob("*.safetensors")
    whole = data.train.images(torch.arange(3))
    file.unlink()
    assert torch.equal(data.train.images(torch.arange(3)), whole)
    data = load(tmp_path / "d", memory="disk")
    os.truncate(file, 4200)
    with pytest.raises(DataError, match=r"was cut off while it was in use; remove it and start again"):
        data.train.images(torch.arange(3))


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    make(tmp_path / "d")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("dcf.data.cache.decode_blocks", lambda *_: pytest.fail("decoded in vain"))
    with pytest.raises(DataError, match=r"take 3.9 KiB and cannot be kept in .*\(1000 B are free\); make room there"):
        load(tmp_path / "d", memory="disk")


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    make(tmp_path / "d")

    def full(self, kept, facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dcf.data.disk.FileWriter.finish", full)
    with pytest.raises(DataError, match=r"\(No space left on device\); make room there, set DCF_CACHE"):
        load(tmp_path / "d", memory="disk")
    assert list((tmp_path / "cache" / "folders").iterdir()) == []


# --- reading ahead ----------------------------------------------------------------------------------------------------


def requests(it):
    return [Request(it, 2, ("match", step), (c,)) for step in range(2) for c in range(3)]


def test_from_the_second_iteration_on_everything_is_read_beforehand():
    here, threads = threading.current_thread(), []

    def read(request):
        threads.append((request, threading.current_thread() is here))
        return torch.tensor(hash(request))

    ahead = ReadAhead(read, iterations=4)
    for it in range(4):
        for request in requests(it):
            assert int(ahead.get(request)) == hash(request)
    waited = [request for request, on_this_thread in threads if on_this_thread]
    assert waited == [*requests(0), requests(1)[0]]
    assert sorted(request for request, _ in threads) == sorted(r for it in range(4) for r in requests(it))


def test_a_wrong_guess_changes_no_answer():
    ahead = ReadAhead(lambda request: torch.tensor(hash(request)))
    for it in range(6):
        for request in requests(it)[: 1 + it % 3]:
            assert int(ahead.get(request)) == hash(request)


def test_what_the_thread_cannot_read_is_raised_where_it_is_asked_for():
    def read(request):
        if request.it == 2:
            raise DataError("cut off")
        return torch.zeros(1)

    ahead = ReadAhead(read)
    for it in range(2):
        ahead.get(Request(it, 1, (), (0,)))
    with pytest.raises(DataError, match="cut off"):
        ahead.get(Request(2, 1, (), (0,)))


def test_a_run_gets_the_images_of_memory_in_any_order_of_requests(tmp_path):
    one, two = (fake_context(data=data, class_chunk=2) for data in both(make(tmp_path / "d")))
    for it in range(3):
        one.begin(it)
        two.begin(it)
        for step in range(2):
            for a, b in zip(one.chunks(), two.chunks(), strict=True):
                real = one.real(a.classes, 4, "match", step)
                assert torch.equal(real, two.real(b.classes, 4, "match", step))
                other = one.replica(1).real(a.classes, 4, "match", step)
                assert not torch.equal(real, other)
                assert torch.equal(other, two.replica(1).real(b.classes, 4, "match", step))


# --- runs -------------------------------------------------------------------------------------------------------------


def condense(path, memory, out, iterations=6, **options):
    small = {"network": "convnet:width=4,depth=1", "evaluate": False, "init": "noise", "augment": "none"}
    data = f'folder:path="{path}",memory={memory}'
    return dcf.condense(data=data, ipc=1, iterations=iterations, out=out, **small, **options)


@pytest.mark.parametrize("matcher", ["dm:batch_real=3", "dc:batch_real=3,match_steps=2,net_epochs=1"])
def test_a_run_that_was_stopped_and_goes_on_is_that_in_memory(tmp_path, matcher):
    pytest.importorskip(f"dcf_{matcher[:2]}")
    path, stopped = make(tmp_path / "d"), tmp_path / "stopped"

    def stop(progress):
        if progress.it == 4:
            raise KeyboardInterrupt

    resident = condense(path, "resident", tmp_path / "whole", matcher=matcher)
    with pytest.raises(KeyboardInterrupt):
        condense(path, "disk", stopped, matcher=matcher, overrides={"checkpoint_every": "2"}, on_step=stop)
    assert torch.equal(resume(stopped).synthetic.tensors().x, resident.tensors().x)
    losses = [(folder / "metrics.jsonl").read_text() for folder in (tmp_path / "whole", stopped)]
    assert losses[0] == losses[1]


def test_a_run_whose_file_is_cut_off_ends_with_the_reason_and_its_checkpoint(tmp_path):
    pytest.importorskip("dcf_dm")
    path, run = make(tmp_path / "d"), tmp_path / "run"

    def cut(progress):
        if progress.it == 3:
            (file,) = cache.cache_dir().rglob("*.safetensors")
            os.truncate(file, 4100)

    with pytest.raises(DataError, match="was cut off while it was in use"):
        condense(path, "disk", run, matcher="dm", overrides={"checkpoint_every": "2"}, on_step=cut)
    whole = condense(path, "resident", tmp_path / "whole", matcher="dm")
    assert torch.equal(resume(run).synthetic.tensors().x, whole.tensors().x)


LIMITED = """
import json, resource, sys
import torch, dcf, dcf.run, dcf.data.folder
from dcf.estimate.memory import Machine
from dcf.run import resume
from dcf.spec import parse_one
status = open("/proc/self/status").read()
used = int(status.split("VmData:")[1].split()[0]) * 1024
most = used + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
try:
    made = dcf.condense(
        data=f'folder:path="{sys.argv[1]}",size=256,split=0,memory={sys.argv[2]}', matcher="dm:batch_real=2", ipc=1,
        iterations=2, network="convnet:width=4,depth=2", evaluate=False, augment="none", init="noise",
    )
except (MemoryError, RuntimeError) as error:
    print(json.dumps({"error": type(error).__name__ + str(error)}))
else:
    print(json.dumps({"finite": bool(made.tensors().x.isfinite().all())}))
"""


def limited(path, memory, limit):
    """Two iterations in a process that gets only so many bytes."""
    command = [sys.executable, "-c", LIMITED, str(path), memory, str(limit)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that the system keeps")
def test_a_dataset_that_memory_cannot_hold_is_condensed(tmp_path):
    pytest.importorskip("dcf_dm")
    path = make(tmp_path / "d", classes=("a", "b"), n=1000)
    images = 2 * 1000 * 3 * 256 * 256
    limit = images * 3 // 4
    assert limited(path, "auto", limit) == {"finite": True}
    assert max(file.stat().st_size for file in (tmp_path / "cache").rglob("*")) > images > limit
    # The limit is one: in memory the same images do not fit.
    assert "error" in limited(path, "resident", limit)
