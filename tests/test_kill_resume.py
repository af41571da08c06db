"""A run that is killed or interrupted and resumed ends with the same file, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

#: Trains networks between matching steps and draws augmentations, so that every random stream takes part.
RUN = [
    "--data",
    "digits",
    "--matcher",
    "dc:batch_real=16,net_epochs=1,match_steps=3",
    "--augment",
    "dsa",
    "--ipc",
    "2",
    "--iterations",
    "120",
    "--network",
    "convnet:width=8,depth=2",
    "--seed",
    "3",
    "--nets",
    "1",
    "--epochs",
    "3",
    "--baselines",
    "random",
    "--set",
    "protocol.steps_min=0",
    "--set",
    "checkpoint_every=3",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2"}


def spawn(*arguments, cwd):
    command = [sys.executable, "-m", "dcf", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, expected=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == expected, err
    return out + err


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The uninterrupted run, and how long it took."""
    place = tmp_path_factory.mktemp("straight")
    start = time.monotonic()
    finish(spawn("condense", *RUN, "--out", "run", cwd=place))
    return place / "run", time.monotonic() - start


def assert_same_run(directory, reference):
    assert (directory / "synthetic.safetensors").read_bytes() == (reference / "synthetic.safetensors").read_bytes()
    assert (directory / "preview.png").read_bytes() == (reference / "preview.png").read_bytes()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert rows == expected
    assert [row["it"] for row in rows] == list(range(1, 121))


def checkpoints(directory):
    return sorted(p.name for p in (directory / "checkpoints").glob("*.safetensors"))


def test_ten_kills_leave_the_same_bytes(straight, tmp_path):
    reference, seconds = straight
    moments = random.Random(11)
    run = tmp_path / "run"
    process = spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
    kills = 0
    while kills < 10:
        # From before the first checkpoint to the middle of the evaluation.
        try:
            process.wait(timeout=moments.uniform(0.35, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        else:
            # It ended before its moment came: begin again, so that there is something left to kill.
            finish(process)
            finish(spawn("condense", *RUN, "--out", "run", "--force", "--iterations", "1", "--no-eval", cwd=tmp_path))
            process = spawn("condense", *RUN, "--out", "run", "--force", cwd=tmp_path)
            continue
        started = (run / "config.toml").exists()
        process = (
            spawn("resume", "run", cwd=tmp_path) if started else spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
        )
    finish(process)
    assert_same_run(run, reference)
    assert not list(run.rglob("*.tmp"))


def test_interrupt_stops_between_iterations_and_resumes(straight, tmp_path):
    reference, _ = straight
    process = spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while len(checkpoints(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = finish(process, expected=130)
    assert "dcf resume" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "report.json").exists()
    finish(spawn("resume", "run", cwd=tmp_path))
    assert_same_run(tmp_path / "run", reference)


def test_second_process_is_kept_out_of_a_live_run(straight, tmp_path):
    process = spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.02)
    text = finish(spawn("resume", "run", cwd=tmp_path), expected=1)
    assert "another process is working on 'run'" in text
    process.kill()
    process.communicate()
