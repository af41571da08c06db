"""The evaluator `nas-rank`: what it ranks, on what, and what it keeps."""

from __future__ import annotations

import pytest
import torch

import dcf
from dcf.evaluation import EvalContext, Protocol
from dcf.pixels import Pixels
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import NETWORK, filled
from dcf_scores.nas import ArchitectureRanking, _undecided, early_stopping

RULES = Protocol(name="tiny", version=1, epochs=3, batch=4, lr=0.05, schedule="constant", network=NETWORK)
SMALL = {"sample": 4, "resamples": 100}
#: Instead of the grid: what takes no time to train.
TINY = [
    f"convnet:width=4,depth=1,norm={norm},activation={activation},pooling={pooling}"
    for norm in ("none", "batch", "group")
    for activation in ("sigmoid", "relu")
    for pooling in ("max", "avg")
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DCF_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    monkeypatch.setattr("dcf_scores.nas.architectures", lambda max_width: TINY)


def evaluate(evaluator, sets=None, data=None, options=None, baselines=("random",), **context):
    ctx = EvalContext(data or fake_data(), **{"protocol": RULES, "networks": 2, "baselines": baselines, **context})
    return evaluator(evaluator.Config(**(options or {}))).evaluate(sets or [fake_set()], ctx)


def rows_of(report):
    return {row.name: row for row in (*report.rows, *report.baselines)}


def test_a_set_of_everything_ranks_as_the_reference_does():
    # The reference, and a set of the very images that it is trained on, with the same networks in the same order.
    data = fake_data(train=8)
    rest = data.holdout(0.1, EvalContext(data, RULES).generator(0, 0, "ranking holdout"))
    images = rest.train.images(rest.train.labels.argsort(stable=True))
    own = fake_set(filled(Pixels(), data, 7, images), data)
    options = {"resamples": 100, "holdout": 0.1}
    report = evaluate(ArchitectureRanking, [own], data, options, networks=1)
    found, reference = report.extra["rows"]["sets"]["accuracy"][0], report.extra["reference"]["accuracy"][0]
    assert found == pytest.approx(reference)
    assert report.extra["rows"]["sets"]["selected"]["place"] == 1


def test_figures_of_the_row_are_those_of_the_accuracies():
    from dcf_scores.correlation import kendall, spearman

    report = evaluate(ArchitectureRanking, options={**SMALL, "sample": 8, "top": [3, "50%", 20]})
    truth = torch.tensor(report.extra["reference"]["accuracy"]).mean(0)
    for name, row in rows_of(report).items():
        for run, accuracy in zip(row.runs, report.extra["rows"][name]["accuracy"], strict=True):
            rho, tau = (f(torch.tensor(accuracy), truth).nan_to_num(nan=0.0) for f in (spearman, kendall))
            assert run.value == pytest.approx(float(rho))
            assert run.metrics["kendall"] == pytest.approx(float(tau))
            assert {"spearman_top3", "kendall_top3", "spearman_top50%", "selected_accuracy"} <= set(run.metrics)
            assert "spearman_top20" not in run.metrics, "8 architectures have no best 20"
        assert row.stat.ci_basis == "architectures, by bootstrap"
        assert row.stat.ci == tuple(report.extra["rows"][name]["all"]["spearman_ci"])
    assert any("8 architectures say little" in w for w in report.warnings)


def test_a_correlation_that_does_not_exist_is_said_to():
    one_class = fake_data(classes=1)
    report = evaluate(ArchitectureRanking, [fake_set(data=one_class)], one_class, SMALL)
    assert rows_of(report)["sets"].stat.mean == 0
    assert any("the reference finds all architectures equally good" in w for w in report.warnings)
    # Where the reference ranks and a row does not.
    assert _undecided({"sets": [[0.5, 0.5], [0.1, 0.2]], "random": [[0.1, 0.3]]}, [0.1, 0.2]) == [
        "nas-rank: sets: 1 of 2 networks find all architectures equally good, which counts as a correlation of 0"
    ]


def test_rows_take_as_many_steps_as_the_set():
    report = evaluate(ArchitectureRanking, options=SMALL)
    assert set(rows_of(report)) == {"sets", "random", "early-stop"}
    assert len({(run.steps, run.images_seen) for row in rows_of(report).values() for run in row.runs}) == 1


def test_early_stopping_sees_other_images_in_each_epoch():
    ctx = EvalContext(fake_data(), RULES)
    material = early_stopping(ctx, 5)
    order = material.order(torch.Generator().manual_seed(0))
    seen = torch.cat([order(epoch) for epoch in range(4)]).tolist()
    assert sorted(seen[:12]) == list(range(12))
    assert material.size == 5


def test_the_reference_is_made_once_and_never_silently(caplog, own_cache):
    with caplog.at_level("INFO"):
        first = evaluate(ArchitectureRanking, options=SMALL)
    assert "0 architectures in the cache, 4 to train" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        again = evaluate(ArchitectureRanking, options={**SMALL, "sample": 4, "reference": "cached"})
    assert "4 architectures in the cache, 0 to train" in caplog.text
    assert again.extra["rows"] == first.extra["rows"]
    assert again.timing.rows["reference"] == first.timing.rows["reference"]


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"reference_epochs": 2}}, {"options": {"reference_nets": 2}}, {"options": {"holdout": 0.4}},
        {"seed": 1}, {"data": fake_data(seed=1)}, {"protocol": RULES.with_overrides(lr=0.01)},
        {"protocol": RULES.with_overrides(augment="dsa")},
    ],
)  # fmt: skip
def test_another_reference_is_another_file(change):
    evaluate(ArchitectureRanking, options=SMALL)
    options = {**SMALL, **change.pop("options", {}), "reference": "cached"}
    with pytest.raises(dcf.EvaluationError, match="4 of 4 architectures have no reference"):
        evaluate(ArchitectureRanking, options=options, **change)


def test_samples_are_drawn_by_their_seed():
    def specs(**options):
        return evaluate(ArchitectureRanking, options={**SMALL, **options}).extra["architectures"]

    assert specs() == specs()
    assert specs() != specs(sample_seed=1)
    assert set(specs()) < set(TINY)
    assert specs(sample="all") == TINY


def test_several_reference_networks_say_how_far_a_ranking_can_be_right():
    report = evaluate(ArchitectureRanking, options={**SMALL, "reference_nets": 2})
    assert -1 <= report.extra["reference"]["between_networks"] <= 1
    assert "between_networks" not in evaluate(ArchitectureRanking, options=SMALL).extra["reference"]


@pytest.mark.parametrize("top", [["0"], ["101%"], ["many"], ["721"]])
def test_wrong_tops_are_refused(top):
    with pytest.raises(ValueError, match="expected numbers such as 10 or shares such as 5%"):
        ArchitectureRanking.Config(top=top)


def test_the_grid_is_that_of_the_paper():
    from dcf.networks.options import ConvNetConfig
    from dcf.spec import parse_one
    from dcf_scores.grid import architectures

    every = architectures()
    assert all("width=32," in spec for spec in architectures(32))
    assert len(architectures(32)) == 180
    assert len(set(every)) == len(every) == 720
    assert len({str(ConvNetConfig(**parse_one(spec).as_dict())) for spec in every}) == 720
