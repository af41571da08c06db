"""From the command line: recipes run, go on after they were killed, and wrong requests are explained."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import dcf
from dcf.cli import main

RECIPES = ["idc-i", "idc", "loidc-i", "loidc"]
NETWORK = ["--network", "convnet:width=4,depth=1", "--nets", "1", "--baselines", "none"]
SHORT = ["--set", "protocol.epochs=2", "--set", "matcher.inner_loop=2", "--set", "matcher.n_data=64"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs_on_digits(recipe, tmp_path, capsys):
    command = ["condense", "--recipe", recipe, "--data", "digits", *NETWORK, *SHORT, "--iterations", "2"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    made = dcf.load(tmp_path / "run" / "synthetic.safetensors")
    assert made.storage().floats == 640  # one plain image a class, or canvases in as many floats
    assert len(made) == 10 * {"idc-i": 1, "idc": 4, "loidc-i": 2, "loidc": 8}[recipe]
    assert set(made.stored_tensors()) == ({"inner.A", "inner.B"} if recipe.startswith("lo") else {"canvases"})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["idc", "loidc"])
def test_killed_run_goes_on_to_the_same_bytes(recipe, tmp_path):
    command = [
        *(sys.executable, "-m", "dcf", "condense", "--recipe", recipe, "--data", "digits", *NETWORK, *SHORT),
        *("--iterations", "4", "--set", "checkpoint_every=1", "--no-eval", "--seed", "3"),
    ]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "--out", "whole"], check=True, timeout=300, **quiet)
    process = subprocess.Popen([*command, "--out", "cut"], **quiet, env=os.environ)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "cut" / "checkpoints").glob("*2.safetensors")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    subprocess.run([sys.executable, "-m", "dcf", "resume", "cut"], check=True, timeout=300, **quiet)
    for name in ("synthetic.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--param", "multiformation:factor=0"], "factor"),
        (["--param", "multiformation:axes=[time]"], "axes"),
        (["--param", "multiformation:bound=9"], "'bound' has no effect with decode=single"),
        (["--param", "lowrank:r=2+multiformation:clamp=update"], "expected clamp=decode or clamp=none"),
        (["--matcher", "idc:metric=l3"], "metric"),
        (["--matcher", "idc:train_augment=idd"], "idd"),
        (["--augment", "idc:ops=[shear]"], "ops"),
        (["--augment", "idc+cutmix"], "--augment idc+cutmix mixes labels"),
        (["--network", "mlp"], "no convolution whose gradient could be compared"),
    ],
)
def test_wrong_requests_are_explained(options, message, tmp_path, capsys):
    matcher = [] if options[0] == "--matcher" else ["--matcher", "idc"]
    run = ["--data", "digits", "--iterations", "1", "--no-eval", "--out", str(tmp_path / "run")]
    code = main(["condense", *run, *matcher, *options])
    shown = capsys.readouterr().err
    assert code == 2, shown
    assert message in shown
    assert "Traceback" not in shown
