"""Real processes of torchrun: the same curves as one process, results written once, and lives that end early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dcf

#: Settings by name of the run; each differs in how its processes divide the work.
RUNS = {
    "dc": {"matcher": "dc", "augment": "dsa", "ipc": 2, "iterations": 2},
    "dm": {"matcher": "dm", "augment": "dsa", "ipc": 2, "iterations": 4},
    "dcc": {"matcher": "dcc", "augment": "dsa", "ipc": 2, "iterations": 3},
    "dm-batch-norm": {"matcher": "dm", "iterations": 2, "network": "convnet:width=8,depth=2,norm=batch"},
    "mtt": {"matcher": "mtt:experts=2,train_epochs=2,max_start_epoch=1,expert_epochs=1,syn_steps=3", "iterations": 2},
}

MANY = """
import json, os, sys
import torch.distributed as dist
import dcf
if "RANK" in os.environ:
    dist.init_process_group("gloo")
for name, settings in json.loads(sys.argv[2]).items():
    evaluate = name == "dm"
    more = {"networks": 3, "baselines": ("random",), "protocol_set": {"epochs": 2, "steps_min": 0}} if evaluate else {}
    small = {"data": "digits", "network": "convnet:width=8,depth=2", "evaluate": evaluate, **more}
    overrides = {"replicas": "2"} if name == "mtt" else {}
    dcf.condense(out=f"{sys.argv[1]}/{name}", overrides=overrides, **{**small, **settings})
"""


def environment(tmp_path):
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**clean, "OMP_NUM_THREADS": "1", "DCF_CACHE": str(tmp_path / "cache")}


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *arguments]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same runs in one process and in two."""
    here = tmp_path_factory.mktemp("torchrun")
    script = here / "many.py"
    script.write_text(MANY)
    for name, command in (("one", [sys.executable, str(script)]), ("two", torchrun(str(script)))):
        done = subprocess.run(
            [*command, str(here / name), json.dumps(RUNS)],
            capture_output=True, text=True, timeout=600, env=environment(here),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return here / "one", here / "two"


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_have_the_losses_of_one(name, runs):
    one, two = (rows(folder / name) for folder in runs)
    assert len(one) == len(two) == RUNS[name]["iterations"]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        # What a matcher logs beside is the first process's own, but where it sums over classes.
        shared = set(a) & {"class_wise", "contrastive"}
        assert {k: b[k] for k in shared} == pytest.approx({k: a[k] for k in shared}, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_make_the_images_of_one(name, runs):
    one, two = (dcf.load(folder / name / "synthetic.safetensors").tensors()[0] for folder in runs)
    assert float((one - two).abs().max()) < 1e-4 * float(one.abs().max())


@pytest.mark.slow
def test_evaluation_networks_are_divided_and_all_reported(runs):
    one, two = (json.loads((folder / "dm" / "report.json").read_text()) for folder in runs)
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert [r["seed"] for r in a["runs"]] == [r["seed"] for r in b["runs"]]
        assert [r["value"] for r in b["runs"]] == pytest.approx([r["value"] for r in a["runs"]], abs=0.01)


def workers(parent: int) -> dict[int, int]:
    """Processes of a launcher by rank."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [e.partition(b"=")[2] for e in entries if e.startswith(b"RANK=")]
        if ranks:
            found[int(ranks[0])] = int(child)
    return found


def wait_for(condition, process, seconds=150.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_killed_process_ends_the_run_and_another_number_of_processes_goes_on(tmp_path):
    run = tmp_path / "run"
    settings = ["--matcher", "dm", "--iterations", "60", "--network", "convnet:width=8,depth=2", "--no-eval"]
    settings += ["--set", "checkpoint_every=5"]
    env = environment(tmp_path)
    command = torchrun("-m", "dcf", "condense", *settings, "--out", str(run))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    wait_for((run / "checkpoints" / "00000010.safetensors").exists, process)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out == ""
    assert not (run / "synthetic.safetensors").exists()
    assert len(list((run / "checkpoints").glob("*.safetensors"))) >= 1, err

    again = [sys.executable, "-m", "dcf", "resume", str(run)]
    done = subprocess.run(again, capture_output=True, text=True, timeout=150, env=env)
    assert done.returncode == 0, done.stderr
    whole = [sys.executable, "-m", "dcf", "condense", *settings, "--out", str(tmp_path / "whole")]
    assert subprocess.run(whole, capture_output=True, timeout=150, env=env).returncode == 0
    assert [r["loss"] for r in rows(run)] == pytest.approx([r["loss"] for r in rows(tmp_path / "whole")], rel=1e-5)


@pytest.mark.slow
def test_a_wrong_request_is_explained_once(tmp_path):
    command = torchrun("-m", "dcf", "condense", "--matcher", "dmm")
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environment(tmp_path), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("no matcher named 'dmm'") == 1
