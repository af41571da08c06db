"""Every wrong request: exit status, one message that says what and where and how to mend it, no traceback, no torch."""

import json
import os
import struct
import subprocess
import sys
from typing import NamedTuple

import pytest

# One process for many cases: it forks for each, so that none sees what another imported.
HELPER = """
import importlib, io, json, os, sys
import dcf.cli
for name in sys.argv[1:]:
    importlib.import_module(name)
cases, answers = json.load(sys.stdin), []
for case in cases:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        os.environ.update(case["env"])
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        code = dcf.cli.main(case["argv"])
        answer = [code, sys.stdout.getvalue(), sys.stderr.getvalue(), "torch" in sys.modules]
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answers.append(json.load(file))
    os.wait()
print(json.dumps(answers))
"""

THIRD_PARTY = """
import dcf

class Config(dcf.Config):
    pass

@dcf.hookimpl
def dcf_components():
    yield dcf.Component("recipe", "needy", "dcf_third:needy.toml", "needs what is not here")
    yield dcf.Component("matcher", "third", "dcf_third.heavy:Third", "stands for others", config="dcf_third:Config")
"""


class Case(NamedTuple):
    """A wrong request and what must be said about it."""

    name: str
    argv: list[str]
    says: list[str]
    caret: str | None = None  # what the caret line points at
    code: int = 2
    torch: bool = False  # whether only the loaded component can know
    env: dict[str, str] = {}


def condense(*args: str) -> list[str]:
    return ["condense", *args]


