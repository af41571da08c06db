"""The packages fit together: members, versions, bounds, files, entry points."""

import importlib
import json
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import dcf

ROOT = Path(__file__).parents[1]
ME = "tests/test_packages.py"


def read(path):
    return tomllib.loads((ROOT / path / "pyproject.toml").read_text(encoding="utf-8"))


WORKSPACE = read(".")
PLUGINS = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
MEMBERS = ["core", *(f"plugins/{name}" for name in PLUGINS)]
CORE_VERSION = Version(read("core")["project"]["version"])


def modules(folder):
    (package,) = [p for p in (ROOT / folder / "src").iterdir() if (p / "__init__.py").exists()]
    return package


def test_members_are_the_folders():
    assert sorted(WORKSPACE["tool"]["uv"]["workspace"]["members"]) == sorted(MEMBERS)
    # A folder of a plugin without metadata would be no member, and nobody would notice.
    tracked = {line.split("/")[1] for line in git_files("plugins") if line.count("/") > 1}
    assert tracked <= set(PLUGINS)


def test_sources_and_dependencies_are_the_members():
    names = sorted(read(member)["project"]["name"] for member in MEMBERS)
    sources = WORKSPACE["tool"]["uv"]["sources"]
    assert sorted(sources) == names
    assert all(value == {"workspace": True} for value in sources.values())
    assert sorted(WORKSPACE["project"]["dependencies"]) == names


def test_workspace_is_no_package():
    assert WORKSPACE["tool"]["uv"]["package"] is False
    assert "build-system" not in WORKSPACE


@pytest.mark.parametrize("member", MEMBERS)
def test_versions_are_equal(member):
    assert read(member)["project"]["version"] == str(CORE_VERSION) == dcf.__version__


@pytest.mark.parametrize("member", [*(f"plugins/{p}" for p in PLUGINS), "examples/dcf-thumbnail"])
def test_plugin_is_bound_to_this_core(member):
    requirements = [Requirement(text) for text in read(member)["project"]["dependencies"]]
    (core,) = [r for r in requirements if r.name == "dcf-core"]
    following = f"{CORE_VERSION.major}.{CORE_VERSION.minor + 1}"
    assert str(core.specifier) == f"<{following},>={CORE_VERSION.major}.{CORE_VERSION.minor}"
    others = {r.name for r in requirements if r.name.startswith("dcf-")} - {"dcf-core"}
    assert not others, "a plugin depends on no other plugin"


@pytest.mark.parametrize("name", PLUGINS)
def test_names_follow_the_folder(name):
    project = read(f"plugins/{name}")["project"]
    assert project["name"] == f"dcf-{name}"
    assert project["entry-points"] == {"dcf": {name: f"dcf_{name}"}}
    assert modules(f"plugins/{name}").name == f"dcf_{name}"


@pytest.mark.parametrize("member", [*MEMBERS, "examples/dcf-thumbnail"])
def test_package_is_complete(member):
    project = read(member)["project"]
    assert project["requires-python"] == ">=3.11"
    assert project["license"] == "Apache-2.0"
    assert project["description"]
    assert (ROOT / member / project["readme"]).exists()
    assert (modules(member) / "py.typed").exists()
    assert list((ROOT / member / "tests").glob("test_*.py"))


@pytest.mark.parametrize("member", MEMBERS)
def test_licence_text_goes_into_the_wheel(member):
    # A copy and no link: a source distribution of one folder would hold a link to nowhere.
    (name,) = read(member)["project"]["license-files"]
    copy = ROOT / member / name
    assert not copy.is_symlink()
    assert copy.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("member", [*MEMBERS, "examples/dcf-thumbnail"])
def test_readme_says_something(member):
    lines = (ROOT / member / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) > 10


@pytest.mark.parametrize("member", [*MEMBERS, "examples/dcf-thumbnail"])
def test_tool_settings_live_at_the_root(member):
    assert set(read(member).get("tool", {})) <= {"hatch", "uv"}


@pytest.mark.parametrize("member", MEMBERS)
def test_test_folders_are_no_packages(member):
    assert not list((ROOT / member / "tests").rglob("__init__.py"))


def test_test_files_have_names_of_their_own():
    names = [p.name for p in ROOT.glob("*/tests/test_*.py")] + [p.name for p in ROOT.glob("plugins/*/tests/test_*.py")]
    names = [n for n in names if n != "test_conformance.py"]
    assert len(set(names)) == len(names)


def test_every_external_requirement_has_a_bound():
    bounds = {Requirement(text).name for text in WORKSPACE["tool"]["uv"]["constraint-dependencies"]}
    for member in MEMBERS:
        needed = {Requirement(text).name for text in read(member)["project"]["dependencies"]}
        missing = {n for n in needed if not n.startswith("dcf-")} - bounds
        assert not missing, f"{member}: {missing}"


def git_files(*paths):
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return [line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def test_no_lock_file_and_no_registry_host_is_tracked():
    files = git_files()
    assert not [f for f in files if Path(f).name in ("uv.lock", "poetry.lock", "requirements.txt", "Pipfile.lock")]
    for file in files:
        if Path(file).suffix in (".toml", ".cfg", ".ini", ".yml", ".yaml", ".md", ".py", "") and file != ME:
            text = (ROOT / file).read_text(encoding="utf-8", errors="ignore")
            settings = ("index-url", "extra-index") if file.endswith(".toml") else ()
            for host in ("pypi.org", "pythonhosted.org", "download.pytorch.org", *settings):
                assert host not in text, f"{file} names {host}"


def test_constraints_are_plain_requirements():
    for text in WORKSPACE["tool"]["uv"]["constraint-dependencies"]:
        assert Requirement(text).url is None


@pytest.mark.parametrize("name", ["core", *PLUGINS])
def test_entry_point_resolves(name):
    distribution = metadata.distribution("dcf-core" if name == "core" else f"dcf-{name}")
    (entry,) = [e for e in distribution.entry_points if e.group == "dcf"]
    module = entry.load()
    assert module is importlib.import_module(entry.value)
    # A package of commands alone has no components.
    for component in getattr(module, "dcf_components", list)():
        if component.kind in (dcf.Kind.PROTOCOL, dcf.Kind.RECIPE):
            assert component.read_text()
        else:
            assert isinstance(component.load(), type)


def test_plugins_are_imported_without_torch():
    names = ["dcf", "dcf.builtin", "dcf.registry", *(f"dcf_{name}" for name in PLUGINS)]
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {names!r}:\n"
        "    module = importlib.import_module(name)\n"
        "    list(getattr(module, 'dcf_components', tuple)())\n"
        "    heavy = [m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'sklearn') if m in sys.modules]\n"
        "    found[name] = heavy\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [] for name in names}


@pytest.mark.slow
def test_optional_heavy_imports_stay_inside_core():
    # What only some components need must not be needed by all.
    code = "import sys, dcf.synthetic, dcf.matching; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
