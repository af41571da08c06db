"""Methods, settings and points of a bench: what is read, and what is refused."""

import json
import sys

import pytest

from dcf.bench.methods import parse_method, split_methods, split_top
from dcf.bench.plan import plan
from dcf.bench.settings import read_settings, sweep_option
from dcf.cli import main
from dcf.errors import SpecError, UsageError

TINY = {"sets": 1, "nets": 1}


def settings(**given):
    return read_settings(None, {**TINY, **given})


def from_file(tmp_path, text, **given):
    file = tmp_path / "bench.toml"
    file.write_text(text)
    return read_settings(file, given)


# --- the language of methods -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a,b", ["a", "b"]),
        ("a:x=1,y=2,b", ["a:x=1,y=2", "b"]),
        ("a:ops=[c,d],b:k='1,2',c", ["a:ops=[c,d]", "b:k='1,2'", "c"]),
        ("a:k=(m:x=1,y=2),b+c:r=2,init=svd,d", ["a:k=(m:x=1,y=2)", "b+c:r=2,init=svd", "d"]),
        ("matcher:a,b", ["matcher:a", "b"]),
    ],
)
def test_methods_are_split_at_commas_that_begin_no_option(text, pieces):
    assert split_methods([text]) == pieces


def test_an_option_never_belongs_to_a_method_of_another_flag():
    assert split_methods(["a", "x=1"]) == ["a", "x=1"]


def test_a_missing_method_is_refused():
    with pytest.raises(UsageError, match="missing between two commas"):
        split_methods(["a,,b"])


def test_split_top_leaves_wrong_brackets_to_the_parser():
    assert split_top("a]+b", "+") == ["a]+b"]


def test_a_recipe_comes_before_matcher_and_selector():
    assert parse_method("random").settings == {"recipe": "random"}
    assert parse_method("selector:random").settings == {"matcher": "none", "iterations": 0, "init": "random"}
    assert parse_method("matcher:none").settings == {"matcher": "none"}
    assert parse_method("noise").settings["init"] == "noise"


def test_what_follows_is_sorted_by_kind():
    method = parse_method("matcher:none+pixels+network:convnet:width=8+noise+augmenter:none")
    assert method.settings == {
        "matcher": "none",
        "param": "pixels",
        "network": "convnet:width=8",
        "init": "noise",
        "augment": "none",
    }
    assert method.label.startswith("matcher:none+pixels")


def test_parameterizations_stack():
    assert parse_method("random+pixels+param:pixels").settings["param"] == "pixels+pixels"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rndom", "did you mean 'random'"),
        ("pixels", "'pixels' is a parameterization; write METHOD+pixels"),
        ("random+matcher:none", "is expected here"),
        ("random+", "expected a component's name"),
        ("random+nothing", "no parameterization, augmenter, network or selector named 'nothing'"),
    ],
)
def test_a_wrong_method_says_what_could_stand_there(text, says):
    with pytest.raises(SpecError) as error:
        parse_method(text)
    assert says in str(error.value)


# --- settings --------------------------------------------------------------------------------------------------------


def test_budgets_of_both_kinds_are_one_list():
    assert settings().budgets == ("ipc=1",)
    assert settings(ipc=("1", "10"), budget=("bytes=100", "ipc=1")).budgets == ("ipc=1", "ipc=10", "bytes=100")


def test_quick_is_small_unless_told():
    quick = read_settings(None, {"preset": "quick"})
    assert (quick.sets, quick.nets) == (1, 2)
    assert read_settings(None, {"preset": "quick", "sets": "2"}).sets == 2


def test_a_file_is_read_and_options_win(tmp_path):
    text = 'data = "digits"\nipc = [1, 2]\nsets = 2\nmethods = ["random"]\n[set]\nprotocol.epochs = 3\n'
    found = from_file(tmp_path, text, sets="1", ipc=("5",), methods=("noise",))
    assert (found.sets, found.budgets) == (1, ("ipc=5",))
    assert [m.label for m in found.all_methods()] == ["random", "noise"]
    assert found.set == {"protocol.epochs": "3"}


def test_tables_of_methods(tmp_path):
    text = """
    [[method]]
    name = "small"
    spec = "random"
    network = "convnet:width=8"
    [method.set]
    protocol.epochs = 3
    [method.sweep]
    "network.depth" = [1, 2]
    """
    (method,) = from_file(tmp_path, text).all_methods()
    assert method.label == "small"
    assert method.settings == {"recipe": "random", "network": "convnet:width=8"}
    assert method.changes == {"protocol.epochs": "3"}
    assert method.sweep == {"network.depth": ("1", "2")}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dat = 1", "bench has no option 'dat'"),
        ("sets = 0", "option 'sets' expects int >= 1"),
        ("sets = ", "cannot read"),
        ('budget = ["12"]', "expected a budget such as"),
        ('[[method]]\nspec = "random"\nseed = 1', "'seed' is the same for all methods"),
        ('[[method]]\nspec = "random"\nfoo = 1', "has no option 'foo'"),
        ("[[method]]\niterations = 1", "expected a 'spec', a 'recipe' or a 'matcher'"),
        (
            '[[method]]\nmatcher = "dm"\n[method.sweep]\n"param.r" = []',
            "sweep of 'param.r': expected at least one value",
        ),
        ('[[method]]\nspec = "dm"\nmatcher = "dc"', "'matcher' and the spec 'dm' say the same thing twice"),
        ('[[method]]\nspec = "dm+pixels"\nparam = "lowrank:r=2"', "'param' and the spec 'dm+pixels' say the same"),
        ('[[method]]\nspec = "rndom"', "no recipe, matcher or selector named 'rndom'"),
        ('[[method]]\nspec = "random"\n[[method]]\nspec = "random"', "two methods are called 'random'"),
    ],
)
def test_a_wrong_file_is_one_message(tmp_path, text, says):
    with pytest.raises(UsageError) as error:
        from_file(tmp_path, text).all_methods()
    assert says in str(error.value)


