"""Tables, differences and plots of benches, on made-up values."""

import csv
import io
import json
import math
import random
from statistics import fmean

import pytest
import typer

from dcf.bench.compare import difference, random_of
from dcf.bench.diff import diff, diff_json, diff_sheet
from dcf.bench.formats import csv_text, latex_text, markdown_text
from dcf.bench.model import Bench, BenchRow, CellRecord, Failure, read_bench
from dcf.bench.plot import axis_of, curves, save_plot
from dcf.bench.table import long_sheet, pivot_sheet, shown_rows
from dcf.cli import main
from dcf.errors import FormatError, UsageError
from dcf.evaluation.statistics import summarize
from dcf.figures import as_label


def row(label="a", values=((0.5, 0.6), (0.55, 0.65)), role="method", **changes):
    shape = [len(v) for v in values]
    seeds = tuple(tuple(100 * s + n for n in range(size)) for s, size in enumerate(shape))
    fields = {
        "label": label,
        "role": role,
        "specs": {"matcher": "none" if role == "random" else label, "param": "pixels", "init": "random"},
        "data": {"spec": "digits", "id": "digits", "checksum": "abc"},
        "budget": None if role == "whole" else "ipc=1",
        "iterations": 5,
        "floats": 640,
        "bytes": 2560,
        "views": 1.0,
        "protocol": "p@1",
        "protocol_hash": "0123456789abcdef",
        "augment": "none",
        "network": "convnet",
        "sets": len(values) or 1,
        "nets": 2,
        "values": values,
        "numbers": tuple(range(len(values))),
        "net_seeds": seeds,
        "stat": summarize(values) if values else None,
        "cells": tuple(
            CellRecord(set=s, seed=s, directory=f"cells/{label}-{s}", state="done") for s in range(len(values))
        ),
        **changes,
    }
    return BenchRow(**fields)


RANDOM = row("random", ((0.3, 0.35), (0.32, 0.3)), "random")
WHOLE = row("whole", (), "whole", note="not run (about 1e+09 images through the network; --whole runs it)")


def bench(*rows, preset="std", name="b", **more):
    return Bench(preset=preset, settings={}, rows=rows, name=name, **more)


def saved(path, *rows, **more):
    path.mkdir()
    bench(*rows, name=path.name, **more).write(path / "bench.json")
    return path


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_bench_is_read_back_from_its_file_and_its_directory(tmp_path):
    path = saved(tmp_path / "b", row(), RANDOM)
    assert read_bench(path) == read_bench(path / "bench.json") == bench(row(), RANDOM)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "dcf.bench/9"}', "[1]", "\x00"])
def test_what_is_no_bench_is_refused(tmp_path, text):
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(FormatError, match=r"not a bench of schema 'dcf.bench/1'"):
        read_bench(tmp_path)


def test_a_bench_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FormatError, match="there is no bench"):
        read_bench(tmp_path / "none")


# --- differences -----------------------------------------------------------------------------------------------------


def test_equal_networks_are_compared_in_pairs():
    a, b = row("a", ((0.5, 0.9), (0.4, 0.8))), row("b", ((0.4, 0.8), (0.3, 0.7)))
    found = difference(a, b)
    assert found.mean == pytest.approx(0.1)
    assert found.basis.startswith("paired")
    # The difference is the same for every network: there is no spread, however different the networks are.
    assert found.interval == pytest.approx((0.1, 0.1))
    assert found.beyond


def test_other_networks_are_compared_by_their_own_spreads():
    a = row("a", ((0.5, 0.9), (0.4, 0.8)))
    b = row("b", ((0.4, 0.8), (0.3, 0.7)), net_seeds=((7, 8), (9, 10)))
    found = difference(a, b)
    assert found.basis == "unpaired"
    assert not found.beyond
    half = (found.interval[1] - found.interval[0]) / 2
    # Within-set variances are 0.08 each, over 4 networks: variance of the difference 0.04, with 4 degrees of freedom.
    assert half == pytest.approx(2.7764 * math.sqrt(0.04), rel=1e-3)


