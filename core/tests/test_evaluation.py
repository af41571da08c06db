"""Evaluators, their reports, and the rows that stand beside a result, on tiny data with a linear network."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from dcf.augmenter import Augmenter
from dcf.data.real import RealData, Split
from dcf.errors import DcfError, EvaluationError, FormatError, SpecError, UsageError
from dcf.evaluation import fit, grouping
from dcf.evaluation.baselines import equal_bytes, pick_per_class, random_row, whole_cost
from dcf.evaluation.context import EvalContext
from dcf.evaluation.cross_arch import CrossArch, pool_specs
from dcf.evaluation.fit import material_of, schedule_for, set_row
from dcf.evaluation.protocol import Protocol
from dcf.evaluation.report import Report
from dcf.evaluation.runner import affordable_baselines, evaluate_sets
from dcf.evaluation.statistics import NOT_ESTIMATED
from dcf.evaluation.train import Train
from dcf.networks.base import Network, NetworkFactory
from dcf.pixels import Pixels
from dcf.space import ValueSpace
from dcf.synthetic import SyntheticSet
from dcf.testing.fakes import filled
from dcf.types import Batch, DataSpec, Hints

SHAPE, CLASSES = (1, 4, 4), 3
SPEC = DataSpec(*SHAPE, tuple("abc"), ValueSpace((0.5,), (0.25,)))
RULES = Protocol(name="tiny", version=1, epochs=4, batch=4, lr=0.1, schedule="cosine", augment="same", networks=2)


class Linear(Network):
    def __init__(self, width):
        super().__init__()
        self.hidden = nn.Linear(math.prod(SHAPE), width)
        self.classifier = nn.Linear(width, CLASSES)

    def features(self, x):
        return torch.tanh(self.hidden(x.flatten(1)))


class LinearFactory(NetworkFactory):
    def __init__(self, width=8):
        super().__init__()
        self.width = width

    def build(self, spec):
        return Linear(self.width)


class Jitter(Augmenter):
    space = "unit"

    def draw(self, n, shape, generator, shared):
        return torch.randn(1 if shared else n, generator=generator)

    def apply(self, batch, values):
        return Batch(batch.x + 0.1 * values.to(batch.x).view(-1, 1, 1, 1), batch.y)


OBJECTS = {"tiny": LinearFactory(), "wide": LinearFactory(16), "jitter": Jitter()}


def split(counts, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    centre = torch.tensor([40, 120, 200])[labels].view(-1, 1, 1, 1)
    pixels = (centre + 50 * torch.randn(len(labels), *SHAPE, generator=g)).clamp(0, 255).to(torch.uint8)
    return Split(pixels, labels, SPEC.space, CLASSES)


@pytest.fixture
def data():
    return RealData(SPEC, split((20, 20, 20), 0), split((7, 7, 7), 1), "toy")


def condensed(ipc=2, seed=0, soft=False, hints=None, **config):
    param = Soft() if soft else Pixels()
    param.allocate(SPEC, torch.arange(CLASSES).repeat_interleave(ipc))
    g = torch.Generator().manual_seed(seed)
    level = (param.view_class.float() - 1).view(-1, 1, 1, 1)
    param.absorb(level + torch.randn(CLASSES * ipc, *SHAPE, generator=g))
    return SyntheticSet(param, SPEC, {"network": "tiny", "augment": "none", "data": "toy", **config}, seed, hints)


class Soft(Pixels):
    def labels(self, index):
        return 0.9 * torch.eye(CLASSES)[self.view_class[index]] + 0.1 / CLASSES


def context(data, **kwargs):
    return EvalContext(data, **{"protocol": RULES, "objects": OBJECTS, "baselines": (), **kwargs})


def values(report):
    return [run.value for run in report.rows[0].runs]


# --- train ----------------------------------------


def test_every_value_of_every_set_and_network_is_reported(data):
    report = Train().evaluate([condensed(seed=s) for s in range(3)], context(data))
    runs = report.rows[0].runs
    assert [(r.set, r.net) for r in runs] == [(s, n) for s in range(3) for n in range(2)]
    assert len({r.seed for r in runs}) == 6
    assert all(r.value == r.last and 0 <= r.value <= 1 for r in runs)
    assert all((r.steps, r.images_seen) == (8, 24) for r in runs)
    assert report.summary.mean == pytest.approx(sum(r.value for r in runs) / 6)
    assert (report.summary.n_sets, report.summary.n_nets, report.protocol) == (3, 2, "tiny@1")
    assert len(report.rows[0].per_class) == CLASSES


@pytest.fixture
def groups(monkeypatch):
    """How many networks were trained at once, and how, one entry for each group."""
    found, whole = [], fit.train_each

    def noted(learners, how, *args, **settings):
        found.append((len(learners), how))
        return whole(learners, how, *args, **settings)

    monkeypatch.setattr(fit, "train_each", noted)
    return found


def test_networks_that_are_stacked_come_to_the_same_rows(data, monkeypatch, groups):
    sets = [condensed(seed=0), condensed(seed=1), condensed(seed=2, hints=Hints(lr=0.02))]
    alone = Train().evaluate(sets, context(data, networks=3))
    assert groups == [(1, "alone")] * 9
    monkeypatch.setattr(grouping, "best_way", lambda *_: "stacked")
    monkeypatch.setattr(grouping, "_MOST", 4)
    groups.clear()
    together = Train().evaluate(sets, context(data, networks=3))
    # Six networks of the first two sets, at most four together, so two alone; then those of another step size.
    assert groups == [(4, "stacked"), *[(1, "alone")] * 2, (3, "stacked")]
    assert len(together.rows[0].runs) == 9
    for one, other in zip(together.rows[0].runs, alone.rows[0].runs, strict=True):
        assert one.model_copy(update={"train_loss": other.train_loss}) == other
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
    assert together.rows[0].per_class == alone.rows[0].per_class


def test_networks_that_are_side_by_side_come_to_the_same_rows(data, monkeypatch, groups, set_threads):
    sets = [condensed(seed=0), condensed(seed=1, hints=Hints(lr=0.02))]
    set_threads(1)
    alone = Train().evaluate(sets, context(data, networks=3))
    set_threads(2)
    groups.clear()
    monkeypatch.setattr(grouping, "best_way", lambda *_: "beside")
    beside = Train().evaluate(sets, context(data, networks=3, baselines=("random",)))
    assert groups == [(3, "beside")] * 3, "those of each set, then those of random images"
    assert beside.rows == alone.rows
    groups.clear()
    more = Train().evaluate(sets[:1], context(data, networks=9))
    assert groups == [(5, "beside"), (4, "beside")]
    assert more.rows[0].runs[:3] == alone.rows[0].runs[:3]


def test_one_core_is_given_to_one_network_after_the_other(data, monkeypatch, groups, set_threads):
    monkeypatch.setattr(grouping, "best_way", lambda *_: "beside")
    set_threads(1)
    Train().evaluate([condensed()], context(data, networks=3))
    assert groups == [(1, "beside")] * 3


def test_a_network_alone_has_all_cores(data, monkeypatch, groups, set_threads):
    set_threads(2)
    monkeypatch.setattr(grouping, "best_way", lambda *_: "beside")
    Train().evaluate([condensed()], context(data, networks=1))
    assert groups == [(1, "alone")]


class Versions(Pixels):
    """Every image as it is and mirrored; an epoch shows one of the two."""

    @property
    def view_class(self):
        return self.item_class.repeat_interleave(2)

    def images(self, index):
        plain = super().images(index // 2)
        return torch.where((index % 2).view(-1, 1, 1, 1) == 1, plain.flip(-1), plain)

    def absorb(self, images, generator=None):
        super().absorb(images[::2], generator)

    @property
    def epoch_length(self):
        return len(self.item_class)

    def epoch(self, generator):
        order = torch.randperm(self.epoch_length, generator=generator)
        return 2 * order + torch.randint(2, order.shape, generator=generator)


def test_a_set_may_show_one_of_several_versions_of_an_image_an_epoch(data):
    param = filled(Versions(), data, 2)
    one = SyntheticSet(param, SPEC, {"network": "tiny", "augment": "none", "data": "toy"}, 0)
    row = Train().evaluate([one], context(data)).rows[0]
    assert row.images == 12  # six images in two versions
    assert (row.runs[0].steps, row.runs[0].images_seen) == (8, 24)  # four epochs of six, in batches of four
    # As long as asked for: steps are counted from the images that an epoch visits.
    longer = context(data, overrides={"steps_min": 20})
    assert Train().evaluate([one], longer).rows[0].runs[0].steps == 20


def test_a_condensed_set_teaches_its_classes(data):
    report = Train().evaluate([condensed(ipc=4)], context(data, overrides={"epochs": 40}))
    assert report.summary.mean > 0.8
    assert report.summary.between == NOT_ESTIMATED


def test_evaluation_is_deterministic_and_leaves_everything_as_it_was(data):
    one, before = condensed(augment="jitter"), torch.random.get_rng_state()
    kept = {k: v.clone() for k, v in one.param.state_dict().items()}
    texts = {Train().evaluate([one], context(data, baselines=("random", "whole"))).text(timing=False) for _ in range(2)}
    assert len(texts) == 1
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, kept[k]) for k, v in one.param.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in one.param.parameters())


def test_more_networks_sets_or_baselines_change_none_of_the_others(data):
    sets = [condensed(seed=s, augment="jitter") for s in range(2)]
    small = Train().evaluate(sets[:1], context(data, networks=2))
    large = Train().evaluate(sets, context(data, networks=3, baselines=("random",)))
    again = {(r.set, r.net): r for r in large.rows[0].runs}
    assert all(again[(r.set, r.net)] == r for r in small.rows[0].runs)
    random = [Train().evaluate(sets[:1], context(data, networks=n, baselines=("random",))).baselines[0] for n in (2, 3)]
    assert random[1].runs[:2] == random[0].runs


def test_another_seed_gives_other_networks(data):
    first, second = (Train().evaluate([condensed()], context(data, seed=s)) for s in (0, 1))
    assert {r.seed for r in first.rows[0].runs}.isdisjoint(r.seed for r in second.rows[0].runs)


def test_the_test_set_is_looked_at_once_after_the_last_epoch(data, monkeypatch):
    looks = []
    seen = type(data.test).batches
    monkeypatch.setattr(Split, "batches", lambda self, batch: looks.append(self) or seen(self, batch))
    report = Train().evaluate([condensed()], context(data))
    assert len(looks) == 2
    assert all(look is data.test for look in looks)
    assert report.selection == "none"


class Unlearn(Augmenter):
    """Wrong labels in the second half of 240 steps, so that the best network is that of the middle."""

    steps = 0

    def draw(self, n, shape, generator, shared):
        self.steps += 1
        return (self.steps - 1) % 240 >= 120

    def apply(self, batch, wrong):
        return Batch(batch.x, (batch.y + 1) % CLASSES) if wrong else batch


def test_the_last_epoch_counts_where_an_earlier_one_was_better(data):
    good, whole = ({"schedule": "constant", "epochs": n, "lr": 0.02} for n in (40, 80))
    rigged = condensed(ipc=4, augment="rigged")
    objects = {**OBJECTS, "rigged": Unlearn()}
    middle = Train().evaluate([rigged], context(data, overrides=good, objects={**objects, "rigged": Jitter()}))
    end = Train().evaluate([rigged], context(data, overrides=whole, objects=objects))
    assert min(values(middle)) > 0.8
    assert max(values(end)) < 0.2


def test_a_diverged_network_is_kept_as_measured_and_warned_about(data):
    one = condensed()
    with torch.no_grad():
        next(one.param.parameters()).fill_(math.inf)
    report = Train().evaluate([one], context(data))
    assert all(run.diverged and run.train_loss is None for run in report.rows[0].runs)
    assert any("network 1 of set 0 diverged (non-finite loss)" in w for w in report.warnings)
    Report.from_json(report.text())


def test_one_set_given_twice_is_warned_of(data):
    assert not Train().evaluate([condensed(seed=s) for s in range(2)], context(data)).warnings
    report = Train().evaluate([condensed(), condensed(seed=1), condensed()], context(data))
    assert report.warnings == ("3 sets were given, of which 2 differ: the spread over sets says too little",)


def test_soft_labels_train_as_they_are_unless_the_protocol_hardens_them(data):
    soft = condensed(soft=True)
    assert material_of(soft, context(data)).fetch(torch.arange(2)).y.shape == (2, CLASSES)
    hard = context(data, overrides={"labels": "hard"})
    assert material_of(soft, hard).fetch(torch.arange(2)).y.tolist() == [0, 0]
    assert Train().evaluate([soft], hard).protocol == "tiny@1[labels=hard]"
    assert values(Train().evaluate([soft], hard)) == values(Train().evaluate([condensed()], hard))


def test_an_ordered_program_is_not_shuffled(data):
    ordered = material_of(condensed(hints=Hints(ordered=True)), context(data)).order(torch.Generator())
    plain = material_of(condensed(), context(data)).order(torch.Generator().manual_seed(1))
    assert [ordered(e).tolist() for e in range(2)] == [list(range(6))] * 2
    assert plain(0).tolist() != list(range(6))


def test_the_augmentation_of_the_set_is_used_and_recorded(data):
    plain, jittered = (set_row([condensed(augment=a)], context(data), "tiny") for a in ("none", "jitter"))
    assert (plain.row.augment, jittered.row.augment) == ("none", "jitter")
    assert [r.train_loss for r in plain.row.runs] != [r.train_loss for r in jittered.row.runs]
    assert jittered.warnings == ["sets, tiny: augmentation 'jitter' expects unit values, the data is normalized"]


def test_a_missing_augmenter_stops_before_training_and_is_named(data):
    with pytest.raises(DcfError, match=r"'tiny@1' trains with the augmenter 'absent'.*dcf-absent"):
        Train().evaluate([condensed(augment="absent")], context(data))


def test_schedules_follow_the_protocol_and_the_learned_step_size():
    published = RULES.with_overrides(schedule="step-restart", epochs=300, extra_epoch=True)
    assert schedule_for(published, 10).lrs == (0.1,) * 152 + (pytest.approx(0.01),) * 149
    learned = RULES.with_overrides(lr="learned", steps_min=100, schedule="constant")
    assert schedule_for(learned, 8, 0.3).lrs == (0.3,) * 50


@pytest.mark.parametrize("change", [{"height": 5}, {"classes": tuple("abcd")}, {"space": ValueSpace.unit(1)}])
def test_a_set_that_does_not_fit_the_data_is_refused(data, change):
    one = condensed()
    one.spec = replace(one.spec, **change)
    with pytest.raises(EvaluationError, match="set 0 does not fit the data 'toy'"):
        Train().evaluate([one], context(data))


def test_what_cannot_be_evaluated_together_is_refused(data):
    with pytest.raises(EvaluationError, match="at least one set"):
        Train().evaluate([], context(data))
    with pytest.raises(EvaluationError, match="set 1 was made with other settings"):
        Train().evaluate([condensed(), condensed(augment="jitter")], context(data))
    empty = replace(data, test=Split(torch.zeros(0, *SHAPE), torch.zeros(0), SPEC.space, CLASSES))
    with pytest.raises(EvaluationError, match="no test images"):
        Train().evaluate([condensed()], context(empty))
    with pytest.raises(EvaluationError, match="at least one network"):
        context(data, networks=0)


def test_progress_is_told_after_each_network(data):
    told = []
    Train().evaluate([condensed()], context(data, baselines=("random",), progress=lambda *a: told.append(a[:3])))
    assert told == [("sets tiny", 1, 2), ("sets tiny", 2, 2), ("random tiny", 1, 2), ("random tiny", 2, 2)]


# --- baselines ----------------------------------------


@pytest.mark.parametrize(("nbytes", "want"), [(0, 0), (191, 0), (192, 1), (383, 1), (384, 2)])
def test_equal_bytes_buys_whole_float_images(nbytes, want):
    assert equal_bytes(nbytes, SHAPE, CLASSES) == want


def test_random_costs_as_many_bytes_as_the_set(data):
    random = Train().evaluate([condensed(ipc=5)], context(data, baselines=("random",))).baselines[0]
    assert (random.name, random.bytes, random.images) == ("random", 5 * CLASSES * 16 * 4, 15)
    assert random.info == {"per_class": 5, "bytes_of_set": 960, "uint8_per_class": 20}
    assert random.floats == 240
    assert random.protocol == "tiny@1"


def test_random_pays_for_everything_that_a_set_stores(data):
    class Half(Pixels):
        def encode(self, images):
            return {"images": images.half()}

        def decode(self, latents, size):
            return latents["images"].float()

    half = Half()
    half.allocate(SPEC, torch.arange(CLASSES).repeat_interleave(4))
    row = random_row([replace_param(condensed(), half)], context(data), "tiny")
    assert row.row.info["per_class"] == 2


def replace_param(one, param):
    one.param = param
    return one


def test_random_selects_anew_for_every_network(data, monkeypatch):
    seen = []
    real = Split.images
    monkeypatch.setattr(Split, "images", lambda self, index: seen.append(index.tolist()) or real(self, index))
    measured = random_row([condensed()], context(data, networks=3), "tiny")
    assert len(seen) == 3
    assert len({tuple(s) for s in seen}) == 3
    assert (measured.row.stat.n_sets, measured.row.stat.n_nets) == (3, 1)


def test_selection_takes_each_class_without_replacement():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 2])
    picked = pick_per_class(labels, 4, 3, torch.Generator().manual_seed(0))
    assert labels[picked].tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert len(set(picked.tolist())) == 7
    assert not torch.equal(picked, pick_per_class(labels, 4, 3, torch.Generator().manual_seed(1)))


def test_a_class_with_too_few_images_gives_all_and_is_warned_about(data):
    scarce = replace(data, train=split((20, 3, 20), 0))
    report = Train().evaluate([condensed(ipc=5)], context(scarce, baselines=("random",)))
    assert report.baselines[0].images == 13
    assert report.baselines[0].bytes == 13 * 64
    assert "random: fewer than 5 images in 1 classes, all used: b" in report.warnings


def test_a_set_below_one_image_a_class_has_no_random_row(data):
    one = condensed()
    sizes = {"nbytes": 100, "floats": 25, "utilisation": None}
    one.storage = lambda: types.SimpleNamespace(**sizes, to_json=dict)
    report = Train().evaluate([one], context(data, baselines=("random",)))
    assert report.baselines == ()
    assert any("100 bytes hold no float32 image a class, and 2 of 8 bits" in w for w in report.warnings)


def test_whole_trains_on_all_images_and_its_cost_is_known_before(data):
    ctx = context(data, baselines=("whole",))
    row = Train().evaluate([condensed()], ctx).baselines[0]
    paid = whole_cost(ctx)
    assert (row.images, row.bytes) == (60, None)
    assert all((r.steps, r.images_seen) == (paid.steps, paid.images_seen) for r in row.runs)
    assert paid.steps == 60


def test_an_unknown_baseline_is_a_usage_error(data):
    with pytest.raises(UsageError, match="no baseline named 'herd'"):
        Train().evaluate([condensed()], context(data, baselines=("herd",)))


# --- cross-arch ----------------------------------------


@pytest.fixture
def any_network(monkeypatch):
    for module in ("cross_arch", "options"):
        monkeypatch.setattr(f"dcf.evaluation.{module}.pool_specs", list)


def test_cross_arch_reports_each_network_and_the_gap(data, any_network):
    evaluator = CrossArch(CrossArch.Config(pool=("wide",)))
    report = evaluator.evaluate([condensed()], context(data, baselines=("random",)))
    here, there = (row.stat.mean for row in report.rows)
    assert [row.network for row in report.rows] == ["tiny", "wide"]
    assert report.extra["sets"] == {"home": "tiny", "accuracy": here, "mean_others": there, "gap": here - there}
    assert [row.network for row in report.baselines] == ["tiny", "wide"]
    assert report.extra["random"]["gap"] == pytest.approx(report.baselines[0].stat.mean - report.baselines[1].stat.mean)
    assert report.summary == report.rows[0].stat


def test_a_network_is_the_same_in_every_evaluator(data, any_network):
    alone = Train().evaluate([condensed()], context(data))
    crossed = CrossArch(CrossArch.Config(pool="wide")).evaluate([condensed()], context(data))
    assert crossed.rows[0] == alone.rows[0]


def test_without_others_there_is_no_gap(data, any_network):
    report = CrossArch(CrossArch.Config(pool="tiny")).evaluate([condensed()], context(data))
    assert report.extra["sets"]["gap"] is None


def test_pools_are_replaced_by_their_members():
    pool = pool_specs(["vico-m", "convnet:width=32"])
    assert pool[0] == "mlp"
    assert pool[-1] == "convnet:width=32"
    with pytest.raises(SpecError, match=r"pools: .*vico-m"):
        pool_specs(["vico-x"])


# --- reports ----------------------------------------


def test_a_report_reads_back_as_it_was_written(data):
    report = Train().evaluate([condensed()], context(data, baselines=("random",)))
    assert Report.from_json(report.text()) == report
    assert Report.from_json(report.to_json()) == report
    assert report.to_json()["schema"] == "dcf.eval/1"


def test_only_timing_depends_on_the_clock(data):
    report = Train().evaluate([condensed()], context(data))
    assert report.timing.seconds > 0
    assert len(report.timing.rows["sets tiny"]) == 2
    assert "seconds" not in json.dumps(report.to_file())


def test_a_report_without_protocol_cannot_be_built(data):
    written = Train().evaluate([condensed()], context(data)).to_json()
    for broken in ({**written, "protocol": ""}, {k: v for k, v in written.items() if k != "protocol"}):
        with pytest.raises(FormatError, match="protocol"):
            Report.from_json(broken)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "dcf.eval/2"}'])
def test_what_is_no_report_is_a_format_error(text):
    with pytest.raises(FormatError, match=r"dcf\.eval/1"):
        Report.from_json(text)


def test_the_set_is_identified_by_its_tensors(data):
    infos = [Train().evaluate([condensed(seed=s)], context(data)).sets[0] for s in (0, 0, 1)]
    assert infos[0] == infos[1]
    assert infos[0].sha256 != infos[2].sha256
    assert infos[0].storage["bytes"] == 2 * CLASSES * 64
    assert infos[0].storage["views_per_class"] == 2


def test_reports_tell_the_budget_and_how_the_images_were_chosen(data):
    one = condensed()
    one.metadata |= {"run": {"budget": "bytes=500"}, "selection": {"indices": [3, 1, 4]}}
    report = Train().evaluate([one], context(data))
    assert report.sets[0].selection == {"indices": [3, 1, 4]}
    assert (report.rows[0].bytes, report.rows[0].floats, report.rows[0].utilisation) == (384, 96, 384 / 500)
    assert report.sets[0].storage["budget"] == {"bytes": 500}


def test_reports_of_before_are_read(data):
    written = Train().evaluate([condensed()], context(data)).to_json()
    for row in written["rows"]:
        del row["floats"], row["utilisation"]
    del written["sets"][0]["selection"]
    assert Report.from_json(written).rows[0].floats is None


# --- runner ----------------------------------------


def run(data, **kwargs):
    settings = {"evaluator": Train(), "protocol": RULES, "objects": OBJECTS, "baselines": (), **kwargs}
    return evaluate_sets([condensed()], data, **settings)


def test_the_runner_applies_changes_and_shows_them(data):
    assert run(data).protocol == run(data, network="tiny").protocol == "tiny@1"
    assert run(data, networks=1).protocol == "tiny@1"
    assert run(data, overrides={"epochs": "3"}).protocol == "tiny@1[epochs=3]"
    changed = run(data, network="wide")
    assert (changed.protocol, changed.rows[0].network) == ("tiny@1[network=wide]", "wide")


def test_the_whole_set_is_affordable_only_where_it_is_quick(data):
    assert affordable_baselines(data, RULES) == ("random", "whole")
    assert affordable_baselines(data, RULES.with_overrides(epochs=10**6)) == ("random",)


def test_reports_are_read_without_torch():
    code = "import sys; from dcf.evaluation import Report, load_protocol, summarize; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
