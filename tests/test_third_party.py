"""Plugins of other people: one that is installed, used and taken away, and several that are broken."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = ("--nets", "1", "--epochs", "2", "--baselines", "none", "--device", "cpu")


def run(*command, cwd=None, **environ):
    """Run a command without the variables that choose plugins, and with little noise."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("DCF_", "PYTHONPATH", "VIRTUAL_ENV"))}
    settings = {**clean, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", **environ}
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, env=settings, capture_output=True, text=True, check=False, timeout=600
    )


def must(*command, **how):
    done = run(*command, **how)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done


# --- a clean environment with wheels -------------------------------------------------------------------------


def build_wheel(source, folder):
    before = set(folder.glob("*.whl"))
    if shutil.which("uv"):
        must("uv", "build", "--wheel", "--out-dir", folder, source)
    else:
        must(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (wheel,) = set(folder.glob("*.whl")) - before
    return wheel


def pip(python, *arguments):
    if shutil.which("uv"):
        command, *rest = arguments
        return must("uv", "pip", command, "--python", python, *[a for a in rest if a != "--yes"])
    return must(python, "-m", "pip", *arguments)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Python of a fresh environment that holds core, one first-party plugin and the example, from wheels."""
    folder = tmp_path_factory.mktemp("clean")
    # A copy, so that the example is built as what it is: a package of its own, outside any workspace.
    example = shutil.copytree(ROOT / "examples/dcf-thumbnail", folder / "dcf-thumbnail")
    wheels = [build_wheel(s, folder) for s in (ROOT / "core", ROOT / "plugins/dm", example)]
    must(sys.executable, "-m", "venv", *(["--without-pip"] if shutil.which("uv") else []), folder / "venv")
    python = folder / "venv/bin/python"
    # The versions that the tests run with: nothing new is fetched where they are cached.
    # The first of a name is the one that is imported; some packages carry older copies of others.
    pins = {d.metadata["Name"]: d.version for d in reversed(list(metadata.distributions()))}
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(f"{n}=={v}" for n, v in sorted(pins.items()) if not n.startswith("dcf")))
    pip(python, "install", "-c", constraints, *wheels)
    return python


@pytest.mark.slow
def test_example_is_installed_used_and_missed(clean, tmp_path):
    dcf = clean.with_name("dcf")
    listed = json.loads(must(dcf, "list-plugins", "--json", cwd=tmp_path).stdout)
    names = {(c["kind"], c["name"], c["distribution"]) for c in listed["components"]}
    assert ("param", "thumbnail", "dcf-thumbnail") in names
    assert ("matcher", "dm", "dcf-dm") in names
    assert listed["problems"] == []

    check = must(dcf, "check", "thumbnail:k=4", cwd=tmp_path)
    assert "check_saving_is_lossless" in check.stdout

    setting = ("--matcher", "dm", "--param", "thumbnail:k=4", "--data", "digits", "--iterations", "3")
    made = must(dcf, "condense", *setting, *QUICK, "--out", tmp_path / "run", cwd=tmp_path)
    file = tmp_path / "run/synthetic.safetensors"
    assert str(file) in made.stdout

    again = json.loads(must(dcf, "evaluate", file, *QUICK, "--json", cwd=tmp_path).stdout)
    assert again

    pip(clean, "uninstall", "--yes", "dcf-thumbnail")
    header = must(dcf, "info", file, cwd=tmp_path)
    for text in ("thumbnail:k=4", "dcf-thumbnail", "digits"):
        assert text in header.stdout
    for command in (("evaluate", file, *QUICK), ("preview", file)):
        missed = run(dcf, *command, cwd=tmp_path)
        assert missed.returncode != 0
        assert "pip install dcf-thumbnail" in missed.stderr
        assert "Traceback" not in missed.stderr
    unknown = run(dcf, "condense", *setting, cwd=tmp_path)
    assert unknown.returncode == 2
    assert "no parameterization named 'thumbnail'" in unknown.stderr


@pytest.mark.slow
def test_a_new_plugin_is_installed_listed_and_passes_its_tests(clean, tmp_path):
    dcf = clean.with_name("dcf")
    must(dcf, "new-plugin", "stripes", "--kind", "dataset", cwd=tmp_path)
    pip(clean, "install", "-c", clean.parents[2] / "constraints.txt", tmp_path / "dcf-stripes", "pytest")
    listed = json.loads(must(dcf, "list-plugins", "--json", cwd=tmp_path).stdout)
    assert ("dataset", "stripes", "dcf-stripes") in {
        (c["kind"], c["name"], c["distribution"]) for c in listed["components"]
    }
    assert listed["problems"] == []
    tested = must(clean, "-m", "pytest", "-q", "-W", "error", cwd=tmp_path / "dcf-stripes")
    assert " passed" in tested.stdout
    pip(clean, "uninstall", "--yes", "dcf-stripes")


@pytest.mark.slow
def test_example_passes_its_own_tests():
    source = ROOT / "examples/dcf-thumbnail"
    code = (
        "import sys, pytest, dcf.testing, dcf_thumbnail\n"
        "from dcf.registry import Candidate\n"
        "with dcf.testing.registry_with(Candidate('thumbnail', 'dcf-thumbnail', '0.1.0', module=dcf_thumbnail)):\n"
        f"    sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--import-mode=importlib', {str(source)!r}]))"
    )
    must(sys.executable, "-c", code, PYTHONPATH=str(source / "src"))


def test_example_is_as_short_as_promised():
    source = ROOT / "examples/dcf-thumbnail/src/dcf_thumbnail"
    lines = [line for file in source.glob("*.py") for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
    assert "torch" not in (source / "__init__.py").read_text()


# --- broken ones, as half-installed distributions on the path ------------------------------------------------

ANNOUNCE = """
import dcf

@dcf.hookimpl
def {hook}():
    yield dcf.Component("{kind}", "{name}", "{module}:Nothing", "made for a test")
"""

#: module of the plugin -> (its requirement on core, its code; None for none at all).
BROKEN = {
    "raising": ("dcf-core", "raise RuntimeError('no such device')"),
    "twin": ("dcf-core", ANNOUNCE.format(hook="dcf_components", kind="matcher", name="dc", module="dcf_twin")),
    "misspelt": ("dcf-core", ANNOUNCE.format(hook="dcf_componentss", kind="matcher", name="lost", module="x")),
    "future": ("dcf-core>=9", "raise AssertionError('was imported')"),
    "gone": ("dcf-core", None),
    "sound": ("dcf-core", ANNOUNCE.format(hook="dcf_components", kind="param", name="sound", module="dcf_sound")),
}
REASONS = {
    "dcf-raising": "its import failed: RuntimeError: no such device",
    "dcf-twin": "matcher 'dc' is provided by",
    "dcf-dc": "matcher 'dc' is provided by",
    "dcf-misspelt": "dcf_componentss",
    "dcf-future": "needs dcf-core >=9; found 0.",
    "dcf-gone": "No module named 'dcf_gone'",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with broken plugins, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("broken")
    for name, (requirement, code) in BROKEN.items():
        info = folder / f"dcf_{name}-0.1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: dcf-{name}", "Version: 0.1.0", f"Requires-Dist: {requirement}"]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(f"[dcf]\n{name} = dcf_{name}\n")
        if code is not None:
            (folder / f"dcf_{name}.py").write_text(code)
    return str(folder)


def listing(folder, **environ):
    done = must(sys.executable, "-m", "dcf", "list-plugins", "--json", PYTHONPATH=folder, **environ)
    found = json.loads(done.stdout)
    names = {c["name"] for c in found["components"]}
    return names, {p["distribution"]: p["reason"] for p in found["problems"]}


def test_each_broken_plugin_has_its_row_and_the_others_work(broken):
    names, problems = listing(broken)
    assert set(problems) == set(REASONS)
    for distribution, reason in REASONS.items():
        assert reason in problems[distribution]
    assert {"dm", "dsa", "pixels", "sound"} <= names


def test_table_shows_problems_last(broken):
    done = must(sys.executable, "-m", "dcf", "list-plugins", PYTHONPATH=broken)
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    rows = [number for number, line in enumerate(lines) if " ! " in line]
    assert len(rows) == len(REASONS)
    assert all(any(f" {d} " in lines[row] for row in rows) for d in REASONS)
    last_component = max(n for n, line in enumerate(lines) if line.startswith(("param", "recipe", "protocol")))
    assert last_component < rows[0]


@pytest.mark.parametrize(
    ("flag", "name", "reason"),
    [
        ("--matcher", "raising", REASONS["dcf-raising"]),
        ("--param", "misspelt", REASONS["dcf-misspelt"]),
        ("--augment", "future", "needs dcf-core >=9"),
        ("--matcher", "dc", "'twin' (dcf-twin)"),
        ("--matcher", "gone", REASONS["dcf-gone"]),
    ],
)
def test_using_a_broken_one_repeats_its_reason(broken, flag, name, reason):
    done = run(sys.executable, "-m", "dcf", "condense", "--matcher", "dm", flag, name, PYTHONPATH=broken)
    assert done.returncode == 2
    assert reason in done.stderr
    assert name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_with_sound_components_is_not_disturbed(broken, tmp_path):
    done = must(
        *(sys.executable, "-m", "dcf", "condense", "--matcher", "dm", "--data", "digits", "--iterations", "1"),
        *("--no-eval", "--out", tmp_path / "run"),
        PYTHONPATH=broken,
        cwd=tmp_path,
    )
    assert (tmp_path / "run/synthetic.safetensors").exists()
    for distribution in REASONS:
        assert done.stderr.count(f"({distribution} ") <= 1, "a problem is one line"


def test_strict_makes_a_problem_an_error(broken):
    done = run(sys.executable, "-m", "dcf", "list-plugins", PYTHONPATH=broken, DCF_STRICT="1")
    assert done.returncode == 2
    assert "DCF_STRICT" in done.stderr
    assert "Traceback" not in done.stderr


def test_blocking_the_intruder_gives_the_name_back(broken):
    names, problems = listing(broken, DCF_BLOCK="twin,raising")
    assert "dc" in names
    assert set(problems) == {"dcf-misspelt", "dcf-future", "dcf-gone"}


def test_only_the_chosen_plugins_are_loaded(broken):
    names, problems = listing(broken, DCF_PLUGINS="dm")
    assert problems == {}
    assert {"dm", "pixels"} <= names
    assert not {"dc", "dsa", "sound"} & names
    names, _ = listing(broken, DCF_PLUGINS="")
    assert "pixels" in names
    assert "dm" not in names