def test_three_sets_are_compared_by_their_means():
    a = row("a", ((0.5,), (0.6,), (0.7,)), net_seeds=((1,), (2,), (3,)))
    found = difference(a, row("b", ((0.1,), (0.2,), (0.3,))))
    assert (found.interval[1] - found.interval[0]) / 2 == pytest.approx(2.7764 * math.sqrt(2 * 0.01 / 3), rel=1e-3)
    assert found.beyond


def test_single_values_give_a_difference_without_interval():
    found = difference(row("a", ((0.5,),)), row("b", ((0.4,),), net_seeds=((9,),)))
    assert found.interval is None
    assert not found.beyond


def test_nothing_is_compared_before_there_are_values():
    assert difference(row(), WHOLE) is None


def test_welch_interval_holds_the_truth_19_times_in_20():
    draw = random.Random(3)
    hits = 0
    for _ in range(400):
        sample = lambda spread: tuple((draw.gauss(0.5, spread),) for _ in range(4))  # noqa: E731
        a, b = row("a", sample(0.05)), row("b", sample(0.01), net_seeds=((9,),) * 4)
        low, high = difference(a, b).interval
        hits += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_a_row_is_compared_with_random_images_of_its_own_circumstances():
    other = row("random", ((0.2, 0.2),), "random", augment="x")
    larger = row("random", ((0.9, 0.9),), "random", budget="ipc=2")
    rows = [other, larger, RANDOM]
    assert random_of(row(), rows) is RANDOM
    assert random_of(row(augment="x"), rows) is other
    assert random_of(row(network="mlp"), rows) is None


# --- tables ----------------------------------------------------------------------------------------------------------


def test_rows_of_two_protocols_are_refused_unless_a_column_says_so():
    two = bench(row(), row("b", protocol="q@1", protocol_hash="f" * 16))
    with pytest.raises(UsageError, match=r"2 protocols.*\n.*p@1.*\n.*q@1.*\n.*--mixed"):
        shown_rows([two])
    sheet = long_sheet(shown_rows([two], mixed=True))
    at = sheet.columns.index("protocol")
    assert [line[at] for line in sheet.rows] == ["p@1", "q@1"]
    assert pivot_sheet(shown_rows([two], mixed=True)).columns[:2] == ["method", "protocol"]
    assert "protocol" not in long_sheet(shown_rows([bench(row())])).columns


def test_protocols_of_one_name_and_two_contents_are_two():
    two = bench(row(), row("b", protocol_hash="f" * 16))
    with pytest.raises(UsageError, match="2 protocols"):
        shown_rows([two])
    sheet = long_sheet(shown_rows([two], mixed=True))
    assert [line[sheet.columns.index("protocol")] for line in sheet.rows] == ["p@1 01234567", "p@1 ffffffff"]


def test_the_long_table_says_result_number_and_gain():
    sheet = long_sheet(shown_rows([bench(row(), RANDOM, WHOLE)]))
    first = dict(zip(sheet.columns, sheet.rows[0], strict=True))
    assert first["accuracy"] == "57.5 ± 5.6"
    assert first["n"] == "2 x 2"
    assert first["vs random"].startswith("+25.7 [")
    assert first["stored bytes"] == "2,560"
    assert sheet.rows[2][3] == "-"
    assert any("--whole runs it" in note for note in sheet.notes)


def test_a_row_with_missing_sets_says_so():
    cells = tuple(CellRecord(set=s, seed=s, directory="c", state="done" if s else "failed") for s in range(3))
    part = row(values=((0.5, 0.6), (0.5, 0.7)), cells=cells)
    found = bench(part, RANDOM, failures=(Failure(cell="c", label="a", reason="it broke"),))
    sheet = long_sheet(shown_rows([found]))
    assert sheet.rows[0][sheet.columns.index("n")] == "2 x 2 (2 of 3 sets)"
    assert "failed: c: it broke" in sheet.notes


def test_quick_is_marked_everywhere():
    quick = bench(row(), RANDOM, preset="quick")
    shown = shown_rows([quick])
    assert "not comparable" in long_sheet(shown).rows[0][-1]
    assert "not comparable" in pivot_sheet(shown).rows[0][0]
    assert ",no," in csv_text(shown)
    for text in (markdown_text(long_sheet(shown)), latex_text(pivot_sheet(shown))):
        assert "NOT COMPARABLE" in text


