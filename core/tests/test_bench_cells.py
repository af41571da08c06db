"""Cells and rows of a bench: what decides a cell's key, and which baselines stand beside a method."""

import json

import pytest

from dcf.bench.cells import cell_key, make_cell, read_report
from dcf.bench.gather import cell_timing, gather
from dcf.bench.pool import Pool, Watcher, worker_environment
from dcf.bench.run import plan_bench
from dcf.bench.settings import read_settings
from dcf.bench.worker import run_cell
from dcf.errors import RunError
from dcf.runconfig import RunConfig, from_toml, to_toml

CONFIG = RunConfig(matcher="none", iterations=0, ipc=1, networks=2)
DATA = ("digits", "abc")


def key(**changes):
    return cell_key(RunConfig(**{**CONFIG.model_dump(exclude_defaults=True), **changes}), *DATA)


def rows(tmp_path, **given):
    return plan_bench(read_settings(None, {"sets": 2, "nets": 1, **given}), tmp_path)


# --- cells -----------------------------------------------------------------------------------------------------------


def test_keys_do_not_change_from_version_to_version():
    # A bench that somebody began must go on with the next release: raise the version in the key to break that.
    assert key() == "8e138f44004bee5e6bff1f42bd155c67504c6ec93717418dbe94755832ff39b9"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": "x"},
        {"device": "cpu"},
        {"class_chunk": 3},
        {"checkpoint_every": 7},
        {"data": "digits"},
        {"replicas": 1},
    ],
    ids=str,
)
def test_what_decides_nothing_does_not_change_the_key(change):
    assert key(**change) == key()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"ipc": 2},
        {"lr": 0.2},
        {"protocol_set": {"epochs": 7}},
        {"networks": 3},
        {"augment": "x"},
        {"replicas": 3},
    ],
    ids=str,
)
def test_what_decides_the_outcome_changes_the_key(change):
    assert key(**change) != key()


def test_the_dataset_counts_by_its_contents():
    assert cell_key(CONFIG, "digits", "abc") != cell_key(CONFIG, "digits", "abd")


def test_equal_changes_of_a_protocol_are_one_key():
    assert key(protocol_set={"epochs": 7}) == key(protocol_set={"epochs": "7"})
    assert key(protocol_set={"epochs": 30}) == key()


def test_a_cell_is_found_by_its_key_whatever_it_is_called(tmp_path):
    cell = make_cell(tmp_path, CONFIG, DATA, 0)
    cell.write()
    assert cell.state == "begun"
    cell.path.rename(cell.path.with_name(f"other-name-{cell.key[:8]}"))
    assert make_cell(tmp_path, CONFIG, DATA, 0).name == f"other-name-{cell.key[:8]}"


def test_a_directory_that_holds_another_run_is_left_alone(tmp_path):
    cell = make_cell(tmp_path, CONFIG, DATA, 0)
    cell.path.mkdir(parents=True)
    (cell.path / "config.toml").write_text(to_toml(CONFIG.model_copy(update={"seed": 9})))
    other = make_cell(tmp_path, CONFIG, DATA, 0)
    assert other.path != cell.path
    assert other.key == cell.key


def test_what_was_decided_on_the_machine_is_kept(tmp_path):
    cell = make_cell(tmp_path, CONFIG, DATA, 0)
    cell.path.mkdir(parents=True)
    (cell.path / "config.toml").write_text(to_toml(CONFIG.model_copy(update={"class_chunk": 4, "device": "cuda"})))
    cell.write()
    written = from_toml(cell.path / "config.toml")
    assert (written.class_chunk, written.device) == (4, "cuda")
    make_cell(tmp_path, CONFIG.model_copy(update={"device": "cpu"}), DATA, 0).write()
    assert from_toml(cell.path / "config.toml").device == "cpu"


def test_a_cell_is_found_again_after_it_was_run(tmp_path):
    # What a run decides for itself and writes down must not make it another run.
    given = {"methods": ("noise+mlp",), "sets": 1, "override": {"protocol.epochs": "1", "protocol.steps_min": "1"}}
    cell = rows(tmp_path, **given)[0].cells[0]
    cell.write()
    assert run_cell(cell.path)
    again = rows(tmp_path, **given)[0].cells[0]
    assert (again.path, again.state) == (cell.path, "done")


