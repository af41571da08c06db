"""The command line itself: messages, exit status, plugins' commands, listings."""

import errno
import json
import logging
import sys
import types
from functools import partial
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import dcf
from dcf.cli import app as app_module
from dcf.cli import main, plugins
from dcf.cli.console import clean
from dcf.cli.entry import explain
from dcf.cli.later import add_later
from dcf.cli.options import baseline_rows, in_flags, set_options
from dcf.errors import BudgetError, NonFiniteError, SpecError, UsageError
from dcf.registry import Candidate, Registry, registry


@pytest.fixture(autouse=True)
def _restored_logging():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.level, root.handlers = level, handlers
    logging.captureWarnings(False)


def plugin(name, **hooks):
    module = types.ModuleType(f"dcf_{name}")
    for hook, function in hooks.items():
        setattr(module, hook, dcf.hookimpl(function))
    return Candidate(name, f"dcf-{name}", "1.2", module=module)


# --- text of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x07", "?[31mred?"),
        ("two\nlines\r", "two?lines?"),
        ("a\u202eb", "a?b"),
        ("\ud800", "?"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        (3, "3"),
        ("é 字", "é 字"),
    ],
)
def test_clean_leaves_nothing_that_steers_a_terminal(text, shown):
    assert clean(text) == shown


def test_clean_bounds_length():
    assert clean("x" * 10, 10) == "x" * 10
    assert clean("x" * 11, 10) == "x" * 7 + "..."
    assert len(clean("x" * 10**6)) == 100


# --- failures --------------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """Stands for torch's, which is known by its name."""