def test_baselines_of_two_augmentations_have_two_names():
    rows = [row(), row("b", augment="x"), RANDOM, row("random", ((0.2, 0.3),), "random", augment="x")]
    labels = [one.label for one in shown_rows([bench(*rows)])]
    assert labels == ["a", "b", "random (no augmentation)", "random (x)"]


def test_the_pivot_has_a_column_for_each_dataset_and_budget():
    more = row(budget="ipc=2", values=((0.7, 0.7),))
    whole = row("whole", ((0.9,),), "whole")
    sheet = pivot_sheet(shown_rows([bench(row(), more, RANDOM, whole)]))
    assert sheet.columns == ["method", "ipc=1", "ipc=2"]
    assert "data: digits" in sheet.notes
    assert sheet.rows == [["a", "57.5 ± 5.6", "70.0 ± 0.0"], ["random", "31.8 ± 2.0", ""], ["whole", "90.0", "90.0"]]


def test_the_pivot_names_datasets_where_there_are_several():
    other = row(data={"spec": "mnist", "id": "mnist", "checksum": "1"})
    assert pivot_sheet(shown_rows([bench(row(), other)])).columns == ["method", "digits ipc=1", "mnist ipc=1"]


def test_markdown_latex_and_csv():
    odd = row("a_b|c & 5%", sweep={"param.r": "2"})
    shown = shown_rows([bench(odd, RANDOM)])
    assert "| a\\_b\\|c & 5% |" in markdown_text(long_sheet(shown))
    assert r"a\_b\textbar{}c \& 5\% & ipc=1" in latex_text(long_sheet(shown))
    lines = list(csv.DictReader(io.StringIO(csv_text(shown))))
    assert lines[0]["method"] == "a_b|c & 5%"
    assert float(lines[0]["mean"]) == odd.stat.mean
    assert float(lines[0]["vs_random"]) == pytest.approx(odd.stat.mean - RANDOM.stat.mean)
    assert lines[0]["sweep"] == "param.r=2"
    assert lines[1]["vs_random"] == ""


@pytest.mark.parametrize(
    ("label", "written"),
    [
        ("<b> > |x|", r"\textless{}b\textgreater{} \textgreater{} \textbar{}x\textbar{} & "),
        ("[1] of 2", "{}[1] of 2 & "),
        ("*", "{}* & "),
    ],
)
def test_latex_shows_what_a_label_says(label, written):
    lines = latex_text(long_sheet(shown_rows([bench(row(label), RANDOM)]))).splitlines()
    assert any(line.startswith(written) for line in lines)


def test_the_dataset_is_a_column_only_where_there_are_several():
    one = long_sheet(shown_rows([bench(row(), RANDOM)]))
    assert "data" not in one.columns
    assert "data: digits" in one.notes
    elsewhere = row(data={"spec": "mnist", "id": "mnist", "checksum": "1"})
    two = long_sheet(shown_rows([bench(row(), RANDOM, elsewhere)]))
    assert [cells[two.columns.index("data")] for cells in two.rows] == ["digits", "digits", "mnist"]


def test_a_csv_cell_is_no_formula():
    assert "'=1+1" in csv_text(shown_rows([bench(row("=1+1"))]))


@pytest.mark.parametrize("form", ["rich", "markdown", "csv", "latex"])
def test_the_command_writes_every_form(tmp_path, capsys, form):
    path = saved(tmp_path / "b", row(), RANDOM, WHOLE)
    assert main(["bench", "table", str(path), "--format", form]) == 0
    shown = capsys.readouterr().out
    assert "random" in shown
    assert "whole" in shown


def test_the_command_refuses_to_mix_protocols(tmp_path, capsys):
    path = saved(tmp_path / "b", row(), RANDOM)
    other = saved(tmp_path / "c", row("d", protocol="q@1"))
    assert main(["bench", "table", str(path), str(other)]) == 2
    assert "--mixed" in capsys.readouterr().err
    assert main(["bench", "table", str(path), str(other), "--mixed", "--pivot"]) == 0
    assert "q@1" in capsys.readouterr().out
    assert main(["bench", "table", str(path), "--pivot", "--format", "csv"]) == 2


