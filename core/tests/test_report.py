"""The page about runs and sets: what it holds, what it says when things lack, what hostile files cannot make of it."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from dcf.cli import main
from dcf.errors import FormatError, RunError, UsageError
from dcf.evaluation.report import Report, Row, Run
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.report import report_html, write_report
from dcf.report.chart import chart, ticks
from dcf.report.markup import Markup, element
from dcf.report.metrics import Curve, read_metrics
from dcf.runconfig import RunConfig
from dcf.rundir import RunDir
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet
from dcf.types import DataSpec

SCRIPT = "<script>fetch('http://evil.example')</script>"
CONFIG = {"data": "digits", "matcher": "none", "param": "pixels", "augment": "none", "network": "mlp"}


def results(protocol="p@1", protocol_hash="0123", name="sets", values=(0.5, 0.7)):
    def row(title, found):
        runs = tuple(
            Run(
                set=0,
                net=n,
                seed=n,
                value=v,
                last=v,
                train_acc=0.9,
                train_loss=0.1,
                steps=30,
                images_seen=600,
                metrics={"calibration error": v / 10},
            )
            for n, v in enumerate(found)
        )
        return Row.of(
            runs, name=title, network="mlp", protocol=protocol, augment="none", images=4, bytes=1024, floats=256,
            per_class=(0.25, 0.75),
        )  # fmt: skip

    ours = row(name, values)
    return Report(
        evaluator="train", protocol=protocol, protocol_hash=protocol_hash, settings={}, seed=0,
        data={"id": "digits", "checksum": "abc"}, method={}, sets=(), rows=(ours,), summary=ours.stat,
        baselines=(row("random", (0.3, 0.4)), row("whole", (0.99,))), env={"torch": "9"}, warnings=("mind the gap",),
    )  # fmt: skip


def small_set(classes=("cat", "dog"), ipc=2, param=None, config=(), **metadata):
    spec = DataSpec(1, 8, 8, tuple(classes), ValueSpace((0.5,), (0.25,)))
    param = param or Pixels()
    param.allocate(spec, torch.arange(len(classes)).repeat_interleave(ipc))
    param.absorb(torch.randn(len(param.view_class), *spec.shape, generator=torch.Generator().manual_seed(0)))
    metadata = {"license": "CC0 of somebody", "environment": {"python": "3.11", "torch": "9"}, **metadata}
    return SyntheticSet(param, spec, {**CONFIG, **dict(config)}, 7, None, metadata)


def make_run(path, rows=({"it": 1, "loss": 2.0}, {"it": 2, "loss": 1.5, "lr": 0.1}), finished=True, **metadata):
    run = RunDir(path)
    run.create(RunConfig(matcher="none", iterations=2, ipc=2))
    run.append_metrics(list(rows))
    if finished:
        small_set(results=results().to_json(timing=False), **metadata).save(run.result)
        run.report.write_text("{}")
    return path


class Page(HTMLParser):
    """What a browser would see of the page, as far as a parser of the standard library tells."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def pictures(page):
    uris = page.all("img", "src")
    assert all(uri.startswith("data:image/png;base64,") for uri in uris)
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]


ALLOWED = set(
    "html head meta title style body header footer main nav section h1 h2 h3 p ul li a div span strong table caption "  # noqa: SIM905
    "thead tbody tr th td img details summary figure figcaption pre code svg desc text line path".split()
)


def assert_inert(page):
    """Nothing that could run, load or leave."""
    assert set(page.tags) <= ALLOWED
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("style", "srcset", "srcdoc", "action")]
    assert all(link.startswith("#") for link in page.all("a", "href"))
    assert all(src.startswith("data:image/png;base64,") for src in page.all("img", "src"))
    assert not [a for a in page.attributes if a[1] in ("href", "src") and a[0] not in ("a", "img")]
    assert page.tags.count("style") == page.tags.count("title") - page.tags.count("svg") == 1


# --- what it holds -----------------------------------------------------------------------------------------------


def test_page_of_a_run_holds_everything_that_is_known(tmp_path):
    page = Page(report_html([make_run(tmp_path / "run")]))
    assert_inert(page)
    words = page.words
    for text in (
        *("60.0 ± 10.0 %", "1 x 2", "p@1", "35.0 ± 5.0 %", "99.0 %", "mind the gap"),  # 99 has no spread: one value
        *("50.0 %", "70.0 %", "Each network, trained once and tested once", "conditional on one set"),
        *("cat", "25.0 %", "75.0 %"),
        *("calibration error", "0.060 ± 0.010"),
        *("loss", "2 at iteration 1", "1.5 at 2"),
        *("1,024", "images", "4 x 1 x 8 x 8", "float32"),
        *("iterations", "CC0 of somebody", "3.11", "digits"),
        *("dcf evaluate", "dcf condense --data digits", "dcf.load("),
    ):
        assert text in words, text
    assert page.all("html", "lang") == ["en"]