def test_sweep_values_may_hold_brackets():
    assert sweep_option("network.norm=[a,b],c") == ("network.norm", ("[a,b]", "c"))
    with pytest.raises(UsageError, match="expected key=value"):
        sweep_option("param.r")


# --- points ----------------------------------------------------------------------------------------------------------


def points(**given):
    return plan(settings(**given))


def test_points_are_methods_by_sweep_by_data_by_budget():
    found = points(methods=("random", "noise"), ipc=("1", "2"), sweep={"network.width": ("4", "8")})
    assert len(found) == 2 * 2 * 2
    assert found[0].sweep == {"network.width": "4"}
    assert [p.request.settings["ipc"] for p in found] == [1, 1, 1, 1, 2, 2, 2, 2]


def test_only_methods_that_have_an_option_are_swept():
    found = points(methods=("selector:random", "random+mlp"), sweep={"network.width": ("4", "8")})
    assert [(p.label, dict(p.sweep)) for p in found] == [
        ("selector:random", {"network.width": "4"}),
        ("selector:random", {"network.width": "8"}),
        ("random+mlp", {}),
    ]
    with pytest.raises(UsageError, match="no method of this bench has the option 'r'"):
        points(methods=("random",), sweep={"network.r": ("4", "8")})


def test_a_swept_budget_stands_for_the_benchs():
    found = points(methods=("random",), ipc=("1", "2"), sweep={"ipc": ("3", "4")})
    assert [p.request.settings["ipc"] for p in found] == ["3", "4"]


def test_one_protocol_for_all_unless_a_recipe_is_to_keep_its_own():
    (one,) = points(methods=("random",))
    assert one.request.settings["protocol"] == "dcf-std@1"
    (own,) = points(methods=("random",), data=("mnist",), protocol="recipe")
    assert own.request.settings["protocol"] != "dcf-std@1"


def test_equal_changes_of_a_protocol_are_equal_however_they_are_written():
    (a,) = points(methods=("random",), protocol="dcf-std@1[epochs=7]")
    (b,) = points(methods=("random",), override={"protocol.epochs": "7"})
    (c,) = points(methods=("random",), override={"protocol.epochs": "30"})
    assert a.request.settings["protocol_set"] == b.request.settings["protocol_set"] == {"epochs": 7}
    assert c.request.settings["protocol_set"] == {}


def test_quick_takes_a_tenth_and_the_id_says_so():
    (point,) = points(methods=("matcher:none",), preset="quick")
    assert point.request.settings["protocol_set"] == {"epochs": 3, "steps_min": 100}
    assert point.shortened
    (told,) = points(methods=("matcher:none",), preset="quick", override={"iterations": "9", "protocol.epochs": "8"})
    assert told.request.settings["protocol_set"] == {"epochs": 8, "steps_min": 100}
    assert not told.shortened


def test_what_a_method_says_wins_over_the_file_and_the_command_line_over_both(tmp_path):
    text = '[set]\nlr = 1\n[[method]]\nmatcher = "none"\nname = "a"\nlr = 2\n[[method]]\nmatcher = "none"\nname = "b"'
    found = plan(from_file(tmp_path, text))
    assert [p.request.settings["lr"] for p in found] == [2, "1"]
    found = plan(from_file(tmp_path, text, override={"lr": "3"}))
    assert [p.request.settings["lr"] for p in found] == ["3", "3"]


def test_what_the_bench_decides_cannot_be_changed_for_one_row():
    with pytest.raises(UsageError, match="'seed' is the same for all rows"):
        points(methods=("random",), override={"seed": "3"})


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["bench", "tabel"], "did you mean 'dcf bench table'?"),
        (["bench", "no.toml"], "there is no file 'no.toml'"),
        (["bench", "--methods", "nope"], "no recipe, matcher or selector named 'nope'"),
        (["bench", "run", "--methods", "random", "--sets", "x"], "option 'sets' expects int"),
        (["bench", "--sweep", "lr"], "expected key=value,value"),
        (["bench", "--methods", "random", "--set", "init.x=1"], "random has no option 'x'"),
        (["bench", "plot", "x", "-o", "y.gif"], "expected a file ending in .png or .svg"),
        (["bench", "--device", "x", "--methods", "random"], "expected auto, cpu, cuda"),
        (["recipes", "--sets", "2"], "go with --verify NAME"),
        (["recipes", "random", "--verify", "random"], "give one name"),
        (["recipes", "--verify", "random", "--ipc", "77"], "has no value for that"),
    ],
)
def test_wrong_usage(argv, says, capsys):
    assert main(argv) == 2
    assert says in capsys.readouterr().err


def test_a_plan_is_shown_and_nothing_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--methods", "random,noise", "--sets", "2", "--nets", "1", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "noise, digits, ipc=1: digits-noise-ipc1-s0-" in shown
    assert "random, digits, ipc=1: digits-random-ipc1-s0-" in shown
    assert shown.count("(new)") == 5  # two methods of two sets, and the whole training set
    assert list(tmp_path.iterdir()) == []
    assert main(["bench", "--methods", "random", "--dry-run", "--json"]) == 0
    assert {row["label"] for row in json.loads(capsys.readouterr().out)["rows"]} == {"random", "whole"}


def test_commands_that_only_read_need_no_torch(tmp_path):
    import subprocess

    code = "import sys; from dcf.cli import main; main(['bench', 'table', 'x']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0
