"""Whole streams on digits: what is condensed when, what is kept, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import dcf
from dcf.cli import main
from dcf.files import read_tensors, write_tensors
from dcf.storage import content_hash
from dcf_continual import display
from dcf_continual import stream as module
from dcf_continual.model import FILE, read_stream
from dcf_continual.options import StreamSettings, load_stream, memory_of, stream_names
from dcf_continual.orders import permutation
from dcf_continual.plan import require_runnable, stream_groups
from dcf_continual.stream import run_stream

NETWORK = "convnet:width=4,depth=1"


def settings(**changes):
    usual = {
        "steps": 2, "seeds": (0,), "memory": "ipc=2", "methods": ("random",), "network": NETWORK, "nets": 1,
        "protocol_set": {"epochs": 1, "steps_min": 0},
    }  # fmt: skip
    return StreamSettings(**{**usual, **changes})


def plain(stream):
    return stream.to_json(timing=False)


def configs(root):
    return [tomllib.loads(file.read_text("utf-8")) for file in sorted(root.glob("cells/*/config.toml"))]


def test_only_new_classes_are_condensed_and_all_are_kept(tmp_path):
    found = run_stream(settings(), tmp_path)
    order = permutation(0, 10)
    groups = [tuple(map(str, order[:5])), tuple(map(str, order[5:]))]
    (result,) = found.rows[0].orders
    assert list(result.groups) == groups
    wanted = {f"subset:base=(digits),classes=[{','.join(sorted(group))}]" for group in groups}
    assert {config["data"] for config in configs(tmp_path)} == wanted
    assert [m.bytes for m in result.memory] == [5 * 2 * 256, 10 * 2 * 256]
    memory = dcf.load(tmp_path / "memory" / "random-o0-t1.safetensors")
    assert memory.classes == list("0123456789")
    assert memory.storage().views_per_class == 2
    assert [part["classes"] for part in memory.metadata["assembled"]["parts"]] == [sorted(g) for g in groups]
    first = dcf.load(tmp_path / "memory" / "random-o0-t0.safetensors")
    assert sorted({memory.classes[c] for c in first.targets}) == sorted(groups[0])
    kept = [i for i, c in enumerate(memory.targets) if memory.classes[c] in groups[0]]
    assert torch.equal(memory.tensors().x[kept], first.tensors().x)


def test_counts_are_of_the_classes_seen_and_heads_are_nested(tmp_path):
    found = run_stream(settings(protocol_set={"epochs": 20, "steps_min": 0}), tmp_path)
    result = found.rows[0].orders[0]
    (run,) = result.runs
    assert {head: [len(row) for row in rows] for head, rows in run.hits.items()} == {
        head: [1, 2] for head in ("all", "seen", "step")
    }
    assert found.classes_seen == (5, 10)
    for t, row in enumerate(run.hits["all"]):
        for j, hits in enumerate(row):
            assert hits <= run.hits["seen"][t][j] <= run.hits["step"][t][j] <= result.counts[j]
    # When all classes were seen, those that were not seen cannot compete.
    assert run.hits["all"][-1] == run.hits["seen"][-1]
    assert found.rows[0].final["all"].mean == pytest.approx(sum(run.hits["all"][-1]) / sum(result.counts))


def test_what_is_done_is_not_done_again_and_everything_is_a_function_of_the_settings(tmp_path, monkeypatch):
    first = run_stream(settings(), tmp_path / "a")
    assert plain(run_stream(settings(), tmp_path / "b")) == plain(first)
    monkeypatch.setattr(module, "from_scratch", lambda *_: pytest.fail("trained again"))
    assert plain(run_stream(settings(), tmp_path / "a")) == plain(first)
    assert plain(read_stream(tmp_path / "a")) == plain(first)
    with pytest.raises(pytest.fail.Exception):  # another training is another result
        run_stream(settings(protocol_set={"epochs": 2, "steps_min": 0}), tmp_path / "a")


def test_a_memory_of_fixed_size_makes_room(tmp_path):
    image = 256
    found = run_stream(settings(steps=5, memory=f"bytes={20 * image}"), tmp_path)
    result = found.rows[0].orders[0]
    # 10, 5, 3, 2 and 2 images a class of 2, 4, 6, 8 and 10.
    assert [m.views for m in result.memory] == [20, 20, 18, 16, 20]
    assert all(m.bytes <= 20 * image for m in result.memory)
    early, late = (dcf.load(tmp_path / "memory" / f"random-o0-t{t}.safetensors") for t in (0, 4))
    c = early.targets[0]
    before = early.tensors().x[torch.tensor(early.targets) == c]
    after = late.tensors().x[torch.tensor(late.targets) == c]
    assert torch.equal(after, before[:2])


@pytest.mark.parametrize(("memory", "least"), [("bytes=100", "bytes=2560"), ("class-bytes=255", "class-bytes=256")])
def test_a_memory_that_will_be_too_small_is_refused_before_anything_is_run(tmp_path, memory, least):
    with pytest.raises(dcf.UsageError, match=f"the smallest that works is {least}$"):
        run_stream(settings(memory=memory, steps=5), tmp_path)
    assert not list(tmp_path.glob("cells/*"))
    found = run_stream(settings(memory=least, steps=5), tmp_path)
    assert [m.views for m in found.rows[0].orders[0].memory][-1] == 10


def test_each_method_needs_room_as_it_stores_images(tmp_path):
    pytest.importorskip("dcf_lowrank")
    with pytest.raises(
        dcf.UsageError, match=r"'random\+lowrank:r=3' stores them; the smallest that works is bytes=1920"
    ):
        run_stream(settings(memory="bytes=1919", methods=("random+lowrank:r=3",)), tmp_path)


@pytest.mark.parametrize(
    ("package", "method"), [("dcf_haba", "haba"), ("dcf_labels", "soft-labels"), ("dcf_memory", "memory")]
)
def test_what_cannot_be_put_together_is_refused_before_anything_is_run(tmp_path, package, method):
    pytest.importorskip(package)
    with pytest.raises(dcf.UsageError, match=f"'random\\+{method}' cannot fill a memory step by step"):
        run_stream(settings(memory="ipc=8", methods=(f"random+{method}",)), tmp_path)
    assert not list(tmp_path.glob("cells/*"))


def test_runs_are_found_again_unless_they_are_damaged(tmp_path):
    first = plain(run_stream(settings(), tmp_path))
    files = sorted(tmp_path.glob("cells/*/synthetic.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    assert plain(run_stream(settings(), tmp_path)) == first
    assert [file.stat().st_mtime_ns for file in files] == before
    files[0].write_bytes(files[0].read_bytes()[:-9])
    assert plain(run_stream(settings(), tmp_path)) == first
    assert [file.stat().st_mtime_ns == old for file, old in zip(files, before, strict=True)] == [False, True]


def test_the_memory_on_disk_is_that_of_the_last_stream_and_of_its_own_method(tmp_path):
    run_stream(settings(), tmp_path)
    long = "a method with a name so long that it does not fit into the name of a file, "
    tables = tuple({"name": f"{long}{init}", "matcher": "none", "init": init} for init in ("random", "noise"))
    found = [
        run_stream(settings(memory="ipc=3"), tmp_path),  # a second stream in the same directory
        run_stream(settings(methods=(), method=tables), tmp_path / "long"),
    ]
    for stream, root in zip(found, (tmp_path, tmp_path / "long"), strict=True):
        wanted = sorted(m.tensors for row in stream.rows for m in row.orders[0].memory)
        files = list((root / "memory").glob("*.safetensors"))
        assert sorted(content_hash(dcf.load(file).stored_tensors()) for file in files) == wanted


def test_a_carried_network_that_is_not_the_one_that_was_tested_is_trained_again(tmp_path):
    made = settings(learner="replay", steps=5)
    first = plain(run_stream(made, tmp_path))
    network = tmp_path / "results" / "random-o0-n0-t2.safetensors"
    for spoil in (
        # As a kill leaves it between the network of another stream and the file that tells of it.
        lambda: write_tensors(network, {k: -v for k, v in read_tensors(network)[0].items()}, {"key": "another"}),
        lambda: network.write_bytes(network.read_bytes()[:-9]),
        network.unlink,
    ):
        spoil()
        (tmp_path / "results" / "random-o0-n0-t3.json").unlink()
        assert plain(run_stream(made, tmp_path)) == first


def test_what_learns_something_of_the_whole_set_is_refused_as_soon_as_it_is_seen(tmp_path):
    pytest.importorskip("dcf_bptt")
    table = {"name": "steps", "matcher": "dd:epochs=1", "network": NETWORK}
    made = settings(methods=(), method=(table,), iterations=1, steps=5)
    with pytest.raises(dcf.UsageError, match="'steps' cannot fill a memory step by step: 'step 1' is a program"):
        run_stream(made, tmp_path)
    assert len(configs(tmp_path)) == 1


def test_a_step_without_test_images_is_refused_before_anything_is_run(tmp_path, monkeypatch):
    def without_nines(text):
        real = load_data(text)
        return replace(real, test=real.test.select(torch.nonzero(real.test.labels != 9).flatten()))

    load_data = module.load_data
    monkeypatch.setattr(module, "load_data", without_nines)
    with pytest.raises(dcf.DataError, match="no test images of step 10: 9"):
        run_stream(settings(steps=10, order="data"), tmp_path)
    assert not list(tmp_path.glob("cells/*"))
    assert run_stream(settings(steps=5, order="data"), tmp_path).rows[0].orders[0].counts[-1] > 0


def test_the_precision_of_training_is_recorded(tmp_path):
    assert run_stream(settings(precision="strict"), tmp_path).environment["precision"] == "fp32"
    again = run_stream(settings(precision="strict"), tmp_path)  # known, too, of what is not done again
    assert again.environment["precision"] == "fp32"


def test_classes_that_are_condensed_apart_are_shared_by_orders(tmp_path):
    table = {"name": "learned", "matcher": "dm:batch_real=4", "network": NETWORK}
    made = settings(seeds=(0, 1), methods=(), method=(table,), iterations=1, condense="class")
    run_stream(made, tmp_path)
    assert sorted(c["data"] for c in configs(tmp_path)) == [f"subset:base=(digits),classes=[{c}]" for c in range(10)]
    assert {c["seed"] for c in configs(tmp_path)} == {0}


def test_real_images_are_chosen_anew_for_each_order(tmp_path):
    run_stream(settings(seeds=(0, 1), condense="class"), tmp_path)
    assert sorted(c["seed"] for c in configs(tmp_path)) == [0, 0, 1, 1]


def test_a_carried_network_grows_in_order_of_arrival(tmp_path):
    found = run_stream(settings(steps=5, learner="replay", order=tuple("9876543210")), tmp_path)
    assert found.head == "seen"

    rows = [
        len(read_tensors(tmp_path / f"results/random-o0-n0-t{t}.safetensors")[0]["classifier.bias"]) for t in range(5)
    ]
    assert rows == [2, 4, 6, 8, 10]
    assert found.rows[0].orders[0].groups[0] == ("9", "8")


def test_a_sequence_of_datasets_adds_images_and_no_classes(tmp_path):
    found = run_stream(settings(data=("digits", "digits"), order="data", learner="replay"), tmp_path)
    assert found.classes_seen == (10, 10)
    result = found.rows[0].orders[0]
    assert [m.views for m in result.memory] == [20, 40]
    assert len(result.runs[0].hits["seen"][1]) == 2
    with pytest.raises(dcf.DataError, match="differ in classes, shape or value space"):
        run_stream(settings(data=("digits", "digits:norm=unit"), order="data"), tmp_path / "b")


# --- settings ----------------------------------------------------------------------------------------


def test_named_streams_can_be_run_and_say_what_was_changed():
    assert {"lowrank-cifar10-5step@1", "dm-cifar100-10step@1", "idc-cifar100-5step@1", "digit-sequence@1"} <= set(
        stream_names()
    )
    for name in stream_names():
        made = load_stream(name)
        assert made.id == name
        assert require_runnable(made)
    changed = load_stream("lowrank-cifar10-5step").with_changes({"steps": 2, "nets": 1, "memory": "ipc=1"})
    assert changed.id == 'lowrank-cifar10-5step@1[memory="ipc=1",steps=2]'  # how many were run is no other protocol
    assert changed.with_changes({"steps": 5, "memory": "ipc=10"}).id == "lowrank-cifar10-5step@1"


def test_memories_hold_the_published_numbers_of_floats():
    for name, floats in (("lowrank-cifar10-5step", 10 * 3072), ("lowrank-cifar100-5step", 20 * 3072)):
        memory = memory_of(load_stream(name).memory)
        assert memory.class_bytes(4 * 3072, seen=2) == 4 * floats
    assert memory_of("bytes=1000").class_bytes(1, seen=4) == 250


def test_the_groups_of_the_published_carried_network_are_sorted(tmp_path):
    groups = stream_groups(load_stream("idc-cifar100-5step"), 0, [f"class {c}" for c in range(100)])
    order = permutation(0, 100)
    assert [list(g.numbers) for g in groups] == [sorted(order[i : i + 20]) for i in range(0, 100, 20)]


WRONG = {
    "stream": (["--stream", "lowrnk"], "no stream named 'lowrnk'; there are"),
    "steps": (["--steps", "0"], "--steps expects int >= 1"),
    "memory": (["--memory", "10"], "expected ipc=N or class-bytes=N for each class, or bytes=N"),
    "seeds": (["--seeds", "1,1"], "expected each seed once, got seeds=1,1"),
    "method": (["--methods", "randm"], "did you mean 'random'?"),
    "protocol": (["--set", "protocol.epoch=1"], "no option 'epoch'"),
    "learner": (["--learner", "sgd"], "'gdumb' | 'replay'"),
    "setting": (["--set", "temprature=1"], "did you mean 'temperature'?"),
    "data": (["--data", "digit"], "did you mean 'digits'?"),
    "network": (["--network", "convnt"], "did you mean 'convnet'?"),
}
#: What is listed where a setting is not known, and nowhere else.
ALL_SETTINGS = "options: name"
ASK = """
import json, sys
from dcf.cli import main
codes = []
for words in json.load(sys.stdin):
    codes.append(main(["continual", "run", "--out", "x", *words]))
    print("---", file=sys.stderr)
