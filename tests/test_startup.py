"""What a start costs: no torch for help, listings, files' headers and modules that are imported on every start."""

import json
import os
import pkgutil
import struct
import subprocess
import sys

import pytest

import dcf.cli

REPORT = """
import json, sys
from dcf.cli import main
code = main(sys.argv[1:])
heavy = [m for m in ("torch", "torchvision", "numpy", "PIL", "safetensors") if m in sys.modules]
print("\\n" + json.dumps([code, heavy]))
"""


def run(*command, **extra):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DCF_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environ | extra, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--help"], "condense"),
        (["--version"], "dcf "),
        (["condense", "--help"], "--matcher"),
        (["evaluate", "--help"], "--protocol"),
        (["list-plugins"], "digits"),
        (["list-plugins", "--json"], '"components"'),
        (["recipes"], "dm"),
        (["recipes", "dm"], "published"),
        (["describe", "dcf-std@1"], "epochs"),
        (["data", "--help"], "check"),
    ],
    ids=" ".join,
)
def test_command_answers_without_torch(argv, shown):
    done = run("-c", REPORT, *argv)
    assert shown in done.stdout, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert done.stderr == ""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], []], ids=" ".join)
def test_a_list_of_commands_imports_none_of_them(argv):
    """What options are made of takes as long to import as everything else that help needs."""
    code = REPORT.replace("heavy = [", 'heavy = [m for m in sys.modules if m.startswith("dcf.cli.")] + [')
    done = run("-c", code.replace('"torch", ', '"torch", "pydantic", '), *argv)
    ours = {"dcf.cli.entry", "dcf.cli.app", "dcf.cli.console", "dcf.cli.later"}
    assert set(json.loads(done.stdout.splitlines()[-1])[1]) == ours, done.stderr


def test_info_reads_a_header_without_torch(tmp_path):
    file = tmp_path / "set.safetensors"
    header = json.dumps({"__metadata__": {"dcf.format": "1", "dcf.config": '{"param": "unheard-of:r=4"}'}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    done = run("-c", REPORT, "info", str(file))
    assert "unheard-of:r=4" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_modules_of_every_start_are_free_of_torch():
    names = [f"dcf.cli.{m.name}" for m in pkgutil.iter_modules(dcf.cli.__path__)]
    names += [
        "dcf",
        "dcf.registry",
        "dcf.resolve",
        "dcf.metadata",
        "dcf.recipes",
        "dcf.rundir",
        "dcf.evaluation.protocol",
        "dcf.report",
    ]
    code = "import importlib, sys; [importlib.import_module(n) for n in sys.argv[1:]]; print('torch' in sys.modules)"
    done = run("-c", code, *names)
    assert done.stdout.strip() == "False", done.stderr


def test_module_and_script_are_one_program():
    done = run("-m", "dcf", "--version")
    assert done.stdout == f"dcf {dcf.__version__}\n"
    assert done.returncode == 0
    assert run("-m", "dcf", "condens").returncode == 2


def test_a_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "dcf", "list-plugins"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


def test_debug_shows_the_traceback_and_the_message():
    done = run("-m", "dcf", "info", "absent", DCF_DEBUG="1")
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: no file 'absent'"
    assert run("-m", "dcf", "--debug", "info", "absent").stderr == run("-m", "dcf", "info", "absent", "--debug").stderr