CASES = [
    # --- names ---------------------------------------------------------------------------------------------------
    Case("unknown-matcher", condense("--matcher", "nope"), ["no matcher named 'nope'", "installed:", "dm"], "nope"),
    Case("unknown-param", condense("--matcher", "dm", "--param", "pixel"), ["did you mean 'pixels'?"], "pixel"),
    Case("unknown-augmenter", condense("--matcher", "dm", "--augment", "dsaa"), ["did you mean 'dsa'?"], "dsaa"),
    Case("unknown-dataset", condense("--data", "digit"), ["did you mean 'digits'?", "--kind dataset"], "digit"),
    Case("unknown-network", condense("--network", "convnett"), ["did you mean 'convnet'?"], "convnett"),
    Case("unknown-init", condense("--init", "randm"), ["did you mean 'random'?", "noise"], "randm"),
    Case("unknown-protocol", condense("--protocol", "dcf-std@9"), ["no protocol named", "dcf-std@1"], "dcf-std@9"),
    Case("unknown-recipe", condense("--recipe", "dmm"), ["no recipe named 'dmm'", "did you mean 'dm'?"], "dmm"),
    Case("other-kind", condense("--matcher", "dsa"), ["'dsa' is an augmenter; use --augment dsa"], "dsa"),
    Case("unknown-second", condense("--augment", "dsa+dsb"), ["no augmenter named 'dsb'"], "dsb"),
    Case("unknown-evaluator", ["evaluate", "x", "--evaluator", "trian"], ["did you mean 'train'?"], "trian"),
    # --- options of components --------------------------------------------------------------------------------------
    Case("dc-option", condense("--matcher", "dc:metrics=mse"), ["dc has no option 'metrics'", "metric ("], "metrics"),
    Case("dm-option", condense("--matcher", "dm:batch=3"), ["dm has no option 'batch'", "batch_real"], "batch"),
    Case("dsa-option", condense("--augment", "dsa:op=crop"), ["dsa has no option 'op'", "did you mean 'ops'?"], "op"),
    Case("convnet-option", condense("--network", "convnet:widht=3"), ["did you mean 'width'?"], "widht"),
    Case("folder-option", condense("--data", "folder:paht=x"), ["folder has no option 'paht'"], "paht"),
    Case("pixels-option", condense("--param", "pixels:r=4"), ["pixels has no option 'r'", "options: none"], "r"),
    Case("wrong-type", condense("--matcher", "dm:batch_real=many"), ["expects int >= 1, got 'many'"], "many"),
    Case("bound", condense("--matcher", "dc:match_steps=0"), ["expects 'auto' or an int >= 1, got '0'"], "0"),
    Case("wrong-choice", condense("--matcher", "dc:metric=foo"), ["'ours' | 'mse' | 'cos'", "got 'foo'"], "foo"),
    Case("out-of-bounds", condense("--matcher", "dm:batch_real=0"), [">= 1, got '0'"], "0"),
    Case("float-for-int", condense("--network", "convnet:width=1.5"), ["option 'width' expects"], "1.5"),
    Case("bad-in-list", condense("--augment", "dsa:ops=[crop,colour]"), ["'color'", "colour"], "[crop,colour]"),
    Case("missing-option", condense("--data", "folder"), ["folder needs the option 'path'"], "folder"),
    # --- the spec language ------------------------------------------------------------------------------------------
    Case("no-value", condense("--matcher", "dm:batch_real"), ["expected '=' and a value after"], " "),
    Case("empty-value", condense("--matcher", "dm:batch_real="), ["expected a value, got the end"], " "),
    Case("twice", condense("--matcher", "dm:batch_real=1,batch_real=2"), ["is given twice"], "batch_real"),
    Case("dangling-plus", condense("--param", "pixels+"), ["expected a component's name"], " "),
    Case("upper-case", condense("--matcher", "DM"), ["lower case letters"], "DM"),
    Case("open-quote", condense("--matcher", "dm:x='a"), ["a quote is opened and not closed"], "'a"),
    Case("open-list", condense("--augment", "dsa:ops=[crop"), ["']' to close '['"], " "),
    Case("space", condense("--matcher", "dm: x=1"), ["a space cannot stand here"], " "),
    Case("colon", condense("--data", "folder:path=C:/d"), ["put a value that contains it in quotes"], ":"),
    Case("plus-number", condense("--matcher", "dm:x=1e+3"), ["write 1e3 instead of 1e+3"], "3"),
    Case("empty-spec", condense("--matcher", ""), ["expected a component's name", "got the end"]),
    Case("stacked-matcher", condense("--matcher", "dc+dm"), ["expected one component", "only parameter"], "+"),
    Case("right-side", condense("--param", "pixels+pixels", "--matcher", "dm"), ["cannot stand"], "pixels", torch=True),
    # --- settings of a run ------------------------------------------------------------------------------------------
    Case("ipc-0", condense("--ipc", "0"), ["--ipc expects int >= 1, got '0'"]),
    Case("ipc-text", condense("--ipc", "one"), ["--ipc expects int >= 1, got 'one'"]),
    Case("both-budgets", condense("--ipc", "1", "--budget", "bytes=9"), ["either --ipc or --budget, not both"]),
    Case("bad-budget", condense("--budget", "100"), ["--budget", "expected bytes=N or floats=N, got '100'"]),
    Case("no-budget", condense("--budget", "bytes=0"), ["expected bytes=N or floats=N"]),
    Case("small-budget", condense("--budget", "floats=3"), ["smallest that works is floats=640"], torch=True),
    Case("lr-negative", condense("--lr", "-1"), ["--lr expects float > 0, got '-1'"]),
    Case("momentum-1", condense("--momentum", "1"), ["--momentum expects", "got '1'"]),
    Case("iterations", condense("--iterations", "-1"), ["--iterations expects int >= 0, got '-1'"]),
    Case("seed", condense("--seed", "-3"), ["--seed expects int >= 0", "got '-3'"]),
    Case("precision", condense("--precision", "half"), ["--precision expects 'default' | 'strict', got 'half'"]),
    Case("labels", condense("--labels", "softt"), ["unknown kind of labels 'softt'", "expected hard or soft"], "softt"),
    Case("labels-option", condense("--labels", "soft:init=unform"), ["'onehot' | 'uniform' | 'teacher'"], "unform"),
    Case("nets-0", condense("--nets", "0"), ["--nets expects int >= 1 and <= 10000, got '0'"]),
    Case("class-chunk", condense("--class-chunk", "0"), ["--class-chunk expects", "int >= 1"]),
    Case("baselines", condense("--baselines", "herding"), ["expected random, whole", "got 'herding'"]),
    Case("epochs", condense("--epochs", "0"), ["option 'epochs' expects int >= 1 and <= 1000000, got '0'"]),
    Case("device-name", condense("--device", "gpu"), ["--device gpu: expected auto, cpu, cuda or cuda:N"]),
    Case("device-absent", condense("--device", "cuda:99"), ["CUDA devices; use --device cpu"], torch=True),
    Case("set-form", condense("--set", "clip"), ["--set clip: expected key=value"]),
    Case("set-key", condense("--set", "foo.bar=1"), ["'foo.bar' addresses nothing", "matcher.OPTION"]),
    Case("set-typo", condense("--set", "ipcc=3"), ["'ipcc' addresses nothing", "did you mean 'ipc'?"]),
    Case("set-role-typo", condense("--set", "parm.r=3"), ["'parm.r' addresses nothing", "did you mean 'param.r'?"]),
    Case(
        "size",
        condense("--data", "folder:path=x,size=3x"),
        ["folder.size: expected a side in pixels", "got '3x'"],
        "3x",
    ),
    Case("set-twice", condense("--set", "clip=1", "--set", "clip=2"), ["'clip' is given twice"]),
    Case("set-option", condense("--matcher", "dm", "--set", "matcher.foo=1"), ["dm has no option 'foo'"]),
    Case("set-protocol", condense("--set", "protocol.foo=1"), ["has no option 'foo'", "epochs (int"]),
    # --- recipes and plugins ----------------------------------------------------------------------------------------
    Case("recipe-package", condense("--recipe", "needy"), ["needs dcf-absent", "pip install dcf-absent"]),
    Case("broken-plugin", condense("--matcher", "broken"), ["could not be loaded", "reason:", "no_such_module"]),
    Case("blocked", condense("--augment", "dsa"), ["blocked by DCF_BLOCK"], env={"DCF_BLOCK": "dsa"}),
    Case("strict", ["list-plugins"], ["DCF_STRICT is set", "dcf-broken"], env={"DCF_STRICT": "1"}),
    Case("no-matcher", condense(), ["no matcher was named", "--matcher NAME"], env={"DCF_PLUGINS": ""}),
    # --- the parser -------------------------------------------------------------------------------------------------
    Case("unknown-command", ["condens"], ["no such command 'condens'", "'condense'", "see: dcf --help"]),
    Case("no-value-of-an-option", ["condense", "--ipc"], ["'--ipc' requires an argument", "see: dcf condense --help"]),
    Case("no-value-of-a-group", ["bench", "run", "--out"], ["'--out' requires an argument", "see: dcf bench --help"]),
    Case("unknown-flag", condense("--matchr", "dm"), ["no such option", "--matcher", "see: dcf condense --help"]),
    Case("flag-value", condense("--ipc"), ["'--ipc' requires an argument"]),
    Case("no-file", ["evaluate"], ["missing argument 'FILE...'"]),
    Case("extra", ["resume", "a", "b"], ["unexpected extra argument"]),
    Case("wrong-kind", ["list-plugins", "--kind", "matchers"], ["did you mean 'matcher'?", "expected one of"]),
    Case("describe", ["describe", "pixles"], ["no component named 'pixles'", "did you mean 'pixels'?"]),
    Case("describe-broken", ["describe", "broken"], ["unavailable", "no_such_module"]),
    Case("recipes", ["recipes", "dmm"], ["no recipe named 'dmm'", "did you mean 'dm'?"], "dmm"),
    Case("check-name", ["check", "pixles"], ["no component named 'pixles'", "did you mean 'pixels'?"]),
    Case("bench-command", ["bench", "tabel", "x"], ["'tabel' is neither a file nor a command", "'dcf bench table'"]),
    Case("choice", ["bench", "table", "x", "--format", "rst"], ["value for '--format': 'rst' is not one of 'rich'"]),
    Case("parser-bound", ["bench", "check", "x", "--rerun", "-1"], ["'--rerun': expected a value greater than"]),
    Case("check-kind", ["check", "dm", "--kind", "param"], ["no parameterization named 'dm'"], "dm"),
    Case("data-check", ["data", "check", "digit"], ["did you mean 'digits'?"], "digit"),
    Case(
        "evaluate-nets",
        ["evaluate", "plain.safetensors", "--nets", "0"],
        ["--nets expects int >= 1 and <= 10000, got '0'"],
    ),
    Case("report-views", ["report", "plain.safetensors", "--views", "0"], ["--views expects int >= 1, got '0'"]),
    Case("report-form", ["report", "plain.safetensors", "--out", "a.pdf"], ["expected a file ending in .html"]),
    Case("mtt-keep", condense("--matcher", "mtt:keep=0"), ["option 'keep' expects 'cpu' or an int >= 1, got '0'"], "0"),
    Case("bptt-lr_lr", condense("--matcher", "bptt:lr_lr=0"), ["expects 'auto' or a float > 0, got '0'"], "0"),
    # --- files of other programs -------------------------------------------------------------------------------------
    Case("export-format", ["export", "grey.safetensors", "--to", "gif", "-o", "x"], ["--to gif", "pt, pt-pair"]),
    Case("export-there", ["export", "grey.safetensors", "--to", "pt", "-o", "grey.safetensors"], ["--force"]),
    Case("export-folder", ["export", "grey.safetensors", "--to", "png", "-o", "grey.safetensors"], ["got a file"]),
    Case("export-none", ["export", "no.safetensors", "--to", "pt", "-o", "x"], ["no file 'no.safetensors'"], code=1),
    Case("import-data", ["import", "x.pt", "-o", "x"], ["missing option", "--data"]),
    Case("import-name", ["import", "x.pt", "--data", "digit", "-o", "x"], ["did you mean 'digits'?"], "digit"),
    Case("import-none", ["import", "x.pt", "--data", "digits", "-o", "x"], ["no file 'x.pt'"], code=1),
    Case(
        "import-own",
        ["import", "grey.safetensors", "--data", "digits", "-o", "x"],
        ["is not a .pt file", "sets of dcf need no import"],
        code=1,
    ),
    Case(
        "import-lr", ["import", "x.pt", "--data", "digits", "-o", "x", "--lr", "-1"], ["--lr expects float > 0", "'-1'"]
    ),
    Case(
        "import-values",
        ["import", "x.pt", "--data", "digits", "-o", "x", "--values", "raw"],
        ["'auto' | 'space' | 'pixels', got 'raw'"],
    ),
    Case(
        "import-param-values",
        ["import", "x.pt", "--data", "digits", "-o", "x", "--param", "lowrank:r=2", "--values", "pixels"],
        ["lowrank:r=2 says itself what it stores"],
    ),
    Case(
        "import-labels", ["import", "x.pt", "--data", "digits", "-o", "x", "--labels", "sft"], ["expected hard"], "sft"
    ),
    # --- sets that become one ----------------------------------------------------------------------------------------
    Case("merge-out", ["merge", "grey.safetensors"], ["missing option", "--out"]),
    Case("merge-there", ["merge", "grey.safetensors", "-o", "grey.safetensors"], ["a file of that name", "--force"]),
    Case(
        "merge-shapes",
        ["merge", "grey.safetensors", "colour.safetensors", "-o", "new.safetensors"],
        ["'colour.safetensors' cannot be merged with 'grey.safetensors': shapes of images differ"],
    ),
    Case(
        "merge-classes",
        ["merge", "grey.safetensors", "other.safetensors", "-o", "new.safetensors"],
        ["class 'a' of 'other.safetensors' comes from mnist, and of 'grey.safetensors' from digits", "--across-data"],
    ),
    Case(
        "slice-what", ["slice", "grey.safetensors", "-o", "n.safetensors"], ["expected --classes, --per-class or both"]
    ),
    Case(
        "slice-class",
        ["slice", "grey.safetensors", "--classes", "x", "-o", "new.safetensors"],
        ["--classes x: no class 'x'; there are a, b"],
    ),
    Case(
        "slice-none",
        ["slice", "grey.safetensors", "--per-class", "0", "-o", "new.safetensors"],
        ["--per-class expects int >= 1", "got '0'"],
    ),
    Case(
        "append-init",
        ["append", "grey.safetensors", "--per-class", "1", "--init", "randm", "-o", "new.safetensors"],
        ["did you mean 'random'?"],
        "randm",
    ),
    # --- files: the request was fine, the file is not: exit status 1 -------------------------------------------------
    Case("file-missing", ["info", "absent.safetensors"], ["no file 'absent.safetensors'"], code=1),
    Case("file-foreign", ["info", "junk.safetensors"], ["is not a safetensors file: its header claims"], code=1),
    Case("file-plain", ["info", "plain.safetensors"], ["not a condensed set: it has no 'dcf.format'"], code=1),
    Case("file-future", ["info", "future.safetensors"], ["format version 99", "update dcf-core"], code=1),
    Case("file-digits", ["info", "digits.safetensors"], ["damaged"], code=1),
    Case("evaluate-plain", ["evaluate", "plain.safetensors"], ["not a condensed set"], code=1),
    Case("preview-plain", ["preview", "plain.safetensors"], ["not a condensed set"], code=1),
    Case("report-plain", ["report", "plain.safetensors"], ["not a condensed set"], code=1),
    Case("report-nothing", ["report", "."], ["'.' holds neither a run nor a condensed set"], code=1),
    Case("resume-nothing", ["resume", "."], ["is not a run directory: it has no config.toml"], code=1),
    Case("folder-missing", condense("--data", "folder:path=/absent"), ["/absent"], code=1, torch=True),
]


