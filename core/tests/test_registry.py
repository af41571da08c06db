"""Discovery: broken, incompatible and conflicting plugins are contained, named, and never win silently."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

import dcf
from dcf.components import Component, Kind
from dcf.registry import Candidate, Registry, _installed
from dcf.spec import Spec, parse_one


def plugin(*components, hook="dcf_components", error=None):
    @dcf.hookimpl
    def announce():
        if error is not None:
            raise error
        return components

    return SimpleNamespace(**{hook: announce})


def param(name):
    return Component("param", name, "nowhere:Nothing", "made for a test")


def candidate(name, *components, distribution=None, requires=(), **how):
    return Candidate(name, distribution or f"dcf-{name}", "1.2", tuple(requires), module=plugin(*components, **how))


class Raising:
    """An entry point whose import fails."""

    def __init__(self, error):
        self.error = error

    def load(self):
        raise self.error


GOOD = candidate("good", param("fine"))


def only_problem(*candidates, environ=None):
    reg = Registry.of([GOOD, *candidates], environ)
    assert "fine" in reg.names("param"), "the sound plugin was lost"
    (problem,) = reg.problems
    return reg, problem


@pytest.mark.parametrize(
    "error", [ImportError("no module named 'x'"), SyntaxError("bad"), SystemExit(3), RuntimeError("two\nlines")]
)
def test_failing_import_is_one_problem_of_one_line(error):
    broken = Candidate("broken", "dcf-broken", "1.2", entry_point=Raising(error))
    reg, problem = only_problem(broken)
    assert (problem.plugin, problem.distribution, problem.version) == ("broken", "dcf-broken", "1.2")
    assert problem.reason.startswith("its import failed: ")
    assert type(error).__name__ in problem.reason
    assert "\n" not in str(problem)
    assert "broken" not in reg.plugins


def test_interrupt_is_no_problem_of_the_plugin():
    with pytest.raises(KeyboardInterrupt):
        Registry.of([Candidate("slow", "dcf-slow", "1", entry_point=Raising(KeyboardInterrupt()))])


def test_using_a_broken_plugin_repeats_the_reason():
    reg, _ = only_problem(Candidate("broken", "dcf-broken", "1.2", entry_point=Raising(ImportError("no cuda"))))
    with pytest.raises(dcf.PluginError) as caught:
        reg.find("matcher", "broken")
    assert str(caught.value).splitlines() == [
        "'dcf-broken 1.2' could not be loaded, so matcher 'broken' is unavailable",
        "  reason: its import failed: ImportError: no cuda",
    ]


def test_misspelt_hook_is_a_problem_of_its_own_plugin():
    # The sound plugin comes after the broken one and must not be blamed.
    late = candidate("late", param("later"))
    reg = Registry.of([GOOD, candidate("typo", param("lost"), hook="dcf_componentss"), late])
    (problem,) = reg.problems
    assert problem.plugin == "typo"
    assert "dcf_componentss" in problem.reason
    assert reg.names("param") == ["fine", "later"]


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(1)])
def test_raising_hook_loses_nobody_else(error):
    _, problem = only_problem(candidate("loud", error=error))
    assert problem.reason.startswith("its hook dcf_components failed: ")


@pytest.mark.parametrize("value", ["text", None, 3])
def test_hook_that_returns_no_component_is_a_problem(value):
    module = SimpleNamespace(dcf_components=dcf.hookimpl(lambda: [value]))
    _, problem = only_problem(Candidate("odd", "dcf-odd", "1", module=module))
    assert "expected dcf.Component" in problem.reason


def test_hook_that_returns_nothing_is_a_problem():
    module = SimpleNamespace(dcf_components=dcf.hookimpl(lambda: None))
    _, problem = only_problem(Candidate("odd", "dcf-odd", "1", module=module))
    assert "dcf_components failed" in problem.reason


@pytest.mark.parametrize("name", ["Upper", "under_score", "-x", "two words", "a--b", "x@y", ""])
def test_component_name_that_no_spec_can_say_is_a_problem(name):
    _, problem = only_problem(candidate("odd", param(name)))
    assert "is not a component's name" in problem.reason


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'parm'; expected one of matcher, param"):
        Component("parm", "x", "m:C", "summary")


# --- versions ------------------------------------------------------------------------------------------------


def test_incompatible_plugin_is_not_imported():
    never = Candidate("new", "dcf-new", "1.2", ("dcf-core>=9",), Raising(AssertionError("was imported")))
    _, problem = only_problem(never)
    assert problem.reason == f"needs dcf-core >=9; found {dcf.__version__}"


@pytest.mark.parametrize(
    ("requires", "loads"),
    [
        (["dcf-core>=0.1,<0.2", "torch"], True),
        (["DCF_Core>=9"], False),
        (["dcf-core>=9; extra == 'gpu'"], True),
        (["dcf-core>=9; python_version < '3'"], True),
        (["not a requirement !!", "dcf-core"], True),
        (["dcf-core-extras>=9"], True),
    ],
)
def test_requirement_on_core_is_read_as_pip_reads_it(requires, loads):
    reg = Registry.of([candidate("some", param("x"), requires=requires)])
    assert bool(reg.names("param")) is loads


# --- duplicates ----------------------------------------------------------------------------------------------


def test_component_name_of_two_plugins_is_usable_by_neither():
    reg = Registry.of([GOOD, candidate("one", param("twin"), param("mine")), candidate("two", param("twin"))])
    assert reg.names("param") == ["fine", "mine"]
    assert {p.plugin for p in reg.problems} == {"one", "two"}
    with pytest.raises(dcf.PluginError) as caught:
        reg.find("param", "twin")
    for part in ("in conflict", "'one' (dcf-one)", "'two' (dcf-two)", "DCF_BLOCK"):
        assert part in str(caught.value)


def test_blocking_one_owner_frees_the_name():
    twins = [candidate("one", param("twin")), candidate("two", param("twin"))]
    reg = Registry.of(twins, {"DCF_BLOCK": "one"})
    assert reg.problems == []
    assert reg.find("param", "twin").plugin.name == "two"


def test_built_in_is_never_shadowed():
    import dcf.builtin

    core = Candidate("builtin", "dcf-core", dcf.__version__, module=dcf.builtin)
    reg = Registry.of([core, candidate("intruder", param("pixels"))])
    assert "pixels" not in reg.names("param")
    assert "random" in reg.names("selector")


def test_same_name_in_two_kinds_is_no_conflict():
    reg = Registry.of([candidate("one", param("same"), Component("augmenter", "same", "m:C", "x"))])
    assert reg.problems == []
    assert reg.names(Kind.AUGMENTER) == ["same"]


def test_two_distributions_with_one_plugin_name_exclude_each_other():
    rivals = [
        candidate("dm", param("theirs"), distribution="a-first"),
        candidate("dm", param("ours"), distribution="dcf-dm"),
    ]
    reg = Registry.of([GOOD, *rivals])
    assert reg.names("param") == ["fine"]
    assert {p.distribution for p in reg.problems} == {"a-first", "dcf-dm"}
    with pytest.raises(dcf.PluginError, match="same plugin name"):
        reg.find("matcher", "dm")
    kept = Registry.of([GOOD, *rivals], {"DCF_BLOCK": "a-first"})
    assert kept.names("param") == ["fine", "ours"]


def test_plugin_called_like_core_does_not_replace_it():
    import dcf.builtin

    core = Candidate("builtin", "dcf-core", dcf.__version__, module=dcf.builtin)
    reg = Registry.of([core, candidate("builtin", param("x"), distribution="zzz")])
    assert reg.plugins["builtin"].distribution == "dcf-core"
    assert "pixels" in reg.names("param")
    assert [p.distribution for p in reg.problems] == ["zzz"]


def test_conflict_does_not_make_other_names_of_the_plugin_look_broken():
    reg = Registry.of([candidate("one", param("twin")), candidate("two", param("twin"))])
    with pytest.raises(dcf.SpecError, match="no matcher named 'one'"):
        reg.find("matcher", "one")


# --- choice --------------------------------------------------------------------------------------------------

MANY = [candidate("a", param("pa")), candidate("b", param("pb")), candidate("c", param("pc"))]


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ["pa", "pb", "pc"]),
        ({"DCF_PLUGINS": "a, c"}, ["pa", "pc"]),
        ({"DCF_PLUGINS": ""}, []),
        ({"DCF_PLUGINS": "dcf-b"}, ["pb"]),
        ({"DCF_BLOCK": "b"}, ["pa", "pc"]),
        ({"DCF_BLOCK": ""}, ["pa", "pb", "pc"]),
        ({"DCF_PLUGINS": "a,b", "DCF_BLOCK": "b"}, ["pa"]),
    ],
)
def test_environment_chooses_plugins(environ, names):
    assert Registry.of(MANY, environ).names("param") == names


def test_built_ins_are_always_there():
    import dcf.builtin

    core = Candidate("builtin", "dcf-core", dcf.__version__, module=dcf.builtin)
    for environ in ({"DCF_PLUGINS": ""}, {"DCF_BLOCK": "builtin"}):
        assert "pixels" in Registry.of([core], environ).names("param")


def test_blocked_plugin_says_so_when_it_is_asked_for():
    reg = Registry.of([candidate("a", param("a"))], {"DCF_BLOCK": "a"})
    with pytest.raises(dcf.PluginError, match="blocked by DCF_BLOCK"):
        reg.find("param", "a")


@pytest.mark.parametrize(("value", "strict"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_strict_turns_problems_into_errors(value, strict):
    broken = Candidate("broken", "dcf-broken", "1", entry_point=Raising(ImportError("x")))
    if strict:
        with pytest.raises(dcf.PluginError, match="DCF_STRICT is set"):
            Registry.of([broken], {"DCF_STRICT": value})
    else:
        assert len(Registry.of([broken], {"DCF_STRICT": value}).problems) == 1


# --- look-up -------------------------------------------------------------------------------------------------


def test_unknown_name_points_suggests_and_lists():
    reg = Registry.of([candidate("a", param("lowrank"), param("pixels"))])
    with pytest.raises(dcf.SpecError) as caught:
        reg.find("param", parse_one("lowrnk:r=4"))
    assert str(caught.value).splitlines() == [
        "no parameterization named 'lowrnk'",
        "  --param lowrnk:r=4",
        "          ^^^^^^",
        "  did you mean 'lowrank'?",
        "  installed: lowrank, pixels     (see: dcf list-plugins --kind param)",
    ]
    assert caught.value.exit_code == 2


def test_name_of_another_kind_says_which():
    reg = Registry.of([candidate("a", Component("augmenter", "warp", "m:C", "x"))])
    with pytest.raises(dcf.SpecError, match="'warp' is an augmenter; use --augment warp"):
        reg.find("param", Spec("warp"))


def test_items_are_ordered_by_kind_and_name():
    reg = Registry.of([candidate("a", param("z"), Component("matcher", "m", "m:C", "x"), param("b"))])
    assert [i.component.name for i in reg.items()] == ["m", "b", "z"]
    assert [i.component.name for i in reg.items("param")] == ["b", "z"]


# --- what is installed ---------------------------------------------------------------------------------------


def install(folder, name, version="1.0", entries="", requires=()):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    (info / "entry_points.txt").write_text(entries)
    return info


def test_entry_points_of_the_group_are_found(tmp_path, monkeypatch):
    install(tmp_path, "dcf-fresh", "3.1", "[dcf]\nfresh = fresh_module\n[other]\nx = y\n", ["dcf-core>=0.1"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (found,) = [c for c in _installed() if c.distribution == "dcf-fresh"]
    assert (found.name, found.version, found.requires) == ("fresh", "3.1", ("dcf-core>=0.1",))


def test_core_comes_first_and_the_first_copy_on_the_path_counts(tmp_path, monkeypatch):
    install(tmp_path / "one", "aaa", "1.0", "[dcf]\naaa = a\n")
    install(tmp_path / "two", "aaa", "2.0", "[dcf]\naaa = a\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "one"), str(tmp_path / "two"), *sys.path])
    found = _installed()
    assert found[0].distribution == "dcf-core"
    assert [c.version for c in found if c.distribution == "aaa"] == ["1.0"]


@pytest.mark.parametrize("entries", ["[dcf]\nnonsense\n", "[dcf]\n= x\n", "no section\n", "[dcf]\nx = not a module!\n"])
def test_damaged_entry_points_do_not_hide_the_others(tmp_path, monkeypatch, entries):
    install(tmp_path, "dcf-damaged", "1.0", entries)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reg = Registry.discover({})
    assert "pixels" in reg.names("param")


def test_damaged_metadata_does_not_hide_the_others(tmp_path, monkeypatch):
    info = install(tmp_path, "dcf-damaged", "1.0", "[dcf]\ndamaged = dcf_damaged\n")
    (info / "METADATA").write_text("nothing here\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reg = Registry.discover({})
    assert "pixels" in reg.names("param")
    assert any(p.plugin == "damaged" for p in reg.problems)


def test_component_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "half_a_plugin.py").write_text("raise RuntimeError('no\\nsuch thing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(dcf.PluginError, match=r"param.* 'x' cannot be loaded\n.*RuntimeError: no such thing"):
        Component("param", "x", "half_a_plugin:X", "made for a test").load()


def test_options_that_are_no_config_are_a_problem_of_the_plugin(monkeypatch):
    broken = Component("param", "x", "json:JSONDecoder", "made for a test", config="json:JSONDecoder")
    with pytest.raises(dcf.PluginError, match="gives no options"):
        broken.load_config()


def test_what_a_plugin_prints_does_not_reach_stdout(tmp_path, monkeypatch, capsys):
    (tmp_path / "chatty_plugin.py").write_text("print('hello')\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = metadata.EntryPoint("chatty", "chatty_plugin", "dcf")
    Candidate("chatty", "dcf-chatty", "1", (), entry_point=found).load()
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")
