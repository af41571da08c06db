"""Run directories: who may write there, what a killed run leaves, and how it is read again."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from dcf.errors import RunError
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir, default_directory

CONFIG = RunConfig(data="digits", ipc=1)


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    made.create(CONFIG)
    return made


def save(run, *iterations):
    for it in iterations:
        run.save_checkpoint(it, {"x": torch.full((3,), float(it))}, {"data": "checksum"})


def checkpoints(run):
    return sorted(p.name for p in run.checkpoints.iterdir())


# --- life ----------------------------------------------------------------------------------------


def test_a_new_run_holds_its_configuration(run):
    assert run.config() == CONFIG
    assert run.newest_checkpoint() is None


def test_an_unfinished_run_is_not_overwritten_and_can_be_resumed(run):
    save(run, 1)
    with pytest.raises(RunError, match=f"an unfinished run; continue it with: dcf resume {run.path}"):
        run.create(RunConfig(ipc=2))
    assert run.config() == CONFIG
    assert run.newest_checkpoint()[0] == 1


def test_a_finished_run_is_not_overwritten(run):
    run.report.write_text("{}")
    with pytest.raises(RunError, match=r"a finished run .*--out DIR.*--force"):
        run.create(CONFIG)


def test_force_starts_over_and_leaves_what_is_not_the_runs(run):
    save(run, 1, 2)
    run.append_metrics([{"it": 1}])
    for file in (run.result, run.preview, run.report, run.path / "notes.txt"):
        file.write_text("old")
    other = RunConfig(ipc=2)
    run.create(other, force=True)
    assert run.config() == other
    assert run.newest_checkpoint() is None
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.toml", "notes.txt"]


def finished(run):
    """A run with everything that one leaves, and its files."""
    save(run, 1, 2)
    run.append_metrics([{"it": 1}])
    for file in (run.result, run.preview, run.report):
        file.write_text("old")
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_nothing_is_lost_when_the_new_configuration_cannot_be_written(run, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = finished(run)
    monkeypatch.setattr("dcf.files.os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        run.create(RunConfig(ipc=2), force=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_new_configuration_never_stands_beside_old_checkpoints(run, monkeypatch):
    finished(run)
    remove = RunDir._remove

    def stuck(self, path):
        if path.parent == run.checkpoints:
            raise RunError(f"cannot remove '{path}'")
        remove(self, path)

    monkeypatch.setattr(RunDir, "_remove", stuck)
    with pytest.raises(RunError, match="cannot remove"):
        run.create(RunConfig(ipc=2), force=True)
    assert run.config() == CONFIG
    assert run.newest_checkpoint()[0] == 2
    assert not list(run.path.glob(".*.tmp"))


def test_a_directory_of_something_else_is_no_run(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        RunDir(tmp_path).config()
    with pytest.raises(RunError, match="not a run directory"):
        RunDir(tmp_path / "none").config()


def test_a_place_that_cannot_be_a_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for run in (RunDir(tmp_path / "file"), RunDir(tmp_path / "file" / "run")):
        with pytest.raises(RunError):
            run.create(CONFIG)
        with pytest.raises(RunError), run.locked():
            pass
    assert (tmp_path / "file").read_text() == "mine"


# --- one process at a time -----------------------------------------------------------------------

HOLDER = """
import sys
from dcf.rundir import RunDir
with RunDir(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_second_process_is_refused_until_the_first_has_ended(run, end):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="another process is working"), run.locked():
            pass
        holder.stdin.close() if end == "close" else holder.kill()
        holder.wait()
        with run.locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def test_the_lock_is_given_back_after_an_error(run):
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    with run.locked(), pytest.raises(RunError), run.locked():
        pass


def test_half_written_files_of_a_killed_process_are_removed(run):
    save(run, 1)
    (run.path / ".config.toml.abc.tmp").write_text("half")
    (run.checkpoints / ".00000002.safetensors.abc.tmp").write_text("half")
    with run.locked():
        assert checkpoints(run) == ["00000001.safetensors"]
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "checkpoints", "config.toml"]


# --- checkpoints ---------------------------------------------------------------------------------


def test_the_newest_two_checkpoints_are_kept(run):
    save(run, 0, 5, 10, 20)
    assert checkpoints(run) == ["00000010.safetensors", "00000020.safetensors"]
    it, state, facts = run.newest_checkpoint()
    assert (it, state["x"].tolist(), facts["data"]) == (20, [20.0] * 3, "checksum")


def test_numbers_are_compared_not_names(run):
    save(run, 99_999_999, 100_000_000, 100_000_001)
    assert run.newest_checkpoint()[0] == 100_000_001
    assert "99999999.safetensors" not in checkpoints(run)


