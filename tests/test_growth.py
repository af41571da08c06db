"""The measurement of growth: a process a point, and exponents from the points."""

import json
import xml.etree.ElementTree as ET

import pytest
from tests.benchmarks import growth


def test_exponents_are_those_of_the_last_two_points():
    assert growth.slope([1, 10, 100], [7, 2, 20]) == pytest.approx(1)
    assert growth.slope([2, 4], [3, 3]) == 0


def test_every_axis_is_varied_alone():
    for axis, point in growth.points(["dm", "dc"], list(growth.AXES)):
        base = growth.Point(point.matcher, memory=point.memory)
        changed = {name for name, value in vars(point).items() if value != getattr(base, name)}
        assert changed <= {axis}


@pytest.mark.slow
def test_points_are_measured_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "AXES", {"images": (20, 200)})
    monkeypatch.chdir(growth.Path(__file__).parents[1])
    assert growth.main(["--matchers", "dm", "--axes", "images", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "growth.json").read_text())["points"]
    assert [(row["images"], row["memory"]) for row in rows] == [(i, m) for m in ("resident", "disk") for i in (20, 200)]
    assert all(row["cpu_s"] > 0 and row["peak_mb"] > 0 for row in rows)
    assert "memory ~ x^" in capsys.readouterr().out
    assert len(ET.parse(tmp_path / "images.svg").findall(".//{*}circle")) == 8
