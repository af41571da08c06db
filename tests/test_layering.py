"""Who may import whom, and who may know whom: core names no method, plugins use public names only."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import dcf

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "core/src/dcf").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("*/src/*/**/*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*/src/*/**/*.py"))

#: Names of methods, as they would betray that core knows one. They may stand nowhere, not even in prose.
LONG = """
bptt cda datm dcc dsa dsac forgetting frepo ftd haba herding idc idm iid kcenter kip krr loidc lodc lodm lodsa lohaba
lomtt lortp mtt rememberthepast rfad rtp sre2l tesla
""".split()  # noqa: SIM905 - a list of words is easier to read than thirty quoted ones
#: Two letters are too common for prose: they count where they are the whole of a name or of a text.
SHORT = ["dc", "dm", "dd", "ld"]
#: (file, text) that may stand in core all the same, with the reason.
ALLOWED = {
    # Pools of architectures are called after the published tables they come from, as protocols are.
    ("networks/names.py", "mtt"): "the pool of the cross-architecture table of that paper",
    ("networks/names.py", "idc"): "the pool of the cross-architecture table of that paper",
    ("networks/names.py", "haba"): "the pool of the cross-architecture table of that paper",
    # A way to differentiate through training that any method may choose, known under no other name.
    ("unroll/__init__.py", "tesla"): "the name of a mode, and where it stands in messages",
    ("types.py", "tesla"): "the names of the modes, for options that are free of torch",
}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path):
    """`(module, name or None, line)` of every import, those inside functions included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.module, alias.name, node.lineno


def short(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE, ids=short)
def test_core_imports_no_plugin(path):
    found = [f"{m}:{line}" for m, _, line in imports(path) if m.split(".")[0].startswith("dcf_")]
    assert not found


@pytest.mark.parametrize("path", [*PLUGINS, *EXAMPLES], ids=short)
def test_plugin_imports_no_other_plugin(path):
    package = path.relative_to(ROOT).parts[3]
    found = [m for m, _, _ in imports(path) if m.split(".")[0].startswith("dcf_") and m.split(".")[0] != package]
    assert not found


@pytest.mark.parametrize("path", [*PLUGINS, *EXAMPLES], ids=short)
def test_plugin_uses_public_names_only(path):
    for module, name, line in imports(path):
        if module.split(".")[0] != "dcf":
            continue
        where = f"{short(path)}:{line}"
        assert not any(part.startswith("_") for part in module.split(".")), where
        found = importlib.import_module(module)
        if name is not None:
            assert name in getattr(found, "__all__", ()), f"{where}: '{name}' is not public in {module}"


@pytest.mark.parametrize("path", [*PLUGINS, *EXAMPLES], ids=short)
def test_plugin_touches_no_private_attribute_of_core(path):
    names = {alias.asname or alias.name for node in ast.walk(tree(path)) for alias in getattr(node, "names", [])}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            assert not (isinstance(owner, ast.Name) and owner.id in names), f"{short(path)}:{node.lineno}"


@pytest.mark.parametrize("path", [*PLUGINS, *EXAMPLES], ids=short)
def test_plugin_names_what_core_offers(path):
    # `dcf.SomeName` is looked up lazily: a misspelt one would only fail when it is reached.
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dcf":
            submodule = (ROOT / "core/src/dcf" / node.attr).with_suffix("").exists()
            assert node.attr in dcf.__all__ or submodule, f"{short(path)}:{node.lineno}: dcf.{node.attr}"


def names_and_texts(path):
    """Every identifier and every string of a file, with its line."""
    for node in ast.walk(tree(path)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield node.id, line
        elif isinstance(node, ast.Attribute):
            yield node.attr, line
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, line
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            yield node.arg, line
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, line


def words(text):
    """Words of an identifier or a text: `DCMatch_dsa` gives dc, match, dsa."""
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", text)
    return [w.lower() for w in re.findall(r"[A-Za-z][A-Za-z0-9]*", spaced.replace("_", " "))]


def methods_in(path):
    for text, line in names_and_texts(path):
        found = [w for w in words(text) if w in LONG]
        if text.lower() in SHORT or (len(text.split()) == 1 and set(re.split(r"[_\W]", text.lower())) & set(SHORT)):
            found.append(text)
        for word in found:
            if (path.relative_to(ROOT / "core/src/dcf").as_posix(), word) not in ALLOWED:
                yield f"{short(path)}:{line}: {word!r} in {text[:60]!r}"


@pytest.mark.parametrize("path", CORE, ids=short)
def test_core_names_no_method(path):
    assert list(methods_in(path)) == []


def test_exceptions_are_needed():
    for file, word in ALLOWED:
        path = ROOT / "core/src/dcf" / file
        assert any(word in words(text) for text, _ in names_and_texts(path)), f"{file} no longer says '{word}'"


def test_comments_of_core_name_no_method():
    pattern = re.compile(rf"#.*\b({'|'.join(LONG)}|DC|DM|DD|LD)\b")
    found = [
        f"{short(path)}:{number}"
        for path in CORE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_files_that_core_carries_name_no_method():
    pattern = re.compile(rf"\b({'|'.join([*LONG, *SHORT])})\b", re.IGNORECASE)
    for path in (ROOT / "core/src/dcf").rglob("*.toml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        # A published value must name the protocol it was obtained with, whoever defines that protocol.
        text = "\n".join(line for line in lines if not line.startswith("protocol ="))
        assert not pattern.findall(text), short(path)


def test_word_search_finds_what_it_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    folder = tmp_path / "core/src/dcf"
    folder.mkdir(parents=True)
    for code, wanted in [
        ("class DCMatcher: ...", 0),
        ("class DSAMatcher: ...", 1),
        ("if name == 'dm': ...", 1),
        ("x = 'mtt:steps=3'", 1),
        ('"""Matches as MTT does."""', 1),
        ("def dc(): ...", 1),
        ("dc_loss = 1", 1),
        ('"""A word, and another."""', 0),
        ("ideal = 'rememberable, for getting things'", 0),
    ]:
        path = folder / "some.py"
        path.write_text(code)
        assert len(list(methods_in(path))) == wanted, code


def test_every_module_has_a_docstring_and_no_relative_import():
    for path in [*CORE, *PLUGINS, *EXAMPLES]:
        assert ast.get_docstring(tree(path)), short(path)
        list(imports(path))


def test_files_are_short_enough():
    long = [short(p) for p in [*CORE, *PLUGINS] if len(p.read_text(encoding="utf-8").splitlines()) > 400]
    assert long == []