print(json.dumps([codes, "torch" in sys.modules]))
"""


def test_wrong_requests_are_explained_without_torch(tmp_path):
    asked = json.dumps([words for words, _ in WRONG.values()])
    done = subprocess.run(
        [sys.executable, "-c", ASK], input=asked, capture_output=True, text=True, cwd=tmp_path, timeout=110, check=False
    )
    codes, torch_was_imported = json.loads(done.stdout)
    assert not torch_was_imported
    assert codes == [2] * len(WRONG)
    for text, (what, (_, says)) in zip(done.stderr.split("---\n"), WRONG.items(), strict=False):
        assert says in text
        assert (ALL_SETTINGS in text) == (what in ("setting", "protocol"))
        assert "Traceback" not in text
    assert not list(tmp_path.iterdir())


# --- the command line --------------------------------------------------------------------------------

FILE_TEXT = f"""
steps = 5
seeds = [0]
memory = "ipc=1"
methods = ["random"]
learner = "replay"
network = "{NETWORK}"
nets = 2
protocol_set = {{ epochs = 2, steps_min = 0 }}
"""


def test_results_are_shown_and_drawn(tmp_path, capsys):
    run_stream(settings(), tmp_path / "s")
    assert main(["continual", "show", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    assert "random" in shown
    assert "10 classes" in shown
    for form in ("png", "svg", "svg"):
        assert main(["continual", "plot", str(tmp_path / "s"), "-o", str(tmp_path / f"c.{form}")]) == 0
    first = (tmp_path / "c.svg").read_bytes()
    assert main(["continual", "plot", str(tmp_path / "s" / FILE), "-o", str(tmp_path / "d.svg")]) == 0
    assert (tmp_path / "d.svg").read_bytes() == first
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["continual", "show", str(tmp_path)]) == 1
    assert main(["continual", "streams"]) == 0


def spoil_label(found):
    found["rows"][0]["label"] = "<b>$\\frac{x}$ \x1b[31m"


DAMAGED = {
    "head": lambda found: found.update(head="other"),
    "no orders": lambda found: found["rows"][0].update(orders=[]),
    "no average": lambda found: found["rows"][0].update(average={}),
    "short": lambda found: found["rows"][0].update(
        accuracy={k: v[:1] for k, v in found["rows"][0]["accuracy"].items()}
    ),
    "no memory": lambda found: found["rows"][0]["orders"][0].update(memory=[]),
}


def test_a_damaged_result_is_no_internal_error(tmp_path, capsys):
    run_stream(settings(), tmp_path / "s")
    whole = json.loads((tmp_path / "s" / FILE).read_text("utf-8"))
    for spoil in DAMAGED.values():
        found = json.loads(json.dumps(whole))
        spoil(found)
        (tmp_path / FILE).write_text(json.dumps(found), "utf-8")
        for words in (["show"], ["plot", "-o", str(tmp_path / "x.png")]):
            assert main(["continual", words[0], str(tmp_path / FILE), *words[1:]]) == 1
            assert "is not a stream of schema" in capsys.readouterr().err
    spoil_label(whole)
    (tmp_path / FILE).write_text(json.dumps(whole), "utf-8")
    assert main(["continual", "plot", str(tmp_path / FILE), "-o", str(tmp_path / "x.png")]) == 0


def test_a_file_that_begins_with_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('stream = "b.toml"\n')
    (tmp_path / "b.toml").write_text('stream = "./a.toml"\n')
    with pytest.raises(dcf.UsageError, match="begins with itself"):
        load_stream("a.toml")
    (tmp_path / "b.toml").write_text("steps = 2\n")
    assert load_stream("a.toml").steps == 2


def test_a_long_name_of_a_stream_stays_within_the_picture(tmp_path, monkeypatch):
    stream = run_stream(settings(), tmp_path / "s").model_copy(
        update={"id": "stream@1[" + ",".join(60 * ["a=1"]) + "]"}
    )
    drawn = []
    monkeypatch.setattr(display, "write_figure", lambda figure, out: drawn.append(figure))
    display.save_curves(stream, tmp_path / "c.svg")
    (figure,) = drawn
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    wide = [text.get_window_extent(canvas.get_renderer()) for text in figure.findobj(Text) if text.get_text()]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in wide)


def spawn(out, cwd):
    words = [sys.executable, "-m", "dcf", "continual", "run", "--stream", "tiny.toml", "--out", out]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, cwd=cwd, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_stream_comes_to_the_same(tmp_path):
    (tmp_path / "tiny.toml").write_text(FILE_TEXT)
    # Another process, too: how many threads there are decides rounding, and is recorded.
    spawn("whole", tmp_path).communicate(timeout=300)
    whole = read_stream(tmp_path / "whole")
    process = spawn("killed", tmp_path)
    # In the middle of the first chain: a network is carried over the kill.
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed/results/random-o0-n0-t1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / FILE).exists()
    again = spawn("killed", tmp_path)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert plain(read_stream(tmp_path / "killed")) == plain(whole)


@pytest.mark.slow
def test_a_memory_is_learned_and_new_classes_dilute_it(tmp_path):
    made = settings(
        steps=5, memory="ipc=10", network="convnet:width=8,depth=2", protocol_set={"epochs": 60, "steps_min": 0}
    )
    found = run_stream(made, tmp_path).rows[0]
    accuracies = [stat.mean for stat in found.accuracy["seen"]]
    assert accuracies[0] > 0.9
    assert accuracies[-1] > 0.5
    assert accuracies[-1] < accuracies[0]
    assert found.forgetting["seen"].mean > 0
