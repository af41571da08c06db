"""`dcf bench` from end to end: killed and started again, changed, swept, failing, checked, and recipes run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dcf.bench.model import read_bench
from dcf.bench.verify import allowed, given_data, trials, verify
from dcf.recipes import Recipe
from dcf.rundir import RunDir

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
BENCH = """
data = "digits"
ipc = [1]
sets = 2
nets = 2
jobs = 2
[set]
protocol.epochs = 2
protocol.steps_min = 0
network = "convnet:width=8,depth=2"

[[method]]
name = "gradients"
spec = "matcher:dc:batch_real=16,net_epochs=1,match_steps=3+dsa"
iterations = 60
checkpoint_every = 3
"""


def spawn(*arguments, cwd):
    command = [sys.executable, "-m", "dcf", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def dcf(*arguments, cwd, expected=0):
    process = spawn(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=900)
    assert process.returncode == expected, out + err
    return out + err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "bench.toml").write_text(BENCH)
    dcf("bench", "bench.toml", "--out", "straight", cwd=folder)
    return folder


def facts(path):
    """Everything of a bench that does not depend on the clock or its place."""
    found = read_bench(path).to_json(timing=False)
    return {key: value for key, value in found.items() if key not in ("name", "settings")}


def reports(path):
    return {file.parent.name: file.stat().st_mtime_ns for file in (path / "cells").glob("*/report.json")}


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


def begun(path):
    """Whether some cell has done a part of its iterations, but not all."""
    return any(
        0 < int(file.stem) < 60 for file in (path / "cells").glob("*-dc_*/checkpoints/*.safetensors") if file.exists()
    )


def nobody_works_in(path):
    """Whether no process holds the lock of any cell."""
    import fcntl

    for lock in (path / "cells").glob("*/.lock"):
        handle = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
    return True


def test_baselines_are_always_there(place):
    bench = read_bench(place / "straight")
    rows = [(row.label, row.role, row.augment, row.stat.n_sets, row.stat.n_nets) for row in bench.rows]
    assert rows == [
        ("gradients", "method", "dsa", 2, 2),
        ("random", "random", "dsa", 2, 2),
        ("whole", "whole", "dsa", 1, 2),
    ]
    method, random, _ = bench.rows
    assert method.bytes == random.bytes == 2560
    assert method.net_seeds == random.net_seeds
    assert {cell.state for row in bench.rows for cell in row.cells} == {"done"}
    assert set(bench.timing.cells) == {cell.directory.partition("/")[2] for row in bench.rows for cell in row.cells}
    shown = dcf("bench", "table", "straight", cwd=place)
    assert "gradients" in shown
    assert "dcf-std@1[epochs=2,steps_min=0]" in shown


def test_a_killed_bench_goes_on_and_ends_the_same(place):
    process = spawn("bench", "bench.toml", "--out", "killed", cwd=place)
    wait_for(lambda: begun(place / "killed"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while not nobody_works_in(place / "killed"):
        assert time.monotonic() < deadline, "a worker outlived its bench"
        time.sleep(0.05)
    told = dcf("bench", "bench.toml", "--out", "killed", cwd=place)
    assert "5 of 5 done" in told
    assert facts(place / "killed") == facts(place / "straight")


def test_an_interrupted_bench_keeps_checkpoints_and_goes_on(place):
    process = spawn("bench", "bench.toml", "--out", "stopped", cwd=place)
    wait_for(lambda: begun(place / "stopped"), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert nobody_works_in(place / "stopped")
    states = {cell.state for row in read_bench(place / "stopped").rows for cell in row.cells}
    assert "missing" in states
    dcf("bench", "bench.toml", "--out", "stopped", cwd=place)
    assert facts(place / "stopped") == facts(place / "straight")


def test_nothing_runs_again_unless_it_changed(place):
    before = reports(place / "straight")
    assert "5 cells, 5 of them done already" in dcf("bench", "bench.toml", "--out", "straight", cwd=place)
    assert reports(place / "straight") == before
    # Another name for the method, and another method beside it.
    text = BENCH.replace('"gradients"', '"other name"') + '\n[[method]]\nname = "noise"\nspec = "noise+dsa"\n'
    (place / "more.toml").write_text(text)
    told = dcf("bench", "more.toml", "--out", "straight", "--jobs", "1", cwd=place)
    assert "7 cells, 5 of them done already" in told
    assert {name: reports(place / "straight")[name] for name in before} == before
    labels = [row.label for row in read_bench(place / "straight").rows]
    assert labels == ["other name", "noise", "random", "whole"]
    dcf("bench", "bench.toml", "--out", "straight", cwd=place)


def test_only_some_cells(place):
    told = dcf("bench", "bench.toml", "--out", "some", "--only", "random-dsa-ipc1-s0", cwd=place)
    assert "1 cells, 0 of them done" in told
    states = {row.label: [cell.state for cell in row.cells] for row in read_bench(place / "some").rows}
    assert states["random"] == ["done", "missing"]
    assert dcf("bench", "bench.toml", "--out", "some", "--only", "nope", cwd=place, expected=2)


def test_a_sweep_is_drawn(place):
    pytest.importorskip("matplotlib")
    settings = ["--set", "protocol.epochs=1", "--set", "protocol.steps_min=0", "--set", "network=convnet:width=4"]
    command = ["bench", "--methods", "dm,noise", "--sweep", "lr=0.1,1", "--set", "iterations=2", *settings]
    out = dcf(*command, "--sets", "1", "--nets", "1", "--jobs", "2", "--out", "swept", cwd=place)
    bench = read_bench(place / "swept")
    assert [dict(row.sweep) for row in bench.rows if row.label == "dm"] == [{"lr": "0.1"}, {"lr": "1"}]
    assert "sweep.svg" in out
    assert (place / "swept" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_that_fails_does_not_stop_the_others(place):
    settings = ["--set", "protocol.epochs=1", "--set", "protocol.steps_min=0", "--set", "network=convnet:width=4"]
    (place / "broken.toml").write_text(
        '[[method]]\nname = "explodes"\nspec = "matcher:dm"\nlr = 1e30\niterations = 4\n[[method]]\nspec = "noise"\n'
    )
    command = ["bench", "broken.toml", *settings, "--sets", "1", "--nets", "1", "--out", "broken"]
    told = dcf(*command, cwd=place, expected=1)
    bench = read_bench(place / "broken")
    states = {row.label: row.cells[0].state for row in bench.rows}
    assert states == {"explodes": "failed", "noise": "done", "random": "done", "whole": "done"}
    (failure,) = bench.failures
    assert failure.label == "explodes"
    assert failure.reason in told
    (file,) = (place / "broken" / "failures").iterdir()
    assert failure.reason in file.read_text()


def test_check_finds_what_was_changed(place):
    assert "the same values" in dcf("bench", "check", "straight", "--rerun", "2", cwd=place)
    bench = read_bench(place / "straight")
    cell = place / "straight" / bench.rows[0].cells[0].directory
    result, report = RunDir(cell).result, RunDir(cell).report
    before = result.read_bytes(), report.read_text()
    try:
        result.write_bytes(before[0][:-1] + bytes([before[0][-1] ^ 1]))
        told = json.loads(dcf("bench", "check", "straight", "--rerun", "0", "--json", cwd=place, expected=1))
        assert [f["what"] for f in told["findings"] if not f["good"]] == ["file"]
        result.write_bytes(before[0])
        changed = json.loads(before[1])
        changed["rows"][0]["runs"][0]["value"] = 0.99
        report.write_text(json.dumps(changed))
        assert "are not those of the bench" in dcf("bench", "check", "straight", "--rerun", "0", cwd=place, expected=1)
    finally:
        result.write_bytes(before[0])
        report.write_text(before[1])


# --- recipes run again -----------------------------------------------------------------------------------------------


def recipe(accuracy):
    value = {
        "data": "digits", "ipc": 1, "accuracy": accuracy, "std": 0.5, "n": "1 x 2", "iterations": 3,
        "protocol": "dcf-std@1[epochs=2,steps_min=0]",
        "settings": {"network": "convnet:width=8", "matcher.batch_real": 16},
    }  # fmt: skip
    far = {"data": "mnist", "ipc": 1, "accuracy": 50.0, "n": "1 x 1"}
    return Recipe.model_validate({"recipe": {"name": "dm-quick"}, "measured": [value, far]})


def test_a_recipe_is_run_again_as_it_was_recorded(tmp_path):
    todo = trials(recipe(10.0), {"digits": "digits"}, ipc=1)
    (verdict,) = verify(todo, tmp_path)
    assert verdict.row.iterations == 3
    assert verdict.row.specs["matcher"] == "dm:batch_real=16"
    assert verdict.row.network == "convnet:width=8"
    assert (verdict.row.stat.n_sets, verdict.row.stat.n_nets) == (1, 2)
    now, spread = verdict.now
    # Its own value, to the digit, agrees; one that is further away than is allowed does not.
    (same,) = verify(trials(recipe(round(now, 1)), {"digits": "digits"}), tmp_path)
    assert same.agrees
    (other,) = verify(trials(recipe(min(100.0, now + allowed(0.5, spread) + 0.1)), {"digits": "digits"}), tmp_path)
    assert other.agrees is False


def test_a_dataset_that_is_not_here_is_left_out(tmp_path):
    todo = trials(recipe(10.0), given_data([f"mnist=mnist:root={tmp_path}"]))
    (verdict,) = verify(todo, tmp_path)
    assert verdict.row is None
    assert verdict.agrees is None
    assert verdict.note.startswith("not here")
