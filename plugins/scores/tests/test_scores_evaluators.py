"""The evaluators: what they train, what their reports say, and what they refuse."""

from __future__ import annotations

from statistics import variance

import pytest
import torch

import dcf
from dcf.data.base import LabelledPixels, real_data
from dcf.evaluation import EvalContext, Protocol, Report
from dcf.evaluation.protocol import PROGRAM
from dcf.evaluation.replay import Replay
from dcf.evaluation.train import Train
from dcf.evaluation.wording import row_title
from dcf.pixels import Pixels
from dcf.testing import fake_data, fake_set
from dcf.testing.fakes import NETWORK, SoftPixels, filled
from dcf.types import Hints, Program
from dcf_scores.ars import AugmentationRobustScore
from dcf_scores.calibration import Calibration
from dcf_scores.lrs import LabelRobustScore
from dcf_scores.membership import WARNING, Membership
from dcf_scores.nas import ArchitectureRanking
from dcf_scores.ranking import NEUTRAL, label_robust_score
from dcf_scores.robust import Robustness

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


def soft_set():
    return fake_set(filled(SoftPixels(), fake_data()))


def rows_of(report):
    return {row.name: row for row in (*report.rows, *report.baselines)}


EVERY = [
    (LabelRobustScore, {}),
    (AugmentationRobustScore, {"augment": "dsa:ops=[color,crop]"}),
    (Calibration, {}),
    (ArchitectureRanking, SMALL),
    (Robustness, {"steps": 2, "corruptions": ["blur"]}),
    (Membership, {"fpr": 0.2}),
]


@pytest.mark.parametrize(("evaluator", "options"), EVERY)
def test_programs_are_warned_about_and_run_both_ways(evaluator, options):
    program = fake_set()
    program.hints = Hints(program=Program(((0, 2), (1, 3)), (0.05, 0.02)))
    report = evaluate(evaluator, [program], options=options)
    assert any("this set is a program" in warning for warning in report.warnings)
    sets, replay = report.rows
    assert (sets.name, len(sets.runs)) == ("sets", 2)
    assert (replay.name, replay.protocol, replay.augment, len(replay.runs)) == ("replay", PROGRAM, "none", 2)
    if evaluator is not ArchitectureRanking:  # whose rows are correlations
        own = evaluate(Replay, [program], baselines=())
        assert [run.value for run in replay.runs] == [run.value for run in own.rows[0].runs]


def test_each_program_ranks_architectures_with_its_own_steps():
    one, other = fake_set(), fake_set(seed=1)
    one.hints = Hints(program=Program(((0, 2),), (0.05,)))
    other.hints = Hints(program=Program(((0, 2), (1, 3), (1, 2)), (0.05, 0.02, 0.03)))
    replay = rows_of(evaluate(ArchitectureRanking, [one, other], options=SMALL))["replay"]
    assert [run.steps for run in replay.runs] == [SMALL["sample"] * n for n in (1, 1, 3, 3)]


@pytest.mark.parametrize(("evaluator", "options"), EVERY)
def test_more_networks_change_no_other(evaluator, options):
    few, many = (evaluate(evaluator, options=options, networks=n) for n in (1, 2))
    assert few.rows[0].runs[0] == many.rows[0].runs[0]


@pytest.mark.parametrize(("evaluator", "options"), [e for e in EVERY if e[0] is not ArchitectureRanking])
def test_networks_are_those_of_train(evaluator, options):
    own, plain = evaluate(evaluator, options=options), evaluate(Train)
    name = "sets-plain" if evaluator is AugmentationRobustScore else "sets"
    assert [r.last for r in rows_of(own)[name].runs] == [r.last for r in plain.rows[0].runs]


@pytest.mark.parametrize(("evaluator", "options"), EVERY)
def test_global_randomness_is_left_alone(evaluator, options):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate(evaluator, options=options)
    assert torch.equal(before, torch.get_rng_state())


# --- lrs ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_accuracies_beside_them():
    report = evaluate(LabelRobustScore, [fake_set(), fake_set(seed=1)], options={"weight": 0.3})
    rows = rows_of(report)
    assert set(rows) == {"sets", "random-images", "random", "whole"}
    for run in rows["sets"].runs:
        random, whole = (next(r.value for r in rows[n].runs if r.net == run.net) for n in ("random-images", "whole"))
        hlr, ior = whole - run.value, run.value - random
        assert run.metrics["hlr"] == pytest.approx(hlr)
        assert run.metrics["ior"] == pytest.approx(ior)
        assert run.metrics["lrs"] == pytest.approx(label_robust_score(hlr, ior, 0.3))
    assert report.summary.metric == "lrs"
    assert report.extra["neutral"] == NEUTRAL


