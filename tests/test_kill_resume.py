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
    "60",
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
# Two threads, which do not spin while they wait: on a busy machine spinning would take most of the time.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


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
    """The uninterrupted run."""
    place = tmp_path_factory.mktemp("straight")
    finish(spawn("condense", *RUN, "--out", "run", cwd=place))
    return place / "run"


def assert_same_run(directory, reference):
    assert (directory / "synthetic.safetensors").read_bytes() == (reference / "synthetic.safetensors").read_bytes()
    assert (directory / "preview.png").read_bytes() == (reference / "preview.png").read_bytes()
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert rows == expected
    assert [row["it"] for row in rows] == list(range(1, 61))


def checkpoints(directory):
    return sorted(p.name for p in (directory / "checkpoints").glob("*.safetensors"))


def done(directory):
    """Iterations of the newest checkpoint; -1 before the first."""
    names = checkpoints(directory)
    return int(names[-1].partition(".")[0]) if names else -1


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def test_ten_kills_leave_the_same_bytes(straight, tmp_path):
    draw = random.Random(11)
    run = tmp_path / "run"
    # Before anything is written, while condensing, and during the evaluation.
    moments = [None, *sorted(draw.randrange(60) for _ in range(8)), "evaluation"]
    for moment in moments:
        started = (run / "config.toml").exists()
        process = spawn(*(["resume", "run"] if started else ["condense", *RUN, "--out", "run"]), cwd=tmp_path)
        if moment == "evaluation":
            wait_for((run / "synthetic.safetensors").exists, process)
        elif moment is not None:
            wait_for(lambda moment=moment: done(run) >= moment, process)
        time.sleep(draw.uniform(0.0, 0.25))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(spawn("resume", "run", cwd=tmp_path))
    assert_same_run(run, straight)
    assert not list(run.rglob("*.tmp"))


def test_interrupt_stops_between_iterations_and_resumes(straight, tmp_path):
    process = spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
    wait_for(lambda: done(tmp_path / "run") >= 6, process)
    process.send_signal(signal.SIGINT)
    text = finish(process, expected=130)
    assert "dcf resume" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run" / "report.json").exists()
    finish(spawn("resume", "run", cwd=tmp_path))
    assert_same_run(tmp_path / "run", straight)


def test_second_process_is_kept_out_of_a_live_run(tmp_path):
    process = spawn("condense", *RUN, "--out", "run", cwd=tmp_path)
    wait_for(lambda: done(tmp_path / "run") >= 0, process)
    text = finish(spawn("resume", "run", cwd=tmp_path), expected=1)
    assert "another process is working on 'run'" in text
    process.kill()
    process.communicate()
