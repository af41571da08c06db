"""`dcf condense`, `resume`, `evaluate` and their output, on tiny runs."""

import json
import logging
import tomllib
from types import SimpleNamespace

import pytest

from dcf.cli import display, main
from dcf.cli.display import clock
from dcf.cli.progress import RunProgress
from dcf.cli.results import figures_table, outcome_json, report_table, show_outcome, show_report
from dcf.evaluation.report import Report, Row, Run
from dcf.evaluation.statistics import summarize
from dcf.files import read_header
from dcf.runconfig import RunConfig

TINY = ["--matcher", "none", "--iterations", "2", "--ipc", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _restored_logging():
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.level, root.handlers = level, handlers
    logging.captureWarnings(False)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_dry_run_prints_a_config_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["condense", *TINY, "--dry-run", "--set", "protocol.epochs=7"]) == 0
    shown = capsys.readouterr().out
    config = RunConfig.model_validate(tomllib.loads(shown))
    assert (config.matcher, config.iterations, config.ipc) == ("none", 2, 1)
    assert config.protocol_set == {"epochs": "7"}
    for line in (
        "# items per class = 1",
        "# views per class = 1",
        "# bytes = 2560",
        "# floats = 640",
        "# store = fp32",
        "# budget = ipc=1, floats=640",
        "# utilisation = 100.0 %",
        "# iterations = 2",
    ):
        assert line in shown.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_dry_run_for_machines(capsys):
    assert main(["condense", "--matcher", "none", "--budget", "floats=1500", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["items_per_class"] == 2
    assert told["plan"]["utilisation"] == 1280 / 1500
    assert told["config"]["budget"] == "floats=1500"


def test_condense_prints_what_it_wrote_the_set_last(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["condense", *TINY, "--no-eval", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(out / "preview.png"), str(out / "synthetic.safetensors")]
    assert (out / "synthetic.safetensors").exists()
    assert "loading digits" in shown.err
    assert "stored: 640 floats, 2,560 bytes, as fp32, 10 views, 1 a class, 100.0 % of the budget" in shown.err
    assert main(["condense", *TINY, "--no-eval", "--out", str(out)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main(["-q", "condense", *TINY, "--no-eval", "--out", str(out), "--force", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["synthetic"] == str(out / "synthetic.safetensors")
    assert shown.err == ""


def test_run_directory_has_a_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["condense", *TINY, "--no-eval"]) == 0
    written = capsys.readouterr().out.splitlines()[-1]
    assert written.startswith("runs/digits")
    assert (tmp_path / written).exists()


def test_resume_evaluate_info_and_preview_take_a_run_directory(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["-q", "condense", *TINY, "--no-eval", "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["evaluated"] is False
    assert report["storage"]["payload_bytes"] == read_header(out / "synthetic.safetensors").nbytes
    assert main(["-q", "resume", str(out)]) == 0
    capsys.readouterr()
    assert main(["preview", str(out), "-o", str(tmp_path / "look.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'look.png'}\n"
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    assert main(["info", str(out)]) == 0
    assert "1 x 8 x 8" in capsys.readouterr().out


def test_evaluate_tells_what_rounding_would_do(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["-q", "condense", *TINY, "--no-eval", "--out", str(out)]) == 0
    before = (out / "synthetic.safetensors").read_bytes()
    quick = ["--nets", "1", "--epochs", "1", "--baselines", "none", "--network", "mlp"]
    told = {}
    for store in ("fp32", "fp16", "uint8"):
        capsys.readouterr()
        assert main(["-q", "evaluate", str(out), *quick, "--store", store, "--json"]) == 0
        told[store] = json.loads(capsys.readouterr().out)
    assert [t["rows"][0]["bytes"] for t in told.values()] == [2560, 1280, 720]
    assert [t["rows"][0]["floats"] for t in told.values()] == [640, 640, 660]
    assert len({t["sets"][0]["sha256"] for t in told.values()}) == 3
    assert (out / "synthetic.safetensors").read_bytes() == before
    assert main(["evaluate", str(out), "--store", "int4"]) == 2
    assert "--store expects 'fp32' | 'fp16' | 'uint8', got 'int4'" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["fp16", "uint8"])
def test_what_is_evaluated_is_what_the_file_gives_back(tmp_path, capsys, store):
    out = tmp_path / "run"
    judge = ["--nets", "1", "--epochs", "2", "--baselines", "none", "--network", "mlp"]
    assert main(["-q", "condense", *TINY, *judge, "--store", store, "--out", str(out), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["-q", "evaluate", str(out), *judge[:-2], "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"][0]["runs"] == first["report"]["rows"][0]["runs"]
    assert again["sets"] == first["report"]["sets"]
    assert again["sets"][0]["storage"] == first["storage"]
    assert main(["info", str(out)]) == 0
    assert f"as {store}, 10 views, 1 a class, 100.0 % of the budget (ipc=1" in capsys.readouterr().out


def test_evaluate_reports_a_table_json_and_a_file(tmp_path, capsys):
    out, report = tmp_path / "run", tmp_path / "report.json"
    assert main(["-q", "condense", *TINY, "--no-eval", "--out", str(out)]) == 0
    capsys.readouterr()
    quick = ["--nets", "1", "--epochs", "1", "--baselines", "none", "--network", "mlp"]
    assert main(["-q", "evaluate", str(out), *quick, "-o", str(report), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"][0]["name"] == "sets"
    assert "epochs=1" in told["protocol"]
    assert json.loads(report.read_text())["rows"] == told["rows"]


# --- what is shown ---------------------------------------------------------------------------------------------------


def row(name, *values, metric="accuracy", network="convnet", nbytes=2560, images=10, **sizes):
    runs = tuple(
        Run(set=0, net=i, seed=i, value=v, last=v, steps=1, images_seen=1, metric=metric) for i, v in enumerate(values)
    )
    stat = summarize([list(values)], metric)
    sizes = {"bytes": nbytes, "floats": None if nbytes is None else nbytes // 4, **sizes}
    return Row(name=name, network=network, protocol="p@1", augment="none", images=images, runs=runs, stat=stat, **sizes)


def report(*rows, baselines=()):
    return Report(
        evaluator="train", protocol="p@1", protocol_hash="0", settings={}, seed=0, data={}, method={}, sets=(),
        rows=rows, summary=rows[0].stat, baselines=baselines,
    )  # fmt: skip


def cells(table):
    return [[str(c) for c in column.cells] for column in table.columns]


def test_table_shows_sets_beside_their_baselines():
    table = report_table(
        report(
            row("sets", 0.7, 0.72, utilisation=0.9999),
            baselines=(row("random", 0.5), row("whole", 0.9, nbytes=None, images=1437)),
        ),
        10,
    )
    names, results, counts, protocols, floats, stored, used, each = cells(table)
    assert names == ["condensed set", "random images", "whole training set"]
    assert results == ["71.0 ± 1.0 %", "50.0 %", "90.0 %"]  # one value has no spread
    assert counts == ["1 x 2", "1 x 1", "1 x 1"]
    assert protocols == ["p@1"] * 3
    assert stored == ["2,560", "2,560", "-"]
    assert floats == ["640", "640", "-"]
    assert used == ["99.9 %", "-", "-"]  # never rounded up to a budget that is used whole
    assert each == ["1", "1", "143.7"]


def test_table_names_networks_and_metrics_where_they_differ():
    table = report_table(report(row("sets", 0.7), row("sets", 2.5, 3.5, metric="loss", network="mlp")), 10)
    assert cells(table)[1] == ["convnet", "mlp"]
    assert cells(table)[2] == ["70.0 %", "loss 3 ± 0.5"]


def test_further_figures_stand_side_by_side_the_headline_first():
    def with_figures(name, **figures):
        stats = {metric: summarize([values], metric) for metric, values in figures.items()}
        return row(name, 0.7, 0.72).model_copy(update={"stats": stats})

    sets, random = with_figures("sets", ece=[0.1, 0.2], nll=[123.4, 123.4]), with_figures("random", ece=[0.3])
    plain = report(sets, baselines=(random, row("whole", 0.9)))
    table = figures_table(plain.model_copy(update={"summary": sets.stats["nll"]}))
    assert [str(column.header) for column in table.columns] == ["figure", "condensed set", "random images"]
    assert cells(table) == [
        ["nll", "ece"],
        ["123.4 ± 0 [123.400, 123.400]", "0.150 ± 0.050 [-0.485, 0.785]"],
        ["-", "0.300"],
    ]
    assert figures_table(report(row("sets", 0.7))) is None


def outcome(tmp_path, interrupted):
    from dcf.rundir import RunDir

    storage = SimpleNamespace(to_json=lambda: {"bytes": 2560})
    synthetic = SimpleNamespace(spec=SimpleNamespace(num_classes=10), storage=lambda: storage)
    return SimpleNamespace(
        config=RunConfig(matcher="none", iterations=9), directory=RunDir(tmp_path / "run"), synthetic=synthetic,
        report=None if interrupted else report(row("sets", 0.7)), done=4 if interrupted else 9, interrupted=interrupted,
    )  # fmt: skip


def test_bytes_are_also_told_in_8_bit_pixels(capsys):
    random = row("random", 0.5).model_copy(update={"info": {"per_class": 1, "uint8_per_class": 4}})
    show_report(report(row("sets", 0.7), baselines=(random,)), 10)
    assert "8-bit pixels those bytes would hold 4 a class" in capsys.readouterr().out


def test_interrupted_run_says_how_to_go_on(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr("dcf.run.prepare", lambda request, listener: SimpleNamespace(config=RunConfig()))
    monkeypatch.setattr("dcf.run.start", lambda *args: outcome(tmp_path, True))
    assert main(["condense", *TINY]) == 130
    shown = capsys.readouterr()
    assert f"stopped after iteration 4 of 9; go on with: dcf resume {tmp_path / 'run'}" in shown.err
    assert shown.out == ""
    assert outcome_json(outcome(tmp_path, True))["synthetic"] is None


def test_finished_run_shows_table_then_paths(tmp_path, capsys):
    show_outcome(outcome(tmp_path, False), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert "70.0 %" in lines[1]
    assert lines[-1] == str(tmp_path / "run" / "synthetic.safetensors")
    assert outcome_json(outcome(tmp_path, False))["report"]["summary"]["mean"] == 0.7


# --- progress --------------------------------------------------------------------------------------------------------


def state(it, seconds, iterations=100):
    return SimpleNamespace(it=it, iterations=iterations, loss=1.5, log={}, seconds=seconds)


def test_progress_without_a_terminal_is_a_line_now_and_then(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "dcf.cli.progress")
    with RunProgress(live=False) as shown:
        for it in range(51, 101):  # resumed at 50: speed counts this process's iterations only
            now[0] = it - 50.0
            shown.step(state(it, it - 50.0))
    lines = [r.message for r in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("condensing: 80 of 100, loss 1.5, 1 it/s, ")
    assert lines[0].endswith("00:20 left")
    assert lines[1].startswith("condensing: 100 of 100")
    assert "left" not in lines[1]


def test_progress_tells_stages_and_evaluations(caplog):
    caplog.set_level(logging.INFO, "dcf.cli.progress")
    with RunProgress(live=False) as shown:
        shown.stage("evaluating")
        shown.evaluated("random", 1, 2, 0.5)
        shown.evaluated("random", 2, 2, 0.525)
    assert [r.message for r in caplog.records] == ["evaluating", "evaluating random: 2 of 2, accuracy 52.5 %"]


def test_live_progress_draws_a_bar_and_cleans_up(monkeypatch):
    with RunProgress(live=True) as shown:
        shown.step(state(1, 0.5))
        assert shown.drawing.tasks[0].completed == 1
        assert shown.drawing.tasks[0].fields["facts"].startswith("loss 1.5, 2 it/s")
        shown.step(state(100, 50.0))
        assert shown.drawing.tasks == []
        shown.evaluated("random", 1, 3, 0.5)
        assert shown.drawing.tasks[0].total == 3
    assert shown.drawing is None


@pytest.mark.parametrize(("seconds", "text"), [(-1, "00:00"), (0, "00:00"), (61, "01:01"), (3725.4, "1:02:05")])
def test_times_read_like_a_clock(seconds, text):
    assert clock(seconds) == text


def test_resuming_a_finished_run_only_shows_it(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["condense", *TINY, "--nets", "1", "--epochs", "1", "--baselines", "none", "--out", run]) == 0
    first = capsys.readouterr()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()}
    assert main(["resume", run]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "evaluating" not in again.err
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run" / "report.json").write_text("{")
    assert main(["resume", run]) == 1
    said = capsys.readouterr().err
    assert "report.json' is damaged" in said
    assert "delete it" in said
