"""Runs of matchers that remember much, killed amid an iteration and resumed, end with the same file, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

EXPERTS = "mtt:experts=1,max_start_epoch=3,expert_epochs=1,syn_steps=3,lr_expert=0.05"
#: What each has to remember: networks, velocities, experts, a moving window, restarts, labels.
RUNS = {
    "idc": "--matcher idc:batch_real=8,inner_loop=2,n_data=64 --param multiformation --augment idc",
    "mtt": f"--matcher {EXPERTS},window=aligned,window_start=1,window_iterations=4,start=experts --labels soft",
    "bptt": "--matcher bptt:steps=4,batch_real=8,learn_lr=one,nets=2 --param memory:bases=6 --augment dsa --clip 2",
    "ld": "--matcher ld:batch_real=32,window=2 --labels soft:init=uniform,learn_images=false",
}
SHARED = (
    "--data digits --network convnet:width=4,depth=2 --iterations 5 --seed 3 --device cpu --no-eval "
    "--set checkpoint_every=1 --out"
)

#: Imports everything once. Each run is then a process of its own, which counts the steps of its optimisers, or kills
#: itself before one of them: after the first checkpoint, amid an iteration, not at the same point in all runs.
DRIVER = """
import json, os, signal, sys
import torch
import dcf.cli, dcf.run
from dcf.optimizer import Optimizer

torch.set_num_threads(1)
plain = Optimizer.step

def in_a_process(arguments, folder, kill_at=0):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    steps = 0
    def counted(self):
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self)
    Optimizer.step = counted
    code = dcf.cli.main(arguments)
    with open("steps", "w") as file:
        file.write(str(steps))
    os._exit(code)

shared, runs, answers = sys.argv[1].split(), json.loads(sys.argv[2]), {}
for number, (name, line) in enumerate(runs.items()):
    arguments = ["condense", *line.split(), *shared, "run"]
    codes = [in_a_process(arguments, name + "/straight")]
    steps = int(open(name + "/straight/steps").read()) if not codes[0] else 0
    codes.append(in_a_process(arguments, name + "/killed", kill_at=steps * (2 + number % 3) // 5 + 1))
    codes.append(in_a_process(["resume", "run"], name + "/killed"))
    answers[name] = codes
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Exit codes of all three processes of each run, and the folder that holds what they wrote."""
    place = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DCF_CACHE": str(place / "cache")}
    command = [sys.executable, "-c", DRIVER, SHARED, json.dumps(RUNS)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), place


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_is_the_same(name, ended):
    codes, place = ended
    straight, killed = place / name / "straight", place / name / "killed"
    assert codes[name] == [0, -9, 0], (straight / "said").read_text() + (killed / "said").read_text()
    kept = sorted(path.name for path in (killed / "run" / "checkpoints").glob("*.safetensors"))
    assert kept[-1].startswith("00000005"), kept
    for file in ("synthetic.safetensors", "metrics.jsonl", "preview.png"):
        assert (killed / "run" / file).read_bytes() == (straight / "run" / file).read_bytes(), file
    assert not list(place.rglob("*.tmp"))


def test_the_killed_were_amid_their_runs(ended):
    codes, place = ended
    for name in codes:
        resumed, whole = (int((place / name / how / "steps").read_text()) for how in ("killed", "straight"))
        assert 0 < resumed < whole, name