def test_images_are_pixels_of_the_set_one_class_a_row(tmp_path):
    synthetic = small_set(ipc=3)
    page = Page(report_html([synthetic], views=2))
    first, second = pictures(page)
    assert page.all("img", "alt") == [f"2 of 3 images: class {name}, none pixels" for name in ("cat", "dog")]
    assert page.all("img", "width") == [str(first.width)] * 2
    expected = (synthetic.space.decode(synthetic.tensors().x).clamp(0, 1) * 255).round()
    for picture, index in ((first, 1), (second, 4)):
        side = 64 + 2
        tile = picture.crop((side + 2, 2, 2 * side, side)).resize((8, 8), Image.Resampling.NEAREST)
        assert torch.equal(torch.tensor(bytearray(tile.tobytes())).view(8, 8), expected[index, 0].to(torch.uint8))


class Doubled(Parameterization):
    """Two views of each canvas: itself and its negative."""

    stackable = True

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.inner.allocate(spec, item_class)

    @property
    def view_class(self):
        return self.item_class.repeat(2)

    def images(self, index):
        canvas = self.inner.images(index % len(self.item_class))
        return torch.where((index < len(self.item_class))[:, None, None, None], canvas, -canvas)

    def absorb(self, images, generator=None):
        self.inner.absorb(images[: len(self.item_class)], generator)


def test_a_stack_shows_what_is_stored_beside_what_it_decodes_to():
    page = Page(report_html([small_set(param=Doubled(inner=Pixels()))]))
    assert [alt.partition(":")[0] for alt in page.all("img", "alt")] == ["2 of 2 images", "4 of 4 images"] * 2
    assert "none pixels: stored" in page.words
    assert "none pixels: decoded" in page.words


def test_several_stand_side_by_side_and_say_when_they_cannot_be_compared(tmp_path):
    one, two = (
        make_run(tmp_path / "one"),
        make_run(tmp_path / "two", rows=[{"it": 1, "loss": 3.0}, {"it": 2, "loss": 1}]),
    )
    page = Page(report_html([one, two]))
    assert_inert(page)
    assert page.tags.count("svg") == 2  # loss of both in one picture, lr of one
    assert f"1. {one}: 2 at iteration 1" in page.words
    assert f"2. {two}: 3 at iteration 1" in page.words
    assert len(page.all("img", "src")) == 4
    assert "not comparable" not in page.words
    other = small_set(results=results(protocol="q@1", protocol_hash="9").to_json(timing=False))
    assert "different protocols: their accuracies are not comparable" in Page(report_html([one, other])).words


def test_settings_that_differ_are_marked(tmp_path):
    page = Page(report_html([small_set(), small_set(config={"matcher": "other"})]))
    assert "matcher differs" in page.words
    assert "data differs" not in page.words


def test_a_page_is_a_function_of_its_sources(tmp_path):
    run = make_run(tmp_path / "run")
    assert report_html([run]) == report_html([run])


def test_command_and_python_write_the_same_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out == "run/report.html\n"
    write_report(["run"], "mine.html")
    assert (tmp_path / "mine.html").read_text() == (tmp_path / "run/report.html").read_text()
    assert main(["report", "run/synthetic.safetensors"]) == 0
    assert (tmp_path / "run/synthetic.html").exists()
    assert main(["report", "run", "run", "--views", "1", "-o", "deep/both.html"]) == 0
    assert "1 of 2 images" in (tmp_path / "deep/both.html").read_text()


def test_a_run_that_starts_over_takes_its_page_along(tmp_path):
    run = RunDir(make_run(tmp_path / "run"))
    write_report([run.path], run.page)
    run.create(run.config(), force=True)
    assert not run.page.exists()


def test_commands_shown_mean_what_they_say(tmp_path, monkeypatch):
    from dcf.cli.condense import request_of
    from dcf.cli.options import set_options

    config = {"lr": 0.25, "ipc": 3, "protocol": "dcf-std@1", "protocol_set": {"epochs": 5}, "augment": "none"}
    run = RunDir(tmp_path / "a b")
    run.create(RunConfig(matcher="none", **config))
    text = report_html([run.path])
    assert f"dcf resume &#x27;{run.path}&#x27;" in text
    import html
    import inspect
    import shlex

    from dcf.cli.condense import condense

    line = html.unescape(re.search(r"<code>(dcf condense [^<]*)</code>", text)[1])
    words = shlex.split(line)[2:]
    given = dict.fromkeys(inspect.signature(condense).parameters)
    changes = []
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--set":
            changes.append(value)
        else:
            assert flag[2:].replace("-", "_") in given
            given[flag[2:].replace("-", "_")] = value
    assert set_options(changes) == {"protocol.epochs": "5"}
    settings = request_of({**given, "change": changes, "no_eval": False}).settings
    assert {k: str(settings[k]) for k in ("lr", "ipc", "protocol")} == {
        "lr": "0.25",
        "ipc": "3",
        "protocol": "dcf-std@1",
    }


