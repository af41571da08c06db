"""The evaluator `ars`: how much of an accuracy is due to augmentation in training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import dcf
from dcf.evaluation import EvalContext, Report, Row, Run, random_images_row, set_row
from dcf.evaluation.fit import Measured
from dcf.evaluation.train import build_report, with_program
from dcf_scores.options import AugmentationConfig
from dcf_scores.ranking import NEUTRAL, augmentation_robust_score, improvement_over_random
from dcf_scores.rows import value_of, with_metrics, with_shared_rivals

__all__ = ["AugmentationRobustScore"]

#: The augmentation of the literature without mirroring, which changes what digits and letters mean.
_USUAL: Final = "dsa:ops=[color,crop,cutout,scale,rotate]"


class AugmentationRobustScore(dcf.Evaluator):
    """The augmentation robust score of DD-Ranking, with its parts, in fractions.

    Sets and as many random real images are both trained with an augmentation and without any; everything else is the
    protocol's. Network n of each row is paired with network n of the others. A set that is a program knows no
    augmentation: its accuracy when run as such stands beside, without a score.
    """

    Config = AugmentationConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train the four rows and combine them.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol.
            PluginError: When the augmentation is not installed.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network, augment = ctx.network_spec(sets), _augmentation(sets, ctx, self.config)
        there, bare = (_with(ctx, text) for text in (augment, "none"))
        own, random = set_row(sets, there, network), random_images_row(sets, there, network)
        plain = [
            _named(set_row(sets, bare, network), "sets"),
            _named(random_images_row(sets, bare, network), "random-images"),
        ]
        rows = (random.row, plain[0].row, plain[1].row)
        row = with_metrics(own.row, lambda run: _metrics(run, *rows, self.config.weight))
        row = with_shared_rivals(row, row.stats)
        facts = {**self.config.model_dump(mode="json"), "augment": augment, "neutral": NEUTRAL}
        results, notes = with_program(replace(own, row=row), sets, ctx, network)
        return build_report("ars", self, sets, ctx, results, [random, *plain], notes, row.stats["ars"], start, facts)


def _metrics(run: Run, random: Row, plain: Row, random_plain: Row, weight: float) -> dict[str, float]:
    augmented = improvement_over_random(run.value, value_of(random, run.net))
    without = improvement_over_random(value_of(plain, run.net, run.set), value_of(random_plain, run.net))
    return {
        "ars": augmentation_robust_score(augmented, without, weight),
        "ior_augmented": augmented,
        "ior_plain": without,
    }


def _augmentation(sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, config: AugmentationConfig) -> str:
    """The augmentation that is switched on and off.

    Raises:
        EvaluationError: When it changes nothing.
    """
    usual = ctx.augment_spec(sets)
    text = config.augment
    if text == "auto":
        text = usual if ctx.augmenter(usual) is not None else _USUAL
    if ctx.augmenter(text) is None:
        raise dcf.EvaluationError(
            f"ars: expected an augmentation to compare with none, got '{text}', which changes nothing\n"
            "  name one: --evaluator 'ars:augment=(dsa)'"
        )
    return text


def _with(ctx: EvalContext, augment: str) -> EvalContext:
    """The same context with another augmentation, which the id of its protocol then shows."""
    return replace(ctx, protocol=ctx.rules.with_overrides(augment=augment), overrides={})


def _named(measured: Measured, name: str) -> Measured:
    return replace(measured, row=measured.row.model_copy(update={"name": f"{name}-plain"}))
