"""From the command line: recipes run and resume, a run that diverges ends with advice, wrong requests are explained."""

from __future__ import annotations

import pytest
import torch

import dcf
from dcf.cli import main
from dcf.files import read_tensors

QUICK = ["--data", "digits", "--network", "convnet:width=4,depth=1", "--nets", "1", "--baselines", "random"]
SHORT = ["--set", "protocol.epochs=1", "--set", "protocol.steps_min=0"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dd", "rtp", "lortp"])
def test_recipe_runs_on_digits(recipe, tmp_path, capsys):
    if recipe != "dd":
        pytest.importorskip("dcf_memory")
    command = ["condense", "--recipe", recipe, *QUICK, *SHORT, "--iterations", "2", "--out", str(tmp_path / "run")]
    assert main(command) == 0, capsys.readouterr().err
    made = dcf.load(tmp_path / "run" / "synthetic.safetensors")
    assert made.hints.ordered == (recipe == "dd")
    assert made.storage().floats <= 640


@pytest.mark.slow
@pytest.mark.parametrize("matcher", ["dd:batch_real=16,epochs=2", "bptt:steps=3,batch=1,batch_real=4,learn_lr=one"])
def test_stopped_and_resumed_is_as_uninterrupted(matcher, tmp_path, capsys):
    common = [
        "condense",
        *QUICK,
        "--matcher",
        matcher,
        "--augment",
        "dsa",
        "--ipc",
        "2",
        "--iterations",
        "4",
        "--no-eval",
    ]
    assert main([*common, "--set", "checkpoint_every=1", "--out", str(tmp_path / "whole")]) == 0
    assert main([*common, "--set", "checkpoint_every=1", "--out", str(tmp_path / "cut")]) == 0
    cut = tmp_path / "cut"
    for name in ("synthetic.safetensors", "report.json", "preview.png"):
        (cut / name).unlink()
    newest = sorted((cut / "checkpoints").glob("*.safetensors"))
    newest[-1].unlink()
    assert main(["resume", str(cut)]) == 0, capsys.readouterr().err
    for name in ("synthetic.safetensors", "metrics.jsonl"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_training_that_explodes_ends_with_advice_and_without_nan(tmp_path, capsys):
    matcher = "bptt:steps=30,lr=1e30,batch_real=4"
    out = tmp_path / "run"
    assert main(["condense", *QUICK, "--matcher", matcher, "--iterations", "20", "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "5 iterations in a row" in message
    assert "step size of the training (lr of the matcher)" in message
    assert "Traceback" not in message
    assert not (out / "synthetic.safetensors").exists()
    for path in out.rglob("*.safetensors"):
        tensors, _ = read_tensors(path)
        assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


@pytest.mark.parametrize(
    ("matcher", "says"),
    [
        ("dd:batch=2", "does not divide the set's 1 a class"),
        ("bptt:learn_lr=each", "needs order=fixed"),
        ("bptt:steps=0", "option 'steps' expects 'auto' or an int >= 1, got '0'"),
    ],
)
def test_wrong_requests_are_explained(matcher, says, tmp_path, capsys):
    assert main(["condense", *QUICK, "--matcher", matcher, "--iterations", "1", "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