def test_random_images_that_are_as_many_and_as_dear_are_trained_once():
    same = evaluate(LabelRobustScore)
    rows = rows_of(same)
    assert rows["random"].runs == rows["random-images"].runs
    assert same.timing.rows[f"random {NETWORK}"] == []
    assert [r.value for r in rows["random"].runs] == [r.value for r in evaluate(Train).baselines[0].runs]
    half = rows_of(evaluate(LabelRobustScore, [fake_set().stored_as("fp16")]))
    assert (half["random"].images, half["random-images"].images) == (2, 4)


def test_soft_labels_count_in_the_improvement_alone():
    report = evaluate(LabelRobustScore, [soft_set()])
    rows = rows_of(report)
    assert rows["sets-hard"].protocol == "tiny@1[labels=hard]"
    assert report.extra["labels"] == "soft"
    for run in rows["sets"].runs:
        hard, whole, random = (
            next(r.value for r in rows[n].runs if r.net == run.net) for n in ("sets-hard", "whole", "random-images")
        )
        assert run.metrics["hlr"] == pytest.approx(whole - hard)
        assert run.metrics["ior"] == pytest.approx(run.value - random)
    losses = [[r.train_loss for r in rows[n].runs] for n in ("sets", "sets-hard")]
    assert losses[0] != losses[1]


def test_protocols_with_hard_labels_have_no_soft_row():
    report = evaluate(LabelRobustScore, [soft_set()], protocol=RULES.with_overrides(labels="hard"))
    assert "sets-hard" not in rows_of(report)
    assert report.extra["labels"] == "hard"


def test_every_row_has_the_same_step_size_and_length_of_training():
    report = evaluate(LabelRobustScore)
    assert {row.protocol for row in rows_of(report).values()} == {"tiny@1"}
    assert report.selection == "none"
    assert {run.steps for name in ("sets", "random-images") for run in rows_of(report)[name].runs} == {3}


def test_the_whole_set_may_be_given_as_a_fraction_and_is_said_to_be_given():
    report = evaluate(LabelRobustScore, options={"full": 0.995})
    assert "whole" not in rows_of(report)
    assert any("0.995, was given and not measured" in w for w in report.warnings)
    assert report.rows[0].runs[0].metrics["hlr"] == pytest.approx(0.995 - report.rows[0].runs[0].value)
    with pytest.raises(ValueError, match="full"):
        LabelRobustScore.Config(full=99.5)


def test_a_teacher_may_label_the_random_images_beside_soft_labels():
    plain, taught = (
        evaluate(LabelRobustScore, [soft_set()], options={"random_labels": r}) for r in ("hard", "teacher")
    )
    assert 0 <= taught.extra["teacher_accuracy"] <= 1
    for name in ("random-images", "random"):
        losses = [[r.train_loss for r in rows_of(one)[name].runs] for one in (plain, taught)]
        assert losses[0] != losses[1]
    assert rows_of(plain)["whole"] == rows_of(taught)["whole"]


def test_sets_below_one_image_a_class_are_scored_against_as_many():
    tiny = fake_set().stored_as("uint8")
    report = evaluate(LabelRobustScore, [tiny])
    assert "random" not in rows_of(report)
    assert set(report.rows[0].stats) == {"hlr", "ior", "lrs"}


def test_intervals_know_that_sets_share_their_random_images():
    report = evaluate(LabelRobustScore, [fake_set(seed=s) for s in range(3)], networks=3)
    stat, runs = report.rows[0].stats["ior"], report.rows[0].runs
    by_set = [sum(r.metrics["ior"] for r in runs if r.set == s) / 3 for s in range(3)]
    by_net = [sum(r.metrics["ior"] for r in runs if r.net == n) / 3 for n in range(3)]
    half = 4.302653 * (variance(by_set) / 3 + variance(by_net) / 3) ** 0.5
    assert stat.ci == pytest.approx((stat.mean - half, stat.mean + half))
    assert stat.ci_basis == "sets and networks; the networks of all sets share their rivals"
    one = evaluate(LabelRobustScore, networks=1).rows[0].stats["ior"]
    assert (one.ci, one.ci_basis) == ("not estimated", "")
    assert evaluate(LabelRobustScore).rows[0].stats["ior"].ci_basis == "networks, conditional on one set"


# --- ars ----------------------------------------------------------------------------------------------------------


def test_augmentation_is_switched_on_and_off():
    report = evaluate(AugmentationRobustScore, options={"augment": "dsa:ops=[color,crop]"})
    rows = rows_of(report)
    assert {name: row.augment for name, row in rows.items()} == {
        "sets": "dsa:ops=[color,crop]", "random-images": "dsa:ops=[color,crop]",
        "sets-plain": "none", "random-images-plain": "none",
    }  # fmt: skip
    assert row_title("sets-plain") == "condensed set, not augmented"
    for run in rows["sets"].runs:
        value = {n: next(r.value for r in rows[n].runs if r.net == run.net) for n in rows}
        augmented, plain = value["sets"] - value["random-images"], value["sets-plain"] - value["random-images-plain"]
        assert run.metrics["ior_augmented"] == pytest.approx(augmented)
        assert run.metrics["ior_plain"] == pytest.approx(plain)
        assert run.metrics["ars"] == pytest.approx(label_robust_score(-plain, augmented))