# --- two benches -----------------------------------------------------------------------------------------------------


def test_diff_matches_rows_by_what_they_are_made_of():
    renamed = row("other name", ((0.6, 0.7), (0.65, 0.75)), specs=row().specs)
    pairs = diff(bench(row(), RANDOM), bench(renamed, row("new"), RANDOM))
    assert [(p.first and p.first.label, p.second and p.second.label) for p in pairs] == [
        ("a", "other name"),
        ("random", "random"),
        (None, "new"),
    ]
    assert pairs[0].change.mean == pytest.approx(0.1)
    assert pairs[0].change.beyond
    assert not pairs[1].change.beyond
    assert json.dumps(diff_json(pairs))


def test_rows_of_one_bench_that_are_made_of_the_same_are_matched_by_name():
    short, long = row("short", specs=row().specs), row("long", ((0.9, 0.9), (0.9, 0.9)), specs=row().specs)
    pairs = diff(bench(short, long), bench(long, short))
    assert [(p.first.label, p.second.label) for p in pairs] == [("short", "short"), ("long", "long")]


def test_other_protocols_are_other_rows():
    pairs = diff(bench(row()), bench(row(protocol="q@1")))
    assert [p.change for p in pairs] == [None, None]


def test_the_command_compares(tmp_path, capsys):
    a = saved(tmp_path / "one", row(), RANDOM)
    b = saved(tmp_path / "two", row("a", ((0.8, 0.9), (0.85, 0.95))), row("new"))
    assert main(["bench", "diff", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "beyond the spread" in shown
    assert "only in one" in shown
    assert "only in two" in shown
    assert main(["bench", "diff", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["beyond"] is True


def test_differences_say_which_swept_value_they_belong_to():
    one, two = bench(*swept("1", "2"), name="x"), bench(*swept("2", "4"), name="y")
    sheet = diff_sheet(diff(one, two), ("x", "y"))
    assert sheet.columns[:3] == ["method", "budget", "param.r"]
    assert [(r[2], r[-1]) for r in sheet.rows] == [("1", "only in x"), ("2", ""), ("4", "only in y")]
    assert "data: digits" in sheet.notes
    other = row(data={"spec": "mnist", "id": "mnist", "checksum": "1"})
    several = diff_sheet(diff(bench(row(), other), bench(row(), other)), ("x", "y"))
    assert [r[several.columns.index("data")] for r in several.rows] == ["digits", "mnist"]


def test_differences_of_precision_are_said():
    one, two = bench(row(precision="fp32"), name="x"), bench(row(precision="bf16 kernels"), name="y")
    assert diff_sheet(diff(one, two), ("x", "y")).rows[0][-1] == "fp32 against bf16 kernels"
    assert diff_json(diff(one, two))["rows"][0]["precisions"] == ["fp32", "bf16 kernels"]
    unknown = bench(row(), name="z")
    assert diff_sheet(diff(one, unknown), ("x", "z")).rows[0][-1] == ""


def test_check_of_a_bench_without_its_cells_says_so(tmp_path, capsys):
    path = saved(tmp_path / "b", row(), RANDOM)
    assert main(["bench", "check", str(path)]) == 1
    assert "none of the 4 cells of this bench is in" in capsys.readouterr().err


# --- plots -----------------------------------------------------------------------------------------------------------


def swept(*values, key="param.r", **more):
    return [row("s", ((0.4 + n / 10, 0.4),), sweep={key: v}, **more) for n, v in enumerate(values)]


def test_a_sweep_is_drawn_against_its_values_and_the_rest_level():
    shown = shown_rows([bench(*swept("4", "1", "2"), row("flat"), RANDOM, row("whole", ((0.9,),), "whole"))])
    assert axis_of(shown, None) == "param.r"
    found = {c.label: c for c in curves(shown, "param.r")}
    assert found["s"].x == (1.0, 2.0, 4.0)
    assert found["s"].mean[0] == pytest.approx(100 * fmean((0.5, 0.4)))
    assert found["flat"].x == found["random"].x == found["whole"].x == ()


def test_bytes_are_drawn_for_every_budget():
    rows = [row(bytes=n, budget=f"bytes={n}") for n in (100, 10)]
    rows += [row("random", ((0.3,),), "random", bytes=n, budget=f"bytes={n}") for n in (10, 100)]
    found = {c.label: c for c in curves(shown_rows([bench(*rows)]), "bytes")}
    assert found["a"].x == found["random"].x == (10.0, 100.0)


def test_random_images_of_a_swept_budget_stand_below_their_methods():
    rows = [row("s", sweep={"ipc": n}, budget=f"ipc={n}") for n in ("1", "2")]
    rows += [row("random", ((x, x),), "random", budget=f"ipc={n}") for n, x in (("1", 0.1), ("2", 0.2))]
    found = {c.label: c for c in curves(shown_rows([bench(*rows)]), "ipc")}
    assert found["random"].x == (1.0, 2.0)
    assert found["random"].mean == pytest.approx((10.0, 20.0))


def test_random_images_of_every_budget_are_level_below_another_sweep():
    rows = [r for n in ("1", "2") for r in swept("1", "2", budget=f"ipc={n}")]
    rows += [row("random", ((x, x),), "random", budget=f"ipc={n}") for n, x in (("1", 0.1), ("2", 0.2))]
    found = {c.label: c for c in curves(shown_rows([bench(*rows)]), "param.r")}
    for label, mean in (("random, ipc=1", 10.0), ("random, ipc=2", 20.0)):
        assert found[label].x == ()
        assert found[label].mean == pytest.approx((mean,))


def test_an_unknown_axis_is_refused():
    with pytest.raises(UsageError, match=r"expected one of bytes, floats, param\.r"):
        axis_of(shown_rows([bench(*swept("1", "2"))]), "param.q")


def test_words_can_be_swept(tmp_path):
    pytest.importorskip("matplotlib")
    shown = shown_rows([bench(*swept("svd", "normal", key="param.init"), RANDOM)])
    save_plot(shown, tmp_path / "words.svg", "param.init")
    assert (tmp_path / "words.svg").stat().st_size > 1000


def test_equal_rows_give_equal_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = saved(tmp_path / "b", *swept("1", "2", "4"), RANDOM, WHOLE, preset="quick")
    for name in ("a.svg", "b.svg", "a.png"):
        assert main(["bench", "plot", str(path), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.splitlines()[-1].endswith("a.png")


@pytest.mark.parametrize("label", ["costs $1, not $x^{$ 2", "_hidden", "two\nlines"])
def test_any_label_and_dataset_can_be_drawn(tmp_path, label):
    pytest.importorskip("matplotlib")
    named = {"spec": label, "id": label, "checksum": "1"}
    save_plot(shown_rows([bench(row(label, data=named))]), tmp_path / "odd.svg", "bytes")
    assert (tmp_path / "odd.svg").stat().st_size > 10_000


def test_a_legend_says_what_a_label_says():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    for label in ("_hidden", "$x^{$", r"\$", "a\n b"):
        axes.plot([0, 1], label=as_label(label))
    axes.figure.canvas.draw()
    shown = [text.get_text() for text in axes.legend().get_texts()]
    assert shown == [" _hidden", r"\$x^{\$", r"\\$", "a b"]
    axes.figure.canvas.draw()


def test_a_cell_that_failed_says_how_to_mend_it(tmp_path, caplog):
    from dcf.bench.run import BenchOutcome
    from dcf.cli.bench import _end

    with pytest.raises(typer.Exit):
        _end(BenchOutcome(bench(row()), tmp_path / "bench.json", {"c": "it broke\n  mend it so"}, False))
    assert caplog.messages == ["c failed: it broke\n  mend it so"]


def test_nothing_to_draw_is_said(tmp_path, capsys):
    path = saved(tmp_path / "b", row(values=()))
    assert main(["bench", "plot", str(path), "-o", str(tmp_path / "a.svg")]) == 2
    assert "nothing to draw" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    path = saved(tmp_path / "b", row())
    assert main(["bench", "plot", str(path), "-o", str(tmp_path / "a.svg")]) == 2
    assert "pip install 'dcf-core[plot]'" in capsys.readouterr().err
