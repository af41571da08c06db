"""`dcf experts`, and runs that need experts, as a user meets them: other processes, kills, NaN, wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from dcf.cli.app import build
from dcf.files import read_tensors
from dcf.spec import parse_one
from dcf_mtt.options import Training
from dcf_mtt.store import experts_in, read_facts
from dcf_mtt.workers import Job, expert_set

NETWORK = "convnet:width=4,depth=1"
SMALL = "mtt:syn_steps=2,expert_epochs=1,max_start_epoch=2,experts=2,lr_expert=0.02,batch_expert=64"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "cache"))


def spawn(*words, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dcf", *map(str, words)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, expected=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == expected, err
    return out, err


def dcf(*words, cwd, expected=0):
    return finish(spawn(*words, cwd=cwd), expected)


def make(tmp_path, count=2, epochs=2):
    job = Job(
        "digits", NETWORK, "none", Training(lr=0.02), tmp_path / "cache" / "artifacts", count, epochs, ("cpu",), 1
    )
    made = expert_set(job, "cpu")
    made.make(count, epochs, lambda *_: None, lambda: None)
    return made


def invoke(*words):
    return CliRunner().invoke(build(), [*map(str, words)])


# --- listing and checking --------------------------------------------------------------------------------------------


def test_nothing_is_listed_where_nothing_is():
    for what in ("list", "check"):
        shown = invoke("experts", what)
        assert (shown.exit_code, shown.stdout.partition(";")[0]) == (0, "no experts are kept yet")
    assert json.loads(invoke("experts", "list", "--json").stdout) == {"sets": []}
    assert json.loads(invoke("experts", "check", "--json").stdout) == {"sets": [], "ok": True}


def test_list_says_what_is_kept(tmp_path):
    made = make(tmp_path)
    shown = invoke("experts", "list").stdout
    for word in (made.folder.name[:12], "digits", NETWORK):
        assert word in shown
    (row,) = json.loads(invoke("experts", "list", "--json").stdout)["sets"]
    assert (row["experts"], row["epochs"], row["damaged"]) == (2, [2, 2], 0)
    assert row["bytes"] == sum(path.stat().st_size for path in experts_in(made.folder))
    assert 0 < row["accuracy"] <= 1


def test_check_finds_what_is_wrong_and_exits_with_one(tmp_path):
    made = make(tmp_path)
    good = invoke("experts", "check", made.folder.name[:8])
    assert good.exit_code == 0
    assert "2 experts, ok" in good.stdout
    path = experts_in(made.folder)[1]
    path.write_bytes(path.read_bytes()[:-1])
    bad = invoke("experts", "check")
    assert bad.exit_code == 1
    assert "1 damaged" in bad.stdout
    assert path.name in bad.stdout.replace("\n", "")
    (result,) = json.loads(invoke("experts", "check", "--json").stdout)["sets"]
    assert len(result["problems"]) == 1
    assert json.loads(invoke("experts", "list", "--json").stdout)["sets"][0]["damaged"] == 1


def test_check_advises_to_make_again_what_is_damaged_and_not_to_get_it_again(tmp_path):
    path = experts_in(make(tmp_path).folder)[1]
    content = bytearray(path.read_bytes())
    content[-9] ^= 255
    path.write_bytes(content)
    bad = invoke("experts", "check")
    assert bad.exit_code == 1
    assert "do not match its digest" in bad.stdout
    assert "get the file again" not in bad.stdout
    assert "remove the file; the next run trains this expert again" in bad.stdout


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "zz"], "no experts are kept under 'zz'"),
        (["train", "--experts", "0"], "--experts expects int >= 1"),
        (["train", "--jobs", "many"], "--jobs expects int"),
        (["train", "--data", "digitz"], "did you mean 'digits'"),
        (["train", "--recipe", "dc"], "expected one of the matcher 'mtt'"),
        (["train", "--set", "matcher.lr_exper=1"], "did you mean 'lr_expert'"),
        (["train", "--set", "lr=3"], "--set lr: no expert depends on that"),
        (["train", "--set", "optim.images.lr=3"], "such as matcher.lr_expert"),
        (["train", "--device", "tpu"], "--device tpu"),
    ],
)
def test_wrong_input_is_one_message(words, said, tmp_path):
    _, err = dcf("experts", *words, cwd=tmp_path, expected=2)
    assert said in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["experts", "--help"], ["experts", "train", "--help"], ["experts", "train", "--epochs", "x"], ["describe", "mtt"]],
)
def test_help_and_usage_errors_do_not_wait_for_torch(words, tmp_path):
    code = (
        "import sys; from dcf.cli import main; main(sys.argv[1:]); sys.exit('torch was imported' if 'torch' in "
        "sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# --- training --------------------------------------------------------------------------------------------------------

TRAIN = ["experts", "train", "--data", "digits", "--network", NETWORK, "--augment", "dsa", "--experts", 3]


@pytest.mark.slow
def test_killed_training_keeps_finished_experts_and_goes_on(tmp_path, monkeypatch):
    place = tmp_path / "cache" / "artifacts" / "experts"
    process = spawn(*TRAIN, "--epochs", 40, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list(place.glob("*/0000.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = place.iterdir()
    first = experts_in(folder)
    assert 1 <= len(first) < 3
    before = {path: path.stat().st_mtime_ns for path in first}
    out, _ = dcf(*TRAIN, "--epochs", 40, "--json", cwd=tmp_path)
    (row,) = json.loads(out)["sets"]
    assert (row["experts"], row["epochs"]) == (3, [40, 40])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert invoke("experts", "check").exit_code == 0
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "straight"))
    dcf(*TRAIN, "--epochs", 40, "--jobs", 2, cwd=tmp_path)
    for path in experts_in(folder):
        other = tmp_path / "straight" / "artifacts" / "experts" / folder.name / path.name
        assert torch.equal(*(read_tensors(p)[0]["theta"] for p in (path, other)))


@pytest.mark.slow
def test_interrupted_training_keeps_its_epochs(tmp_path):
    process = spawn(*TRAIN, "--epochs", 5000, "--jobs", 2, cwd=tmp_path)
    place, deadline = tmp_path / "cache" / "artifacts" / "experts", time.monotonic() + 300
    while len(list(place.glob("*/*.lock"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "what was trained is kept" in err
    (folder,) = place.iterdir()
    assert [read_facts(path).epochs >= 1 for path in experts_in(folder)] == [True, True]


@pytest.mark.slow
def test_recipe_finds_the_experts_that_were_trained_for_it(tmp_path):
    small = ["--recipe", "mtt", "--data", "digits", "--network", NETWORK]
    dcf("experts", "train", *small, cwd=tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/experts/*/*.safetensors")}
    assert len(stamps) == 3
    _, err = dcf("condense", *small, "--iterations", 1, "--no-eval", "--out", "run", cwd=tmp_path)
    assert "training experts" not in err
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/experts/*/*.safetensors")} == stamps


# --- runs ------------------------------------------------------------------------------------------------------------


def condense(matcher, *words):
    return [
        *("condense", "--data", "digits", "--matcher", matcher, "--network", NETWORK, "--augment", "dsa"),
        *("--no-eval", "--out", "run", *words),
    ]


@pytest.mark.slow
def test_diverged_run_ends_with_advice_and_no_nan_in_any_file(tmp_path):
    words = condense(SMALL, "--set", "matcher.lr_teacher=1e6", "--lr", "1e6", "--iterations", 40)
    _, err = dcf(*words, cwd=tmp_path, expected=1)
    assert "matcher.lr_teacher" in err
    assert "last good checkpoint" in err
    assert "Traceback" not in err
    files = list((tmp_path / "run").rglob("*.safetensors"))
    assert files
    for path in files:
        tensors, _ = read_tensors(path)
        assert all(bool(t.isfinite().all()) for t in tensors.values()), path
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_run_that_is_killed_while_experts_are_trained_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    words = condense(SMALL + ",train_epochs=60", "--iterations", 6)
    process = spawn(*words, cwd=tmp_path)
    place, deadline = tmp_path / "cache" / "artifacts" / "experts", time.monotonic() + 300
    while not list(place.glob("*/0000.safetensors")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dcf("resume", "run", cwd=tmp_path)
    monkeypatch.setenv("DCF_CACHE", str(tmp_path / "straight"))
    (tmp_path / "other").mkdir()
    dcf(*words, cwd=tmp_path / "other")
    found, wanted = ((tmp_path / place / "synthetic.safetensors").read_bytes() for place in ("run", "other/run"))
    assert found == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtt", "lomtt", "tesla", "datm"])
def test_recipes_run_on_digits(name, tmp_path):
    out, _ = dcf(
        "condense", "--recipe", name, "--data", "digits", "--iterations", 2, "--epochs", 3, "--json", cwd=tmp_path
    )
    result = json.loads(out)
    tensors, metadata = read_tensors(tmp_path / result["synthetic"])
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())
    hints = json.loads(next(v for k, v in metadata.items() if k.endswith("hints")))
    assert 0 < hints["lr"] < 1
    assert parse_one(result["config"]["matcher"]).name == "mtt"