def test_the_protocols_own_augmentation_comes_first():
    rules = RULES.with_overrides(augment="dsa:ops=[flip]")
    assert evaluate(AugmentationRobustScore, protocol=rules).extra["augment"] == "dsa:ops=[flip]"
    assert evaluate(AugmentationRobustScore).extra["augment"].startswith("dsa:ops=[color,")


def test_nothing_to_switch_is_a_clear_error():
    with pytest.raises(dcf.EvaluationError, match="got 'none', which changes nothing"):
        evaluate(AugmentationRobustScore, options={"augment": "none"})


# --- calibration --------------------------------------------------------------------------------------------------


def test_every_row_has_its_table_and_figures():
    report = evaluate(Calibration, baselines=("random", "whole"), options={"bins": 5})
    assert set(report.extra["reliability"]) == {"sets", "random", "whole"}
    for name, row in rows_of(report).items():
        table = report.extra["reliability"][name]
        assert len(table) == 5
        assert sum(one["count"] for one in table) == 2 * 8
        hits = sum(one["count"] * one["accuracy"] for one in table if one["count"])
        assert hits / 16 == pytest.approx(row.stat.mean)
        assert set(row.stats) == {"ece", "nll", "brier", "confidence"}
    assert report.summary == report.rows[0].stats["ece"]


def test_the_temperature_is_fitted_on_training_images_alone():
    report = evaluate(Calibration, options={"temperature": True, "holdout": 0.34}, baselines=("whole",))
    row = report.baselines[0]
    assert report.extra["held_out"] == 4
    assert row.images == 12 - 4, "what is held out is trained on by nobody"
    assert {"ece_tempered", "nll_tempered", "brier_tempered", "temperature"} <= set(row.stats)
    assert {"sets", "sets_tempered"} <= set(report.extra["reliability"])
    assert report.data["checksum"] == fake_data().checksum


def test_other_test_images_give_the_same_temperature():
    one, other = fake_data(), fake_data()
    other = real_data(
        LabelledPixels(one.spec.space.decode(one.train.images(torch.arange(12))), one.train.labels),
        LabelledPixels(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(9)), one.test.labels),
        one.spec.classes, one.spec.space, one.id, one.source,
    )  # fmt: skip
    first, second = (evaluate(Calibration, data=d, options={"temperature": True}, baselines=()) for d in (one, other))
    temperatures = [[run.metrics["temperature"] for run in r.rows[0].runs] for r in (first, second)]
    assert temperatures[0] == pytest.approx(temperatures[1], rel=1e-4)
    assert first.rows[0].stats["nll"] != second.rows[0].stats["nll"]


def test_diverged_networks_have_no_calibration():
    wild = RULES.with_overrides(lr=1e30)
    for evaluator in (Calibration, Membership):
        with pytest.raises(dcf.EvaluationError, match="network 0 of set 0 are not finite"):
            evaluate(evaluator, protocol=wild)


# --- robust -------------------------------------------------------------------------------------------------------


def test_clean_accuracy_is_that_of_the_test_where_all_images_are_used():
    report = evaluate(Robustness, options={"steps": 2, "corruptions": []})
    for row in rows_of(report).values():
        assert [run.metrics["clean"] for run in row.runs] == [run.value for run in row.runs]
        assert set(row.stats) == {"clean", "fgsm", "pgd"}


def test_no_room_changes_nothing_and_a_wide_box_everything():
    still, wild = (evaluate(Robustness, options={"eps": e, "step": 0.1, "corruptions": []}) for e in (0.0, 1.0))
    for run in still.rows[0].runs:
        assert run.metrics["pgd"] == run.metrics["fgsm"] == run.metrics["clean"]
    assert wild.rows[0].stats["pgd"].mean < still.rows[0].stats["pgd"].mean


def test_corruptions_are_reported_by_severity():
    options = {"steps": 1, "corruptions": ["blur", "contrast"], "severities": [1, 5], "images": 5}
    report = evaluate(Robustness, options=options)
    assert report.extra["images"] == 5
    for name, row in rows_of(report).items():
        table = report.extra["corruptions"][name]
        assert {kind: len(values) for kind, values in table.items()} == {"blur": 2, "contrast": 2}
        assert row.stats["blur"].mean == pytest.approx(sum(table["blur"]) / 2)
        both = [v for values in table.values() for v in values]
        assert row.stats["corrupted"].mean == pytest.approx(sum(both) / 4)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.1", 0.1)])
