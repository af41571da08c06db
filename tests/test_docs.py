"""The documentation is true: pages are fresh, links lead somewhere, commands parse, examples run."""

import ast
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from typer.main import get_command

import dcf.hookspecs
from dcf.cli import options as cli_options
from dcf.cli.app import build
from dcf.cli.later import loaded
from dcf.components import Kind
from dcf.networks.names import POOLS, REFERENCE_NAMES
from dcf.recipes import all_recipes
from dcf.registry import registry
from dcf.resolve import resolve

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "core" / "README.md"])
PAGES += sorted(DOCS.rglob("*.md")) + sorted((ROOT / "plugins").glob("*/README.md"))
TUTORIAL = DOCS / "tutorial-plugin.md"
SCRIPTS = sorted((ROOT / "examples" / "scripts").glob("*.py"))

FENCE = re.compile(r"(?:^File `(?P<file>[^`]+)`:\n\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def fences(path, language=None):
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    return [m for m in found if language in (None, m["language"])]


def commands(text):
    """(command, output lines) of a console block."""
    found = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found:
            found[-1][1].append(line)
    return found


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def application():
    return get_command(build())


def own(name):
    return (DOCS / name).read_text(encoding="utf-8")


# --- generated pages --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(generator):
    return generator.pages()


def test_generated_pages_are_fresh(fresh):
    stale = [page_id(path) for path, text in fresh.items() if not path.exists() or path.read_text("utf-8") != text]
    assert not stale, f"run: python docs/generate_reference.py   (stale: {', '.join(stale)})"


def test_generated_pages_have_no_strangers(fresh):
    there = set((DOCS / "reference").glob("*.md")) | set((DOCS / "methods").glob("*.md"))
    assert there <= set(fresh)


def test_every_package_of_the_repository_is_described(generator):
    members = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]["workspace"]["members"]
    assert {folder.relative_to(ROOT).as_posix() for folder in generator.own_plugins().values()} == set(members)


def test_every_component_is_in_the_reference(generator):
    text = own("reference/components.md")
    by_kind = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    for item in generator.own_registry().items():
        assert f"\n### {item.component.name}\n" in by_kind[item.component.kind.value]


def test_every_command_and_option_is_in_the_reference(application):
    text = own("reference/cli.md")
    names = list(leaves(application, "dcf"))
    assert len(names) > 8
    for name, command in names:
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        flags = [flag for p in command.params for flag in p.opts if flag.startswith("--") and flag != "--help"]
        assert [f for f in flags if f"`{f}" not in section] == []


def leaves(group, path):
    for name, later in group.commands.items():
        command = loaded(later)
        if hasattr(command, "commands"):
            yield from leaves(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def test_commands_are_listed_with_what_their_own_help_begins_with(application):
    for name, later in application.commands.items():
        assert later.help == loaded(later).help.split("\n")[0], name
        assert loaded(later) is not later


def test_signatures_in_the_reference_are_those_of_the_code(generator):
    assert generator.signature(lambda a, *, b="x": None) == "(a, *, b = 'x')"
    text = own("reference/api.md")
    for name in dcf.__all__:
        assert f"### `{name}" in text


# --- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(path):
    for link in LINK.findall(path.read_text("utf-8")):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_index_leads_to_every_page():
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(own("index.md"))}
    ours = [p for p in DOCS.rglob("*.md") if "results" not in p.parts and p.name not in ("index.md", "performance.md")]
    assert [page_id(p) for p in ours if p.resolve() not in linked] == []


# --- commands ---------------------------------------------------------------------------------------------------

CONSOLE = [
    pytest.param(command, id=f"{page_id(path)}:{number}")
    for path in PAGES
    for number, (command, _) in enumerate(c for m in fences(path, "console") for c in commands(m["body"]))
    if path != TUTORIAL and "methods" not in path.parts  # the tutorial is run; methods repeat READMEs
]


@pytest.mark.parametrize("line", CONSOLE)
def test_commands_shown_are_accepted(line, application):
    for command in line.split(" && "):
        words = shlex.split(command)
        if "dcf" in words:
            parsed(application, words[words.index("dcf") + 1 :])
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
        else:
            assert words[0] in ("pip", "uv", "pytest"), command


def parsed(application, words):
    """Parse as the program would, and check everything that it checks without loading data."""
    group, ctx = application, application.make_context("dcf", list(words))
    while hasattr(group, "commands"):
        name, later, rest = group.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        ctx = later.make_context(name, list(rest), parent=ctx)
        group = ctx.command
    check = {"condense": accepted_condense, "evaluate": accepted_evaluate, "describe": accepted_name}.get(name)
    if check is not None:
        check(ctx.params)


