"""`dcf new-plugin`: what it writes is found, passes its own tests, and has nothing to be complained about."""

import ast
import json
import subprocess
import sys
import tomllib

import pytest

from dcf.cli import main
from dcf.scaffold import KINDS

#: Run in a process of its own, in a folder of generated packages: their own tests, with warnings as errors.
OWN_TESTS = """
import importlib, pathlib, sys
import pytest, dcf.testing
from dcf.registry import Candidate

folders = sorted(pathlib.Path(".").glob("dcf-*"))
sys.path[:0] = [str(folder / "src") for folder in folders]
found = [
    Candidate(f.name[4:], f.name, "0.1.0", module=importlib.import_module(f.name.replace("-", "_"))) for f in folders
]
with dcf.testing.registry_with(*found):
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error", "-c", "/dev/null"]
    sys.exit(pytest.main([*options, *map(str, folders)]))
"""


def run(*command, **how):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, timeout=500, **how)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package of each kind."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        assert main(["new-plugin", f"new-{kind}", "--kind", kind, "--out", str(folder / f"dcf-new-{kind}")]) == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_whole_package(packages, kind):
    folder = packages / f"dcf-new-{kind}"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"dcf-new-{kind}"
    assert project["entry-points"]["dcf"] == {f"new-{kind}": f"dcf_new_{kind}"}
    assert project["dependencies"][0] == "dcf-core>=0.1,<0.2"
    source = folder / "src" / f"dcf_new_{kind}"
    assert {p.name for p in source.iterdir()} == {"__init__.py", "options.py", f"{kind}.py", "py.typed"}
    for file in folder.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file
        assert "$" not in file.read_text()
    for file in ("__init__.py", "options.py"):
        assert "import torch" not in (source / file).read_text()
    assert "dcf.testing.parametrize" in (folder / "tests" / f"test_new_{kind}.py").read_text()
    assert "$" not in (folder / "README.md").read_text()


def test_ruff_has_nothing_to_say(packages):
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        for folder in packages.iterdir():
            done = run(sys.executable, "-m", "ruff", *command, ".", cwd=folder)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_has_nothing_to_say(packages):
    sources = [p for folder in packages.iterdir() for p in (*(folder / "src").iterdir(), *folder.rglob("test_*.py"))]
    path = ":".join(str(folder / "src") for folder in packages.iterdir())
    settings = ["--config-file", packages / "dcf-new-param/pyproject.toml", "--cache-dir", packages.parent / "mypy"]
    done = run(
        sys.executable, "-m", "mypy", *settings, *sources, env={"MYPYPATH": path, "PATH": ""}, cwd=packages.parent
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_they_pass_their_own_tests(packages):
    done = run(sys.executable, "-c", OWN_TESTS, cwd=packages)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_written_over_unless_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["new-plugin", "dcf-own-idea", "--kind", "parameterization"]
    assert main([*argv, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["folder"]) == ("own-idea", "dcf-own-idea")
    mine = tmp_path / "dcf-own-idea/src/dcf_own_idea/param.py"
    mine.write_text("# hours of work\n")
    assert main(argv) == 2
    assert "--force" in capsys.readouterr().err
    assert mine.read_text() == "# hours of work\n"
    assert main([*argv, "--force"]) == 0
    assert "class OwnIdea(dcf.Parameterization)" in mine.read_text()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["Cosine", "--kind", "param"], "cannot be called 'Cosine'"),
        (["../up", "--kind", "param"], "cannot be called '../up'"),
        (["x" * 41, "--kind", "param"], "at most 40"),
        (["cosine", "--kind", "parm"], "no such kind\n  expected one of matcher, param"),
        (["cosine", "--kind", "recipe"], "a recipe is a TOML file"),
        (["pixels", "--kind", "param"], "there is a parameterization 'pixels' already, from dcf-core"),
        (["cosine"], "missing option '--kind'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:30],
)
def test_wrong_requests_write_nothing(tmp_path, monkeypatch, capsys, argv, says):
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", *argv]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
