"""What evaluators ask of trained networks beside their accuracy: probes, their summaries, and reports of before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dcf.errors import FormatError
from dcf.evaluation import (
    EvalContext,
    Findings,
    Protocol,
    Report,
    Row,
    Run,
    random_images_row,
    random_row,
    random_selection,
    set_row,
)
from dcf.evaluation.train import Train, baseline_rows
from dcf.pixels import Pixels
from dcf.preview import save_picture, tiled
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import NETWORK, filled

RULES = Protocol(name="tiny", version=1, epochs=2, batch=4, lr=0.05, schedule="constant", network=NETWORK)


def context(probe=None, **options):
    return EvalContext(fake_data(), **{"protocol": RULES, "networks": 2, "baselines": (), "probe": probe, **options})


def norm_of(state, trial):
    total = float(sum(p.detach().square().sum() for p in state.parameters()))
    return Findings({"norm": total, "size": trial.material.size}, {"curve": [trial.set, trial.net]})


def run(number=0, **fields):
    return Run(
        **{"set": 0, "net": number, "seed": 0, "value": 0.5, "last": 0.5, "steps": 1, "images_seen": 1, **fields}
    )


def row(*runs):
    return Row.of(runs, name="sets", network="mlp", protocol="tiny@1", augment="none", images=2)


def test_probes_see_every_network_of_sets_and_baselines():
    report = Train().evaluate([fake_set(), fake_set()], context(norm_of, baselines=("random", "whole")))
    assert [one.name for one in report.baselines] == ["random", "whole"]
    for one in (*report.rows, *report.baselines):
        norms = [r.metrics["norm"] for r in one.runs]
        assert one.stats["norm"].mean == pytest.approx(sum(norms) / len(norms))
        assert one.stats["norm"].metric == "norm"
        assert (one.stats["size"].mean, one.stats["size"].pooled) == (one.images, 0)
        assert [r.details["curve"] for r in one.runs] == [[r.set, r.net] for r in one.runs]


def test_probes_change_no_accuracy():
    plain, probed = (Train().evaluate([fake_set()], context(probe)) for probe in (None, norm_of))
    assert [r.value for r in plain.rows[0].runs] == [r.value for r in probed.rows[0].runs]


def test_what_was_not_asked_is_not_written():
    written = Train().evaluate([fake_set()], context()).to_json()
    assert "stats" not in written["rows"][0]
    assert {"metrics", "details"}.isdisjoint(written["rows"][0]["runs"][0])
    assert Report.from_json(written).rows[0].stats == {}


def test_what_was_asked_survives_the_file():
    report = Train().evaluate([fake_set()], context(norm_of))
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.text()).rows[0].stats["norm"] == report.rows[0].stats["norm"]


def test_runs_of_a_row_measure_the_same():
    with pytest.raises(ValueError, match="measured the same"):
        row(run(metrics={"ece": 0.1}), run(1))
    with pytest.raises(ValueError, match="measured the same"):
        row(run(metric="velocity"), run(1))
    assert row(run(metric="velocity"), run(1, metric="velocity")).stat.metric == "velocity"


def test_further_figures_are_finite():
    with pytest.raises(ValueError, match="finite"):
        row(run(metrics={"nll": float("inf")}))
    written = Train().evaluate([fake_set()], context()).to_json()
    written["rows"][0]["runs"][0]["metrics"] = {"nll": "much"}
    with pytest.raises(FormatError, match="nll"):
        Report.from_json(written)


# --- random rows --------------------------------------------------------------------------------------------------


def test_equal_numbers_and_equal_bytes_are_two_rows():
    half = fake_set().stored_as("fp16")
    as_many, as_dear = random_images_row([half], context(), NETWORK), random_row([half], context(), NETWORK)
    assert (as_many.row.name, as_many.row.images, as_many.row.info) == ("random-images", 4, {"per_class": 2})
    assert (as_dear.row.name, as_dear.row.images) == ("random", 2)
    assert as_many.row.bytes == 2 * half.storage().nbytes
    assert as_many.row.stat.n_sets == 2


def test_equal_numbers_are_those_of_the_largest_class():
    data = fake_data()
    param = Pixels()
    param.allocate(data.spec, torch.tensor([0, 0, 0, 1]))
    param.absorb(data.train.images(torch.tensor([0, 1, 2, 6])))
    assert random_images_row([fake_set(param)], context(), NETWORK).row.images == 6


def test_selections_can_be_asked_for_again():
    ctx, seen = context(), []
    ctx = replace(ctx, probe=lambda state, trial: seen.append(trial.material.fetch(torch.arange(4)).x) or Findings({}))
    random_images_row([fake_set()], ctx, NETWORK)
    for net, images in enumerate(seen):
        assert torch.equal(ctx.data.train.images(random_selection(ctx, net, 2)), images)


def test_random_images_may_have_other_labels():
    def swapped(x):
        return F.one_hot(1 - (x.mean((1, 2, 3)) > 0).long(), 2).float()

    own = random_images_row([fake_set()], context(), NETWORK).row
    other = random_images_row([fake_set()], context(), NETWORK, swapped).row
    assert [r.seed for r in own.runs] == [r.seed for r in other.runs]
    assert [r.train_loss for r in own.runs] != [r.train_loss for r in other.runs]


def test_baselines_of_the_command_line_take_no_labels():
    rows, notes = baseline_rows([fake_set(filled(Pixels(), fake_data()))], context(baselines=("random",)), [NETWORK])
    assert [m.row.name for m in rows] == ["random"]
    assert notes == []
    assert set_row([fake_set()], context(), NETWORK).row.name == "sets"


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_picture_is_written(tmp_path):
    tiles = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 1, 16, 16) * 40
    grid = tiled(tiles, 3)
    assert grid.shape == (1, 2 + 2 * 34, 2 + 3 * 34)
    assert grid[0, 2 + 34, 2 + 2 * 34] == 200
    save_picture(grid, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes()[1:4] == b"PNG"
