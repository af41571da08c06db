"""The evaluator `lrs`: how much of an accuracy is due to the images of a set rather than to its labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import dcf
from dcf.evaluation import EvalContext, Report, Row, Run, random_images_row, random_row, set_row, whole_row
from dcf.evaluation.baselines import Relabel, equal_bytes
from dcf.evaluation.fit import Measured, material_of_split
from dcf.evaluation.train import build_report, with_program
from dcf_scores.options import LabelConfig
from dcf_scores.ranking import NEUTRAL, hard_label_recovery, improvement_over_random, label_robust_score
from dcf_scores.rows import train_one, value_of, with_metrics, with_shared_rivals

__all__ = ["LabelRobustScore", "label_metrics"]

#: Names of rows, as the report has them.
_HARD, _MANY, _DEAR, _WHOLE = "sets-hard", "random-images", "random", "whole"


class LabelRobustScore(dcf.Evaluator):
    """The label robust score of DD-Ranking, with its parts, in fractions.

    Everything is trained here under one protocol: the set with hard labels, the set with its own soft labels where it
    has them, random real images (as many, and as dear), and the whole training set. No row has a step size of its own
    and none is chosen on test images; every network is tested once, after its last epoch. Network n of each row is
    paired with network n of the others. The accuracy of a set that is a program, run as such, stands beside, without
    a score.
    """

    Config = LabelConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train all rows and combine them.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network = ctx.network_spec(sets)
        soft = ctx.rules.labels != "hard" and _has_soft_labels(sets[0])
        own = set_row(sets, ctx, network)
        (_, *programs), notes = with_program(own, sets, ctx, network)
        relabel, facts = _labels_of_random(sets, ctx, network, self.config) if soft else (None, {})
        beside = _hard_row(sets, ctx, network) if soft else []
        beside += _rivals(sets, ctx, network, self.config, relabel, notes)
        rivals = {measured.row.name: measured.row for measured in beside}
        row = with_metrics(own.row, label_metrics(own.row, rivals, self.config))
        row = with_shared_rivals(row, row.stats)
        facts = {
            **self.config.model_dump(mode="json"),
            "neutral": NEUTRAL,
            "labels": "soft" if soft else "hard",
            **facts,
        }
        results, summary = [replace(own, row=row), *programs], row.stats["lrs"]
        return build_report("lrs", self, sets, ctx, results, beside, notes, summary, start, facts)


def label_metrics(own: Row, rivals: dict[str, Row], config: LabelConfig) -> Callable[[Run], dict[str, float]]:
    """From a run of the sets to HLR, IOR and LRS; `_bytes` are those against random images at equal bytes.

    Args:
        own: The sets with their own labels.
        rivals: By name: `sets-hard` where the labels are soft, `random-images`, `random` where there is one, and
            `whole` unless its accuracy is given.
        config: The weight, and the given accuracy.
    """
    hard = rivals.get(_HARD, own)

    def metrics(run: Run) -> dict[str, float]:
        full = value_of(rivals[_WHOLE], run.net) if config.full == "train" else config.full
        hlr = hard_label_recovery(full, value_of(hard, run.net, run.set))
        found = {"hlr": hlr}
        for name, suffix in ((_MANY, ""), (_DEAR, "_bytes")):
            if name in rivals:
                ior = improvement_over_random(run.value, value_of(rivals[name], run.net))
                found |= {f"ior{suffix}": ior, f"lrs{suffix}": label_robust_score(hlr, ior, config.weight)}
        return found

    return metrics


def _has_soft_labels(one: dcf.SyntheticSet) -> bool:
    return one.batch(torch.tensor([0])).y.ndim == 2


def _hard_row(sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, network: str) -> list[Measured]:
    """The sets under the same protocol with the largest class of each label."""
    hard = replace(ctx, protocol=ctx.rules.with_overrides(labels="hard"), overrides={})
    measured = set_row(sets, hard, network)
    return [replace(measured, row=measured.row.model_copy(update={"name": _HARD}))]


def _rivals(
    sets: Sequence[dcf.SyntheticSet],
    ctx: EvalContext,
    network: str,
    config: LabelConfig,
    relabel: Relabel | None,
    notes: list[str],
) -> list[Measured]:
    """Random images and, unless its accuracy is given, the whole set; adds to `notes` why a row is missing."""
    many = random_images_row(sets, ctx, network, relabel)
    found: list[Measured | str] = [many, _as_dear(many, sets, ctx) or random_row(sets, ctx, network, relabel)]
    if config.full == "train":
        found.append(whole_row(sets, ctx, network))
    else:
        notes.append(f"lrs: the accuracy of the whole training set, {config.full:g}, was given and not measured")
    notes += [one for one in found if isinstance(one, str)]
    return [one for one in found if isinstance(one, Measured)]


def _as_dear(many: Measured, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Measured | None:
    """The row of as many random images, where these are also as dear: the same images need no second training."""
    nbytes = min(one.storage().nbytes for one in sets)
    k = equal_bytes(nbytes, ctx.data.spec.shape, ctx.data.spec.num_classes)
    if k != many.row.info["per_class"]:
        return None
    return Measured(many.row.model_copy(update={"name": _DEAR}))


def _labels_of_random(
    sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, network: str, config: LabelConfig
) -> tuple[Relabel | None, dict[str, Any]]:
    """How random images are labelled, and what the report says of it."""
    if config.random_labels == "hard":
        return None, {}
    everything = material_of_split(ctx.data.train, ctx.place, sets[0].hints.lr)
    teacher, run = train_one(everything, ctx, network, ctx.augment_spec(sets))
    teacher.eval()

    @torch.no_grad()
    def relabel(images: Tensor) -> Tensor:
        return torch.softmax(teacher(images), dim=1)

    return relabel, {"teacher_accuracy": run.value}