DAMAGE = {
    "empty": lambda raw: b"",
    "cut off": lambda raw: raw[:-1],
    "header cut off": lambda raw: raw[:20],
    "bit": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "another file": lambda raw: b"text that is no checkpoint at all",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run, damage, caplog):
    save(run, 5, 10)
    newest = run.checkpoints / "00000010.safetensors"
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert run.newest_checkpoint()[0] == 5
    assert "00000010.safetensors" in caplog.text


@pytest.mark.parametrize("facts", ["[]", "{}", "5", "{", '{"it": "x"}', '{"it": null}', "[" * 100_000])
def test_a_checkpoint_that_does_not_say_what_it_is_gives_way_too(run, facts):
    from dcf.files import write_tensors

    save(run, 5)
    write_tensors(run.checkpoints / "00000010.safetensors", {"x": torch.zeros(1)}, {"dcf.checkpoint": facts})
    write_tensors(run.checkpoints / "00000011.safetensors", {"x": torch.zeros(1)}, {})
    assert run.newest_checkpoint()[0] == 5


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error(run):
    save(run, 5, 10)
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint .* can be read"):
        run.newest_checkpoint()


def test_other_files_among_the_checkpoints_are_not_touched(run):
    (run.checkpoints / "best.safetensors").write_text("mine")
    save(run, 1, 2, 3)
    assert run.newest_checkpoint()[0] == 3
    assert (run.checkpoints / "best.safetensors").read_text() == "mine"


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(run, monkeypatch):
    save(run, 1, 2)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left .*\n  mend that.*: dcf resume .*") as stopped:
        save(run, 3)
    assert str(stopped.value).endswith(str(run.path))
    assert checkpoints(run) == ["00000001.safetensors", "00000002.safetensors"]


# --- metrics -------------------------------------------------------------------------------------


def rows(run):
    return [json.loads(line)["it"] for line in run.metrics_file.read_text().splitlines()]


def test_metrics_are_added_line_by_line(run):
    run.append_metrics([{"it": 1, "loss": 0.5}, {"it": 2, "loss": float("nan")}])
    run.append_metrics([])
    run.append_metrics([{"it": 3}])
    assert rows(run) == [1, 2, 3]


def test_metrics_after_the_checkpoint_are_forgotten(run):
    run.truncate_metrics(5)
    assert not run.metrics_file.exists()
    run.append_metrics([{"it": it} for it in range(1, 9)])
    run.truncate_metrics(5)
    assert rows(run) == [1, 2, 3, 4, 5]
    run.append_metrics([{"it": 6}])
    assert rows(run) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "end",
    [b'{"it": 3, "lo', b"{", b"\n", b"3\n", b"[]\n", b'{"loss": 1}\n', b'{"it": "x"}\n', b"\xff\xfe\xc3", b"\0" * 4096],
)
def test_a_line_that_was_cut_off_is_dropped(run, end):
    run.append_metrics([{"it": 1}, {"it": 2}])
    with run.metrics_file.open("ab") as file:
        file.write(end)
    run.truncate_metrics(9)
    assert rows(run) == [1, 2]
    run.append_metrics([{"it": 3}])
    assert rows(run) == [1, 2, 3]


def test_metrics_that_cannot_be_written_are_an_error(run):
    run.metrics_file.symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left"):
        run.append_metrics([{"it": 1}])
    run.metrics_file.unlink()
    run.metrics_file.mkdir()
    with pytest.raises(RunError, match="cannot write"):
        run.append_metrics([{"it": 1}])
    with pytest.raises(RunError, match="cannot read"):
        run.truncate_metrics(1)


# --- the directory of a run that names none ------------------------------------------------------


def test_the_default_directory_says_what_is_run(tmp_path):
    config = RunConfig(
        data="folder:path=/a/b", matcher="dc:metric=mse", param="lowrank:r=4+up:f=2", augment="dsa", ipc=10
    )
    assert default_directory(config).as_posix() == "runs/folder-dc_metric_mse-lowrank_r_4+up_f_2-dsa-ipc10-1"
    assert default_directory(RunConfig(budget="bytes=100"), tmp_path) == tmp_path / "digits-1"


def test_the_default_directory_takes_the_first_free_number(tmp_path):
    for number in (1, 2, 3):
        made = default_directory(CONFIG, tmp_path)
        assert made.name == f"digits-ipc1-{number}"
        made.mkdir()
    (tmp_path / "digits-ipc1-2").rmdir()
    assert default_directory(CONFIG, tmp_path).name == "digits-ipc1-2"


def test_the_default_directory_is_a_plain_name_whatever_the_specs(tmp_path):
    hostile = RunConfig(matcher='m:path="../../é x/$(rm)"', param="p:a=" + "9" * 300)
    made = default_directory(hostile, tmp_path)
    assert made.parent == tmp_path
    assert made.name.isascii()
    assert len(made.name) < 100
    RunDir(made).create(hostile)
    assert RunDir(made).config() == hostile