def test_quotients_are_numbers(text, value):
    assert Robustness.Config(eps=text).eps == pytest.approx(value)
    assert Robustness.Config(eps=text, steps=5).step_size == pytest.approx(value / 2)


@pytest.mark.parametrize("text", ["8/0", "a/b", "300/255", "-1/255"])
def test_wrong_quotients_are_refused(text):
    with pytest.raises(ValueError, match="eps"):
        Robustness.Config(eps=text)


# --- membership ---------------------------------------------------------------------------------------------------


def test_copies_are_found_with_their_numbers():
    data = fake_data()
    chosen = torch.tensor([4, 1, 9, 7])
    one = fake_set(filled(Pixels(), data, 2, data.train.images(chosen)), data)
    report = evaluate(Membership, [one], data, {"fpr": 0.2})
    table = report.extra["nearest"][0]
    assert [row["index"] for row in table] == chosen.tolist()
    assert [row["class_of_real"] for row in table] == [row["class"] for row in table] == [0, 0, 1, 1]
    assert max(row["l2"] for row in table) < 1e-5
    assert [row["feature_index"] for row in table] == chosen.tolist()
    assert report.rows[0].stats["copies"].mean == report.rows[0].stats["near"].mean == 1


def test_images_of_nobody_are_no_copies():
    data = fake_data()
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    report = evaluate(Membership, [fake_set(filled(Pixels(), data, 2, noise), data)], data, {"features": "none"})
    assert report.rows[0].stats["copies"].mean == report.rows[0].stats["near"].mean == 0
    row = report.extra["nearest"][0][0]
    assert row["l2"] == pytest.approx(row["rms"] * (3 * 8 * 8) ** 0.5)
    assert "feature_index" not in row
    assert report.extra["fresh"]["50%"] < row["l2"]


def test_distances_are_those_of_pixels():
    data = fake_data()
    shifted = data.train.images(torch.tensor([0, 1, 6, 7])) + 0.004 / 0.25
    table = evaluate(Membership, [fake_set(filled(Pixels(), data, 2, shifted), data)], data).extra["nearest"][0]
    assert [row["rms"] for row in table] == pytest.approx([0.004] * 4, rel=1e-3)


@pytest.mark.slow
def test_the_controls_are_the_images_that_were_trained_on_and_those_that_were_not():
    rules = RULES.with_overrides(epochs=150, lr=0.05)
    data = noise_data()
    own = fake_set(filled(Pixels(), data, 4, torch.zeros(8, 1, 6, 6)), data)
    report = evaluate(Membership, [own], data, {"fpr": 0.1}, protocol=rules)
    random = report.baselines[0]
    assert random.stats["chosen_auc"].mean > 0.9, "what was learned by heart must be found"
    assert abs(random.stats["loss_auc"].mean - 0.5) < 0.2, "what nobody has seen cannot be"
    assert "chosen_auc" not in report.rows[0].stats


def noise_data(n=30):
    """Labels that say nothing: a network can only learn them by heart."""
    draw = torch.Generator().manual_seed(0)
    parts = [
        LabelledPixels(torch.rand(2 * n, 1, 6, 6, generator=draw), torch.arange(2).repeat_interleave(n))
        for _ in range(2)
    ]
    space = dcf.ValueSpace.unit(1)
    return real_data(parts[0], parts[1], ("a", "b"), space, "python:noise", "made up")


def test_random_images_that_are_all_images_are_no_control():
    data = fake_data(train=4)
    images = data.train.images(data.train.labels.argsort(stable=True))
    report = evaluate(Membership, [fake_set(filled(Pixels(), data, 4, images), data)], data, {"fpr": 0.2})
    assert [row.name for row in (*report.rows, *report.baselines)] == ["sets"]
    assert "random: no row, because 4 images a class leave no training image that nobody has seen" in report.warnings


def test_warnings_are_honest():
    report = evaluate(Membership, options={"fpr": 0.001})
    assert WARNING in report.warnings
    assert any("8 test images cannot show a false alarm rate of 0.001" in w for w in report.warnings)
    assert "loss_tpr" not in report.rows[0].stats
    assert "loss_tpr" in evaluate(Membership, options={"fpr": 0.2}).rows[0].stats


def test_a_picture_of_pairs_is_written_where_it_was_asked_for(tmp_path):
    evaluate(Membership, options={"picture": tmp_path / "pairs.png"})
    from PIL import Image

    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.size == (2 + 4 * 34, 2 + 2 * 34)


def test_reports_survive_the_file():
    for evaluator, options in EVERY:
        report = evaluate(evaluator, options=options)
        assert Report.from_json(report.to_json()) == report