@pytest.mark.parametrize(
    ("problem", "status", "says"),
    [
        (UsageError("no"), 2, "no"),
        (BudgetError("small"), 2, "small"),
        (NonFiniteError("NaN at 3"), 1, "NaN at 3"),
        (SpecError("no x", "x:a=1", (2, 3), ["options: b"], "--param"), 2, "  --param x:a=1\n            ^"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), 1, "No space left on device: '/runs/a'"),
        (PermissionError(errno.EACCES, "Permission denied"), 1, "Permission denied"),
        (OutOfMemoryError("CUDA out of memory. Tried\nmore"), 1, "--class-chunk"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory"), 1, "--class-chunk"),
        (MemoryError(), 1, "out of memory: MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Abort(), 130, "interrupted"),
        (ZeroDivisionError("x / 0"), 1, "internal error: ZeroDivisionError: x / 0; run again with DCF_DEBUG=1"),
    ],
)
def test_every_exception_becomes_a_message_and_a_status(problem, status, says):
    message, code = explain(problem)
    assert code == status
    assert says in message


def test_an_interruption_while_the_program_is_imported_says_so_too(capsys, monkeypatch):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dcf.cli.entry", Interrupted())
    assert main(["--help"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_command_that_is_interrupted_says_so_once(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(plugins, "_named", interrupted)
    assert main(["describe", "x"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_errors_are_printed_as_they_are(capsys, monkeypatch):
    def fail(*_):
        raise SpecError("no [bold]x[/bold]\x1b[2J", "a" * 150 + ":[b]", (150, 154))

    monkeypatch.setattr(plugins, "_named", fail)
    assert main(["describe", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: no [bold]x[/bold]?[2J"
    assert lines[2].index("^") == lines[1].index(":[b]"), "the caret line was wrapped or moved"


def test_without_arguments_the_help_is_shown(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert "condense" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize("argv", [["-q", "list-plugins"], ["list-plugins", "-q"], ["list-plugins", "--debug"]])
def test_common_options_may_stand_anywhere(argv, capsys):
    assert main(argv) == 0
    assert "pixels" in capsys.readouterr().out


def test_verbosity_chooses_what_is_logged(capsys, monkeypatch):
    def speak(*_):
        for name in ("dcf.x", "dcf_plugin.y", "elsewhere"):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger(name).log(level, "%s %s", name, logging.getLevelName(level))

    def logged(*argv):
        monkeypatch.setattr(plugins, "_named", speak)
        main([*argv, "describe", "x"])
        return [line for line in capsys.readouterr().err.splitlines() if line.split()[-1].isupper()]

    warnings = ["warning: dcf.x WARNING", "warning: dcf_plugin.y WARNING", "warning: elsewhere WARNING"]
    assert logged("-q") == warnings
    assert logged() == ["dcf.x INFO", warnings[0], "dcf_plugin.y INFO", *warnings[1:]]
    assert len(logged("-v")) == 7  # the two loggers of ours at three levels, warnings of others


def test_logging_is_left_as_it_was():
    root = logging.getLogger()
    before = list(root.handlers), root.level
    main(["-v", "list-plugins"])
    assert (list(root.handlers), root.level) == before


# --- options ---------------------------------------------------------------------------------------------------------


def test_set_options_split_at_the_first_equals_sign():
    assert set_options(["a.b=c=d", "e="]) == {"a.b": "c=d", "e": ""}
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError, match="--set"):
            set_options(wrong)


@pytest.mark.parametrize(
    ("text", "rows"),
    [(None, None), ("auto", "auto"), ("none", ()), ("random", ("random",)), ("whole, random", ("whole", "random"))],
)
def test_baselines_are_a_list(text, rows):
    assert baseline_rows(text) == rows


def test_settings_are_named_as_their_options():
    def told(text):
        return str(in_flags(UsageError(text)))

    assert told("run: option 'networks' expects int | None >= 1, got '0'") == "--nets expects int >= 1, got '0'"
    assert told("run: option 'class_chunk' expects x") == "--class-chunk expects x"
    assert told("run: give either") == "give either"
    error = SpecError("run: x", "run", (0, 1))
    assert in_flags(error) is error


# --- plugins ---------------------------------------------------------------------------------------------------------


def invoke(reg, *argv):
    app = typer.Typer(callback=lambda: None)
    app.command("condense")(lambda: None)
    app_module.add_plugin_commands(app, reg)
    return CliRunner().invoke(app, argv)


def test_plugins_add_commands():
    def dcf_commands(app):
        app.command("hello")(lambda: typer.echo("hello there"))
        group = typer.Typer(callback=lambda: None)
        group.command("deep")(lambda: typer.echo("deep down"))
        app.add_typer(group, name="more")

    reg = Registry.of([plugin("good", dcf_commands=dcf_commands)])
    assert invoke(reg, "hello").stdout == "hello there\n"
    assert invoke(reg, "more", "deep").stdout == "deep down\n"
    assert reg.problems == []


def half(app):
    app.command("half")(lambda: None)
    raise RuntimeError("boom\nbang")


def takes_core_name(app):
    app.command("condense")(lambda: typer.echo("mine"))


def wrong_annotation(app):
    def broken(x: int | str): ...

    app.command("broken")(broken)


def leaves(app):
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (half, "RuntimeError: boom bang"),
        (takes_core_name, "the command 'condense' exists already"),
        (wrong_annotation, "AssertionError"),
        (leaves, "SystemExit"),
    ],
)
def test_a_bad_command_hook_is_a_problem_and_the_rest_works(hook, reason):
    def dcf_commands(app):
        app.command("hello")(lambda: typer.echo("hello there"))

    reg = Registry.of([plugin("bad", dcf_commands=hook), plugin("good", dcf_commands=dcf_commands)])
    assert invoke(reg, "hello").stdout == "hello there\n"
    assert invoke(reg, "condense").stdout == ""
    assert invoke(reg, "half").exit_code == 2
    assert reason in reg.problems[0].reason
    assert "dcf_commands" in reg.problems[0].reason
    assert reg.problems[0].distribution == "dcf-bad"


def test_a_command_is_imported_when_it_is_run(monkeypatch):
    imported = []

    def add_to(app):
        imported.append(1)
        app.command("hello")(lambda: typer.echo("hello there"))
        app.command("other")(lambda: None)

    monkeypatch.setitem(sys.modules, "later_module", SimpleNamespace(add_to=add_to))
    hook = partial(add_later, name="hello", target="later_module:add_to", summary="Say hello.")
    reg = Registry.of([plugin("good", dcf_commands=lambda app: hook(app))])
    assert "Say hello." in invoke(reg, "--help").stdout
    assert imported == []
    assert invoke(reg, "hello").stdout == "hello there\n"
    assert imported == [1]
    assert invoke(reg, "other").exit_code == 2


def absent(app): ...


def breaks(app):
    raise RuntimeError("boom\nbang")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (absent, "'later_module:add_to' failed: KeyError: 'hello'"),
        (breaks, "'later_module:add_to' failed: RuntimeError: boom bang"),
        (leaves, "'later_module:add_to' failed: SystemExit: 3"),
        (None, "'later_module:add_to' failed: ModuleNotFoundError: "),
    ],
)
def test_a_command_that_cannot_be_imported_says_why_and_the_rest_works(monkeypatch, capsys, function, reason):
    monkeypatch.setitem(sys.modules, "later_module", function and SimpleNamespace(add_to=function))
    hook = partial(add_later, name="hello", target="later_module:add_to", summary="Say hello.")
    reg = Registry.of([plugin("bad", dcf_commands=lambda app: hook(app))])
    monkeypatch.setattr(app_module, "registry", lambda: reg)
    assert main(["--help"]) == 0
    assert "Say hello." in capsys.readouterr().out
    assert main(["hello"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: the command 'hello' cannot be loaded\n  reason: {reason}")
    assert len(shown.err.splitlines()) == 2
    monkeypatch.setattr("dcf.cli.doctor.registry", lambda: reg)
    assert main(["doctor"]) == 1
    assert f"hello: the command 'hello' cannot be loaded reason: {reason}"[:75] in " ".join(
        capsys.readouterr().out.split()
    )
    monkeypatch.setenv("DCF_STRICT", "1")
    assert main(["--help"]) == 2
    assert reason in capsys.readouterr().err


@pytest.fixture
def troubled(monkeypatch):
    """A registry with one good, one conflicting pair and one incompatible plugin."""

    def matcher(name):
        return lambda: [dcf.Component("matcher", name, "none:None", "[bold]a matcher[/bold]")]

    reg = Registry.of(
        [
            plugin("aa", dcf_components=matcher("fine")),
            plugin("bb", dcf_components=matcher("same")),
            plugin("cc", dcf_components=matcher("same")),
            Candidate("old", "dcf-old", "0.0", ("dcf-core>=99",)),
        ]
    )
    for module in (plugins, app_module):
        monkeypatch.setattr(module, "registry", lambda: reg)
    return reg


def test_list_plugins_shows_problems_last(troubled, capsys):
    assert main(["list-plugins"]) == 0
    shown = capsys.readouterr()
    rows = shown.out.splitlines()
    assert rows[0].split() == ["kind", "name", "plugin", "version", "summary"]
    assert rows[1].split() == ["matcher", "fine", "dcf-aa", "1.2", "[bold]a", "matcher[/bold]"]
    assert [r.split()[2] for r in rows[2:]] == ["dcf-old", "dcf-bb", "dcf-cc"]
    assert "! conflict: matcher 'same' is provided by" in rows[3]
    assert "! not loaded: needs dcf-core >=99" in rows[2]
    assert shown.err.count("warning: plugin") == 3


def test_list_plugins_for_machines(troubled, capsys):
    assert main(["list-plugins", "--json", "--kind", "matcher"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in told["components"]] == ["fine"]
    assert [p["distribution"] for p in told["problems"]] == ["dcf-old", "dcf-bb", "dcf-cc"]
    assert told["problems"][1]["components"] == [{"kind": "matcher", "name": "same"}]


def test_list_plugins_times_imports(capsys):
    assert main(["list-plugins", "--times", "--kind", "param"]) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert "import" in header
    assert " ms " in first


def test_describe_of_a_conflict_repeats_the_reason(troubled, capsys):
    assert main(["describe", "same"]) == 2
    assert "use DCF_BLOCK=NAME" in capsys.readouterr().err


def test_describe_shows_options_of_all_kinds_of_that_name(capsys):
    assert main(["describe", "random"]) == 0
    shown = capsys.readouterr().out
    assert "selector random" in shown
    assert "recipe random" in shown
    assert main(["describe", "folder", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)["components"]
    row = next(o for o in told["options"] if o["option"] == "path")
    assert row["default"] == "required"
    assert row["description"]


@pytest.mark.parametrize("item", registry().items(), ids=lambda i: f"{i.component.kind}-{i.component.name}")
def test_everything_installed_can_be_described(item, capsys):
    assert main(["describe", item.component.name, "--kind", str(item.component.kind)]) == 0
    assert item.component.summary in " ".join(capsys.readouterr().out.split())


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_recipes_put_measured_beside_published(monkeypatch, capsys):
    from dcf.cli import recipes
    from dcf.recipes import Recipe

    value = {"data": "digits", "ipc": 1, "protocol": "p@1"}
    recipe = Recipe.model_validate(
        {
            "recipe": {"name": "random", "summary": "the [red] one"},
            "run": {"iterations": 3},
            "published": [{**value, "accuracy": 70.1, "std": 0.5, "source": "Table 1"}],
            "measured": [
                {**value, "accuracy": 69.8, "n": "1 x 5", "hardware": "a CPU", "version": "0.1.0"},
                {**value, "ipc": 10, "accuracy": 80.0},
            ],
        }
    )
    monkeypatch.setattr(recipes, "all_recipes", lambda: {"random": recipe})
    assert main(["recipes", "random"]) == 0
    shown = capsys.readouterr().out
    first, second = [line.split() for line in shown.splitlines() if line.startswith("digits")]
    assert " ".join(first) == "digits 1 convnet 70.1 ± 0.5 Table 1 69.8 1 x 5 p@1 a CPU, dcf 0.1.0"
    assert " ".join(second) == "digits 10 convnet - 80.0 p@1"
    assert "the [red] one" in shown
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipes"][0]["published"][0]["source"] == "Table 1"


# --- doctor ----------------------------------------------------------------------------------------------------------


def test_doctor_fails_when_something_is_broken(monkeypatch, capsys):
    from dcf.cli import doctor

    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out

    def sick():
        raise ImportError("libcudart.so is missing")
        yield

    monkeypatch.setattr(doctor, "_compute", sick)
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert {"name": "sick", "status": "broken", "text": "ImportError: libcudart.so is missing"} in told["findings"]


@pytest.mark.parametrize(
    ("kind", "compiler", "says"),
    [
        ("bf16", "g++", "compiled kernels, in bf16"), ("fp32", "g++", "has no AMX"),
        ("other", "g++", "no compiled kernels"), ("bf16", None, "no compiled kernels"),
    ],
)  # fmt: skip
def test_doctor_says_what_long_runs_are_computed_with(kind, compiler, says, monkeypatch, capsys):
    from dcf.cli import doctor

    monkeypatch.setattr("dcf.compiled.arithmetic", lambda device: kind)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: compiler)
    assert main(["doctor", "--json"]) == 0
    (found,) = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["name"] == "kernels"]
    assert says in found["text"]
    assert (found["status"] == "ok") is (kind != "other" and compiler is not None)


def test_doctor_notices_a_directory_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    from dcf.cli import doctor

    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert main(["doctor"]) == 1
    assert "Permission denied" in capsys.readouterr().out