@pytest.mark.parametrize("lost", ["report", "set", "byte"])
def test_a_cell_whose_files_are_damaged_is_run_again(tmp_path, lost):
    given = {"methods": ("noise+mlp",), "sets": 1, "override": {"protocol.epochs": "1", "protocol.steps_min": "1"}}
    cell = rows(tmp_path, **given)[0].cells[0]
    cell.write()
    assert run_cell(cell.path)
    before = read_report(cell.path)
    if lost == "report":
        (cell.path / "report.json").write_text('{"schema": "dcf.eval/1"')
    elif lost == "set":
        (cell.path / "synthetic.safetensors").unlink()
    else:
        content = (cell.path / "synthetic.safetensors").read_bytes()
        (cell.path / "synthetic.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert cell.state == "begun"
    cell.write()
    assert run_cell(cell.path)
    assert cell.state == "done"
    assert read_report(cell.path).text(timing=False) == before.text(timing=False)


def test_timing_that_a_kill_cut_off_is_no_timing(tmp_path):
    (tmp_path / "progress.json").write_text('{"condense": 3')
    assert cell_timing(tmp_path).condense == 0.0
    (tmp_path / "progress.json").write_text(json.dumps({"condense": 3, "evaluate": 4}))
    assert cell_timing(tmp_path).evaluate == 4.0


# --- rows ------------------------------------------------------------------------------------------------------------


def test_each_dataset_and_budget_has_random_images_and_the_whole_set(tmp_path):
    found = rows(tmp_path, methods=("noise",), ipc=("1", "3"), override={"protocol.epochs": "1"})
    assert [(r.label, r.budget, r.config.ipc) for r in found] == [
        ("noise", "ipc=1", 1),
        ("random", "ipc=1", 1),
        ("noise", "ipc=3", 3),
        ("random", "ipc=3", 3),
        ("whole", None, 1),
    ]
    assert [len(r.cells) for r in found] == [2, 2, 2, 2, 1]
    assert found[-1].config.baselines == ("whole",)
    assert not any(r.config.baselines for r in found[:-1])


def test_a_budget_in_bytes_is_as_many_plain_images_as_it_holds(tmp_path):
    # 10 classes of 64 floats: 2,560 bytes an image a class.
    found = rows(tmp_path, methods=("noise",), budget=("bytes=8000", "floats=1280", "bytes=2559"))
    random = {r.budget: r for r in found if r.role == "random"}
    assert [random[b].config.ipc for b in ("bytes=8000", "floats=1280")] == [3, 2]
    assert random["bytes=2559"].cells == ()
    assert "holds no float32 image" in random["bytes=2559"].note


def test_random_images_named_as_a_method_stand_there_once(tmp_path):
    assert [r.label for r in rows(tmp_path, methods=("random", "noise"))] == ["noise", "random", "whole"]


def test_each_network_has_baselines_of_its_own(tmp_path):
    found = rows(tmp_path, methods=("noise", "noise+mlp"))
    assert [(r.label, r.network) for r in found if r.role != "method"] == [
        ("random", "convnet:width=32"),
        ("random", "mlp"),
        ("whole", "convnet:width=32"),
        ("whole", "mlp"),
    ]


def test_a_whole_set_that_takes_long_says_what_it_would_cost(tmp_path):
    long = {"protocol.epochs": "5000"}
    (row,) = [r for r in rows(tmp_path, methods=("noise",), override=long) if r.role == "whole"]
    assert row.cells == ()
    assert row.note == "not run (about 7.2e+06 images through the network; --whole runs it)"
    (row,) = [r for r in rows(tmp_path, methods=("noise",), override=long, whole=True) if r.role == "whole"]
    assert len(row.cells) == 1


def test_under_a_learned_step_size_random_images_take_the_methods(tmp_path):
    found = rows(tmp_path, methods=("noise",), override={"protocol.lr": "learned"})
    method, random, whole = found
    assert random.label == "random (step size of noise)"
    assert random.cells == method.cells
    assert method.config.baselines == ("random",)
    assert "learned step size" in whole.note


def test_quick_shortens_what_the_method_says(tmp_path):
    (row, *_) = rows(tmp_path, methods=("matcher:none",), preset="quick", data=("digits",))
    assert row.config.iterations == 20  # the data suggest 200
    assert row.rules.id == "dcf-std@1[epochs=3,steps_min=100]"


def test_nothing_done_is_a_bench_without_values(tmp_path):
    settings = read_settings(None, {"methods": ("noise",), "sets": 1, "nets": 1})
    planned = plan_bench(settings, tmp_path)
    bench = gather(settings, tmp_path, planned, {planned[0].cells[0].key: "it broke\nhere"})
    assert [cell.state for row in bench.rows for cell in row.cells] == ["failed", "missing", "missing"]
    assert bench.failures[0].reason == "it broke"
    assert bench.rows[0].stat is None


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_worker_has_its_share_of_the_cores_unless_told(monkeypatch):
    monkeypatch.setattr("dcf.bench.pool.os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert worker_environment(3)["OMP_NUM_THREADS"] == "2"
    assert worker_environment(30)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(3)["OMP_NUM_THREADS"] == "5"


@pytest.mark.slow
def test_a_worker_that_fails_says_why(tmp_path):
    cell = make_cell(tmp_path, CONFIG.model_copy(update={"data": "folder:path=/nowhere"}), DATA, 0)
    seen = []
    assert Pool(1, Watcher()).run([cell], lambda c, error: seen.append((c, error)), lambda: False)
    assert seen[0][0] == cell
    assert "nowhere" in seen[0][1]


def test_two_benches_do_not_work_in_one_place(tmp_path):
    from dcf.bench.run import _locked

    with _locked(tmp_path), pytest.raises(RunError, match="another bench is running"), _locked(tmp_path):
        pass


def test_a_finished_run_is_found_by_what_was_asked_for(tmp_path):
    """What a run decides by itself and writes down must not change its key."""
    import dcf

    asked = {
        "data": "digits",
        "matcher": "none",
        "iterations": 0,
        "evaluate": False,
        "network": "convnet:width=2,depth=1",
    }
    dcf.condense(out=tmp_path / "run", **asked)
    written = from_toml(tmp_path / "run" / "config.toml")
    assert cell_key(written, "digits", "0") == cell_key(RunConfig(**{**written.model_dump(), **DECIDED}), "digits", "0")
    assert written.replicas == "auto"


#: Settings that a run may fill in.
DECIDED = {"class_chunk": "auto", "replicas": "auto", "device": "auto"}