def accepted_condense(params):
    roles = ("data", "matcher", "param", "augment", "init", "network", "ipc", "budget", "iterations", "protocol")
    changes = cli_options.set_options(params["change"] or ())
    resolve({role: params[role] for role in roles}, params["recipe"], changes)


def accepted_evaluate(params):
    from dcf.build import check

    for kind, role in ((Kind.EVALUATOR, "evaluator"), (Kind.DATASET, "data"), (Kind.NETWORK, "network")):
        if params[role] is not None:
            check(kind, params[role])
    cli_options.baseline_rows(params["baselines"])


def accepted_name(params):
    assert any(params["name"] in registry().names(kind) for kind in Kind)


def test_a_command_that_does_not_exist_is_noticed(application):
    for line in ("condnse", "condense --matchr dc", "condense --matcher dc:metrc=cos", "describe nobody"):
        with pytest.raises(Exception):  # noqa: B017 - each layer has its own
            parsed(application, shlex.split(line))


def test_readme_shows_what_ci_runs():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "$ uv run pytest\n" in text
    assert "$ pip install uv && uv run dcf condense\n" in text
    for script in (ROOT / ".ci").glob("run*"):
        assert "uv run pytest" in script.read_text("utf-8")


# --- completeness -----------------------------------------------------------------------------------------------


def test_hooks_have_their_exact_signatures():
    hooks = [name for name in dcf.hookspecs.__all__ if name.startswith("dcf_")]
    for name in hooks:
        function = getattr(dcf.hookspecs, name)
        signature = str(inspect.signature(function)).replace("'", "").removesuffix(" -> None")
        returns = "" if "->" in signature else " -> None"
        assert f"\n## `{name}{signature}{returns}`\n" in own("hooks.md")


def test_kinds_are_described():
    text = own("hooks.md")
    assert [k.value for k in Kind if f"| `{k.value}` |" not in text] == []
    assert [k.value for k in Kind if f"| `{k.value}` | " in text and f"`{k.flag}`" not in text] == []


def test_every_dataset_network_pool_and_protocol_has_its_place(generator):
    reg = generator.own_registry()
    assert [n for n in reg.names(Kind.DATASET) if f"| `{n}` |" not in own("data.md")] == []
    assert [n for n in reg.names(Kind.NETWORK) if f"| `{n}` |" not in own("networks.md")] == []
    assert [n for n in POOLS if f"| `{n}` |" not in own("networks.md")] == []
    assert [n for n in reg.names(Kind.PROTOCOL) if f"`{n}`" not in own("protocols.md")] == []


def test_published_network_names_are_translated_truly():
    rows = re.findall(r"^\| (\w+)(?:, [\w, ]+)? \| (`[^|]+) \|$", own("networks.md"), re.M)
    known = {name: spec for name, spec in rows if name in REFERENCE_NAMES}
    assert len(known) >= 6
    for name, specs in known.items():
        assert f"`{REFERENCE_NAMES[name]}`" in specs


def test_every_metadata_key_is_described(tmp_path):
    from dcf.files import read_header

    small = dcf.condense(matcher="none", iterations=0, ipc=1, store="fp16", evaluate=False)
    small.metadata |= {"results": {}, "assembled": {}, "imported": {}}
    small.save(tmp_path / "small.safetensors")
    described = set(re.findall(r"^\| `(dcf\.\w+)` \|", own("file-format.md"), re.M))
    assert set(read_header(tmp_path / "small.safetensors").metadata) == described


def test_options_in_method_pages_are_those_of_the_code(generator):
    from dcf.config import field_rows

    for name in ("dc", "dsa", "dm"):
        text = own(f"methods/{name}.md").partition("## Options")[2].partition("\n## ")[0]
        shown = re.findall(r"^\| `(\w+)` \|", text, re.M)
        item = next(i for i in generator.own_registry().items() if i.component.name == name)
        assert shown == [row.name for row in field_rows(item.component.load_config())]


def test_readme_lists_the_methods_that_exist(generator):
    readme = (ROOT / "README.md").read_text("utf-8")
    text = readme.partition("## Methods")[2].partition("\n## ")[0]
    rows = re.findall(r"\(docs/methods/([a-z-]+)\.md\) \| `dcf condense --recipe ([a-z-]+)`", text)
    recipes = all_recipes(generator.own_registry())
    others = {i.plugin.distribution for i in generator.own_registry().items() if i.component.kind != Kind.EVALUATOR}
    own_names = set(generator.own_plugins()) - {"builtin"}
    assert {folder for folder, _ in rows} == {name for name in own_names if f"dcf-{name}" in others}
    # Packages of nothing but evaluators have no recipe, and their place further down.
    assert [name for name in own_names if f"docs/methods/{name}.md" not in readme] == []
    assert all(f"dcf-{folder}" in recipes[recipe].recipe.requires for folder, recipe in rows)