# --- what lacks --------------------------------------------------------------------------------------------------


def test_an_unfinished_run_shows_how_far_it_is(tmp_path):
    page = Page(report_html([make_run(tmp_path / "run", finished=False)]))
    assert_inert(page)
    for text in ("This run is not finished.", "There are no images yet.", "dcf resume", "1.5 at 2"):
        assert text in page.words


def test_a_set_whose_plugin_is_missing_has_a_page_without_images(tmp_path, caplog):
    small_set(config={"param": "unheard-of:r=4"}, packages={"param:unheard-of": "dcf-rare 0.1"}).save(
        tmp_path / "s.safetensors"
    )
    page = Page(report_html([tmp_path / "s.safetensors"]))
    assert "pip install dcf-rare" in page.words
    assert "CC0 of somebody" in page.words
    assert "pip install dcf-rare" in caplog.text


def test_results_that_are_no_results_are_left_out(tmp_path):
    small_set(results={"summary": {"mean": 2}}).save(tmp_path / "s.safetensors")
    assert "not of a form that is read" in Page(report_html([tmp_path / "s.safetensors"])).words


@pytest.mark.parametrize(
    ("argv", "says", "code"),
    [
        (["absent"], "no file 'absent'", 1),
        (["empty"], "'empty' holds neither a run nor a condensed set", 1),
        (["junk"], "is not a safetensors file", 1),
        ([], "missing argument", 2),
        (["junk", "--views", "0"], "--views expects int >= 1, got '0'", 2),
        (["junk", "--views", "ten"], "--views expects int >= 1, got 'ten'", 2),
        (["junk", "--out", "page.pdf"], "expected a file ending in .html", 2),
    ],
)
def test_wrong_requests_say_what_is_wrong(argv, says, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").write_text("junk")
    assert main(["report", *argv]) == code
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_python_says_what_is_wrong(tmp_path):
    with pytest.raises(UsageError, match="at least one"):
        report_html([])
    with pytest.raises(UsageError, match="list"):
        report_html("run")
    with pytest.raises(UsageError, match="views"):
        report_html([small_set()], views=0)
    with pytest.raises(RunError, match="neither"):
        report_html([tmp_path])
    with pytest.raises(FormatError):
        report_html([tmp_path / "absent"])


# --- hostile files -----------------------------------------------------------------------------------------------

QUOTES = "\"'><img src=x onerror=alert(1)>"


def test_hostile_metadata_is_shown_as_text(tmp_path):
    hostile = results(protocol=SCRIPT, name=QUOTES).to_json(timing=False)
    hostile["warnings"] = [SCRIPT, "w" * 10**6]
    hostile["env"] = {SCRIPT: QUOTES}
    synthetic = small_set(
        classes=(SCRIPT, QUOTES + "c" * 100_000),
        config={"matcher": SCRIPT, "data": QUOTES, "init": "$(touch owned)", QUOTES: "x" * 4000},
        results=hostile,
        license=SCRIPT + "l" * 10**6,
        environment={QUOTES: [SCRIPT, None]},
        packages={SCRIPT: {"deep": [QUOTES]}},
        options={QUOTES: [{SCRIPT: QUOTES}], "matcher": SCRIPT},
        data={QUOTES: "</style><script>1</script>"},
        run={SCRIPT: QUOTES, "protocol_set": {SCRIPT: {"a": QUOTES}}, "ipc": QUOTES},
    )
    file = tmp_path / f"{QUOTES.replace('/', '')}.safetensors"
    synthetic.save(file)
    text = report_html([file, tmp_path / file])
    page = Page(text)
    assert_inert(page)
    assert SCRIPT in "".join(page.text)
    assert "<script" not in text
    assert len(text) < 300_000


def test_hostile_text_cannot_steer_a_shell_or_a_reader(tmp_path):
    synthetic = small_set(config={"init": "random:x='$(touch owned)`touch owned`'", "data": "digits\u202e\x1b[2J"})
    file = tmp_path / "-rf $(touch owned).safetensors"
    synthetic.save(file)
    page = Page(report_html([file]))
    code = [t for t in page.text if t.startswith("dcf ")]
    assert f"dcf evaluate '{file}'" in code[0]
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", "".join(page.text))


def test_code_that_a_file_names_gets_into_no_command():
    page = Page(report_html([small_set(config={"data": "python:evil.attribute", "init": "random"})]))
    assert "dcf condense" not in page.words
    assert "dcf condense" in Page(report_html([small_set(config={"init": "random"})])).words


def test_hostile_metrics_can_do_nothing(tmp_path):
    run = make_run(tmp_path / "run", finished=False)
    lines = [
        '{"it": 3, "loss": NaN}',
        '{"it": 4, "loss": -Infinity, "x": 1e308, "y": -1e308}',
        f'{{"it": 5, "loss": 1{"0" * 400}, "{QUOTES.replace(chr(34), "")}": 1}}',
        f'{{"it": 5, "loss": 7, "text": "{"t" * 100_000}"}}',  # far longer than any line of metrics: passed over
        '{"it": "6", "loss": 1}',
        '{"it": 1e5, "loss": 1}',
        '{"it": -1, "loss": 1}',
        "[" * 50_000,
        "null",
        '{"it": 7, "loss": true, "z": [1], "w": null}',
        json.dumps({"it": 8, **{f"m{n}": 1.0 for n in range(100)}}),
        "{" + "9" * 10**6,
        '{"it": 9, "loss": 1.25}',
        '{"it": 10, "lo',
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    curves = read_metrics(run / "metrics.jsonl")
    loss = curves.by_name["loss"]
    assert [v for _, v in loss.points] == [2.0, 1.5, None, None, None, 1.25]
    assert loss.broken == 3
    assert len(curves.by_name) <= 12
    assert curves.left_out > 80
    page = Page(report_html([run]))
    assert_inert(page)
    assert "3 of 6 values are not finite and left out" in page.words
    assert "further metrics are not drawn" in page.words
    numbers = re.findall(r"[\d.]+|nan|inf", " ".join(page.all("path", "d")))
    assert numbers
    assert not {"nan", "inf"} & set(numbers)


def test_text_is_markup_only_through_elements():
    made = element("p", "<b>", Markup("<b>"), ["&", 1, None, 2.5], title='"', hidden=True, lang=None)
    assert made == '<p title="&quot;" hidden>&lt;b&gt;<b>&amp;12.5</p>'


# --- curves ------------------------------------------------------------------------------------------------------


def curve(*values):
    points = tuple((n + 1, v) for n, v in enumerate(values))
    known = [p for p in points if p[1] is not None]
    return Curve(points, known[0], known[-1], min(known, key=lambda p: p[1]), len(points), len(points) - len(known))


def test_long_runs_are_thinned_out_and_keep_their_extremes(tmp_path):
    values = [float(n % 7) for n in range(10_000)]
    values[1234], values[5678], values[9000] = 99.0, -99.0, "null"
    (tmp_path / "m").write_text("".join(f'{{"it": {n + 1}, "loss": {v}}}\n' for n, v in enumerate(values)))
    points = read_metrics(tmp_path / "m").by_name["loss"].points
    assert len(points) <= 800
    assert {(1235, 99.0), (5679, -99.0), (9001, None)} <= set(points)
    assert [it for it, _ in points] == sorted(it for it, _ in points)


def test_points_stand_where_the_axes_say():
    page = Page(chart("loss", {"a": curve(0.0, 10.0)}, [0], "k"))
    drawn = page.all("path", "d")[-1]
    assert drawn == "M70.0 244.9L628.0 23.1"  # 5 % of room below and above
    labels = [t for t in page.text if re.fullmatch(r"[\d,.]+", t)]
    assert labels == ["0", "2", "4", "6", "8", "10", "1", "2"]


def test_a_gap_is_a_gap_and_a_lone_point_a_dot():
    drawn = Page(chart("loss", {"a": curve(1.0, None, 3.0, 2.0)}, [0], "k")).all("path", "d")[-1]
    assert [len(piece.split("L")) for piece in drawn[1:].split("M")] == [2, 2]
    first = drawn[1:].split("M")[0].split("L")
    assert first[0] == first[1]


def test_wide_spreads_are_logarithmic():
    text = chart("loss", {"a": curve(0.001, 1000.0)}, [0], "k")
    assert "logarithmic scale" in text
    assert ">0.1<" in text
    assert "logarithmic" not in chart("loss", {"a": curve(-1.0, 1000.0)}, [0], "k")


@pytest.mark.parametrize("values", [(0.0,), (5.0, 5.0), (-3.0,), (1e-9, 1.1e-9), (1e99, -1e99)])
def test_odd_ranges_can_be_drawn(values):
    text = chart("loss", {"a": curve(*values)}, [0], "k")
    assert "nan" not in text
    assert "inf" not in text


def test_ticks_are_round():
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 1000) == [200, 400, 600, 800, 1000]