def write_header(path, metadata):
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def write_plugin(folder, name, module):
    (folder / f"dcf_{name}").mkdir()
    (folder / f"dcf_{name}" / "__init__.py").write_text(module)
    info = folder / f"dcf_{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dcf-{name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[dcf]\n{name} = dcf_{name}\n")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What `dcf` says to each case, in an installation that has a foreign plugin and a broken one."""
    here, site = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("site")
    write_plugin(site, "third", THIRD_PARTY)
    (site / "dcf_third" / "needy.toml").write_text('[recipe]\nname = "needy"\nrequires = ["dcf-absent"]\n')
    write_plugin(site, "broken", "import no_such_module\n")
    (here / "junk.safetensors").write_bytes(b"PK\x03\x04" * 40)
    write_header(here / "plain.safetensors", {"made": "by somebody"})
    write_header(here / "future.safetensors", {"dcf.format": "99", "dcf.config": "{}"})
    write_header(here / "digits.safetensors", {"dcf.format": "1", "dcf.config": "{}", "dcf.seed": "1" * 5000})
    for name, data, channels in (("grey", "digits", 1), ("colour", "digits", 3), ("other", "mnist", 1)):
        values = {
            "format": 1,
            "config": {"data": data, "param": "pixels"},
            "shape": [channels, 8, 8],
            "classes": ["a", "b"],
        }
        write_header(here / f"{name}.safetensors", {f"dcf.{key}": json.dumps(value) for key, value in values.items()})
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DCF_")}
    environ |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    free = ask([c for c in CASES if not c.torch], here, environ)
    # Where torch is needed anyway it is imported once, not in every case.
    return free | ask([c for c in CASES if c.torch], here, environ, "dcf.run"), here


def ask(cases, here, environ, *imports):
    asked = json.dumps([{"argv": c.argv, "env": c.env} for c in cases])
    command = [sys.executable, "-c", HELPER, *imports]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, cwd=here, env=environ, timeout=110)
    assert done.returncode == 0, done.stderr
    return dict(zip([c.name for c in cases], json.loads(done.stdout), strict=True))


def pointed_at(text):
    """The piece of text above the first line of carets."""
    lines = text.splitlines()
    number = next((i for i, line in enumerate(lines) if line.strip() and not line.strip(" ^")), None)
    assert number is not None, f"no caret in:\n{text}"
    start = lines[number].index("^")
    # A caret one past the end points at what is missing.
    return lines[number - 1].ljust(200)[start : start + lines[number].count("^")]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_wrong_request_is_explained(case, answers):
    code, out, err, torch = answers[0][case.name]
    assert code == case.code, err
    assert err.count("error: ") == 1, err
    for text in case.says:
        assert text in err
    if case.caret is not None:
        assert pointed_at(err) == case.caret
    assert out == ""
    assert "Traceback" not in err
    assert "internal error" not in err
    assert case.torch or not torch, "torch was imported to refuse this"


def test_wrong_requests_leave_nothing_behind(answers):
    assert {p.suffix for p in answers[1].iterdir()} == {".safetensors"}


def test_there_are_enough_cases_and_names_are_unique():
    assert len(CASES) == len({c.name for c in CASES}) >= 25


def test_a_broken_plugin_is_told_once_and_stops_nothing(answers):
    err = answers[0]["unknown-matcher"][2]
    assert err.count("no_such_module") == 1
    assert "dcf-broken" in err