def test_changelog_speaks_of_every_package(generator):
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    unreleased = re.search(r"^## .*Unreleased$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert unreleased
    lines = re.findall(r"^- ([\w-]+): ", unreleased[1], re.M)
    assert set(lines) == {folder.name for folder in generator.own_plugins().values()}
    assert len(lines) == len(re.findall(r"^- ", unreleased[1], re.M))


# --- code -------------------------------------------------------------------------------------------------------

PYTHON = [
    pytest.param(m["body"], id=f"{page_id(path)}:{number}")
    for path in PAGES
    if "methods" not in path.parts
    for number, m in enumerate(fences(path, "python"))
]


@pytest.mark.parametrize("body", PYTHON)
def test_python_compiles_and_imports_what_exists(body):
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("dcf") and "cosine" not in node.module:
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dcf":
            assert hasattr(dcf, node.attr), node.attr


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["README.md", "docs/quickstart.md", "docs/testing-plugins.md", "plugins/dsa/README.md"]
)
def test_python_runs(name, tmp_path):
    for number, block in enumerate(fences(ROOT / name, "python")):
        file = tmp_path / f"block{number}.py"
        file.write_text(block["body"])
        done = run([sys.executable, file.name], tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example_scripts_run(path, tmp_path):
    arguments = ["3"] if "sys.argv" in path.read_text("utf-8") else []
    done = run([sys.executable, str(path), *arguments], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def run(argv, cwd, **environ):
    env = {k: v for k, v in os.environ.items() if not k.startswith("DCF_")}
    env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "ignore", **environ}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)


# --- the tutorial -----------------------------------------------------------------------------------------------


def test_tutorial_files_parse():
    files = [m for m in fences(TUTORIAL) if m["file"]]
    assert len({m["file"] for m in files}) == 4
    for m in files:
        if m["language"] == "toml":
            assert tomllib.loads(m["body"])["project"]["entry-points"]["dcf"]
        else:
            ast.parse(m["body"])


class Reader:
    """Does what the tutorial says, in a folder of their own; installing means to be importable with metadata."""

    def __init__(self, folder):
        self.folder = folder
        self.site = folder / "site"
        self.path = [str(self.site)]

    def install(self, project):
        meta = tomllib.loads((self.folder / project / "pyproject.toml").read_text())["project"]
        info = self.site / f"{meta['name'].replace('-', '_')}-{meta['version']}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        lines = [f"Name: {meta['name']}", f"Version: {meta['version']}"]
        lines += [f"Requires-Dist: {text}" for text in meta["dependencies"]]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        entries = [f"{name} = {target}" for name, target in meta["entry-points"]["dcf"].items()]
        (info / "entry_points.txt").write_text("[dcf]\n" + "\n".join(entries) + "\n")
        self.path.append(str(self.folder / project / "src"))

    def do(self, command):
        words = shlex.split(command)
        if words[:4] == ["uv", "pip", "install", "--editable"]:
            self.install(words[4])
            return ""
        module = {"dcf": "dcf", "pytest": "pytest"}[words[0]]
        extra = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."] if module == "pytest" else []
        keep = [] if os.environ.get("PYTHONPATH") is None else [os.environ["PYTHONPATH"]]
        argv = [sys.executable, "-m", module, *words[1:], *extra]
        done = run(argv, self.folder, PYTHONPATH=os.pathsep.join([*self.path, *keep]), DCF_PLUGINS="dc,dsa,dm,cosine")
        return done.stdout + done.stderr


def unlike(shown, printed):
    """The first shown line that was not printed, in order; `...` stands for anything."""
    lines = iter([" ".join(line.split()) for line in printed.splitlines()])
    for wanted in (" ".join(line.split()) for line in shown):
        if wanted in ("", "..."):
            continue
        pattern = re.sub(r"[\[\]?]", "?", wanted).replace("*", "?").replace("...", "*")
        if not any(fnmatchcase(line, pattern) for line in lines):
            return wanted
    return None


def test_unlike_finds_what_was_not_printed():
    assert unlike(["a ... c", "...", "[d]"], "a b c\nx\n[d]\n") is None
    assert unlike(["b", "a"], "a\nb\n") == "a"


@pytest.mark.slow
def test_tutorial_runs_as_written(tmp_path):
    reader = Reader(tmp_path)
    for m in fences(TUTORIAL):
        if m["file"]:
            target = tmp_path / m["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target.parent / "__pycache__", ignore_errors=True)
            target.write_text(m["body"])
        elif m["language"] == "console":
            for command, shown in commands(m["body"]):
                printed = reader.do(command)
                missing = unlike(shown, printed)
                assert missing is None, f"$ {command}\nexpected: {missing}\ngot:\n{printed}"
