"""`dcf info` on files that mean well and on files that do not."""

import json
import struct

import pytest

from dcf.cli import main
from dcf.errors import FormatError
from dcf.metadata import FORMAT, read_metadata


def write(path, **values):
    metadata = {"dcf.format": "1", "dcf.config": "{}"} | {f"dcf.{k}": v for k, v in values.items()}
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_info_shows_what_a_file_says(tmp_path, capsys):
    results = {
        "protocol": "p@1",
        "summary": {"metric": "accuracy", "mean": 0.712, "pooled": 0.005, "n_sets": 1, "n_nets": 3},
    }
    write(
        tmp_path / "synthetic.safetensors",
        config=json.dumps({"matcher": "some", "param": "pixels"}),
        shape="[1, 8, 8]",
        classes=json.dumps([str(n) for n in range(100)]),
        results=json.dumps(results),
        license='"CC0"',
        storage=json.dumps({"floats": 6400, "bytes": 25600, "views": 10, "tensors": []}),
    )
    assert main(["info", str(tmp_path)]) == 0  # a run directory stands for its set
    rows = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in capsys.readouterr().out.splitlines()}
    assert rows["matcher"] == "some"
    assert rows["shape"] == "1 x 8 x 8"
    assert rows["classes"].startswith("100: 0, 1, 2,")
    assert rows["classes"].endswith("and 88 more")
    assert rows["results"] == "accuracy 71.2 ± 0.5 % (n = 1 x 3, protocol p@1)"
    assert rows["license"] == "CC0"
    assert rows["storage"] == "6,400 floats, 25,600 bytes, 10 views"  # as older files tell it


def test_info_shows_several_files_one_after_the_other(tmp_path, capsys):
    files = [str(write(tmp_path / f"{name}.safetensors", seed=str(n))) for n, name in enumerate("ab")]
    assert main(["info", *files]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[0].split()[:2] == ["file", files[0]]
    assert second.splitlines()[0].split()[:2] == ["file", files[1]]
    assert main(["info", *files, "--json"]) == 0
    assert [one["seed"] for one in json.loads(capsys.readouterr().out)] == [0, 1]
    assert main(["info", files[1], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 1
    assert main(["info", files[0], str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().out == ""


HOSTILE = [
    {"license": json.dumps("\x1b]0;owned\x07\x1b[2Jrm\r\nfake: line")},
    {"config": json.dumps({"param\x1b[31m": "\x9b31m[link=http://x]click[/link]"})},
    {"classes": json.dumps(["\u202e" * 50] * 5000)},
    {"results": json.dumps({"summary": {"mean": 0.5, "pooled": "x", "n_sets": "\x1b[1m" * 99}, "protocol": ["[red]"]})},
    {"shape": json.dumps(["9" * 1000] * 1000)},
    {"storage": "[" * 300 + "]" * 300},
    {"storage": json.dumps({"floats": "\x1b[2J" * 99, "bytes": 10**4000, "views": -1.5, "store": ["\x9b31m"] * 99})},
    {
        "storage": json.dumps(
            {"views_per_class": {"min": {}, "max": "\x1b"}, "budget": {"\x1b": "\n"}, "utilisation": 1}
        )
    },
    {"note": json.dumps([[["\x1b[2J" * 9] * 99] * 9])},
    {"space": json.dumps({f"k{i}": "x" * 1000 for i in range(1000)})},
    {f"key{i}\x1b": "1" for i in range(500)},
    {"seed": '"\\ud800"'},
    {"note": '"\\ud800"'},
]


@pytest.mark.parametrize("values", HOSTILE, ids=lambda v: next(iter(v))[:8].strip("\x1b"))
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_hostile_text_is_shown_as_data_or_refused(values, flags, tmp_path, capsys):
    file = write(tmp_path / "set.safetensors", **values)
    assert main(["info", str(file), *flags]) in (0, 1)
    told = capsys.readouterr()
    assert "internal error" not in told.err
    assert all(c.isprintable() or c == "\n" for c in told.out + told.err)
    assert flags or len(told.out) < 10_000, "a file can flood the terminal"
    assert not any(line.startswith("fake") for line in told.out.splitlines())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format": str(FORMAT + 1)}, "update dcf-core"),
        ({"format": "2"}, "its entry 'store'"),
        ({"format": "2", "store": '{"dtype": "fp32"}'}, "its entry 'store'"),
        ({"format": "2", "store": '{"dtype": ["fp16"]}'}, "its entry 'store'"),
        ({"format": "2", "store": '{"dtype": "fp16", "x": 1}'}, "its entry 'store'"),
        ({"format": "1", "store": '{"dtype": "fp16"}'}, "its entry 'store'"),
        ({"selection": "[1]"}, "its entry 'selection'"),
        ({"format": "9" * 4000}, "update dcf-core"),
        ({"format": "9" * 5000}, "damaged"),
        ({"format": "true"}, "unknown format version"),
        ({"format": '"\x1b"'}, "damaged"),
        ({"seed": "NaN"}, "damaged"),
        ({"seed": "{"}, "damaged"),
        ({"seed": "[" * 100_000}, "damaged"),
        ({"config": "[]"}, "does not say how it was made"),
    ],
)
def test_unusable_headers_are_refused(values, says, tmp_path, capsys):
    file = write(tmp_path / "set.safetensors", **values)
    with pytest.raises(FormatError, match=says):
        read_metadata(file)
    assert main(["info", str(file)]) == 1
    error = capsys.readouterr().err
    assert len(error) < 400
    assert "internal error" not in error


def test_read_metadata_decodes_values_without_prefix(tmp_path):
    file = write(tmp_path / "set.safetensors", seed="7", digest="not JSON, and left out")
    assert read_metadata(file) == {"format": 1, "config": {}, "seed": 7}
