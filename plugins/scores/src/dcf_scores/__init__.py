"""Evaluators beyond accuracy for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

DDRANKING = "Li et al., DD-Ranking, 2025"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the evaluators."""
    yield dcf.Component(
        "evaluator",
        "lrs",
        "dcf_scores.lrs:LabelRobustScore",
        "what of an accuracy is due to the images, not to soft labels: against random images and the whole set",
        DDRANKING,
        "dcf_scores.options:LabelConfig",
    )
    yield dcf.Component(
        "evaluator",
        "ars",
        "dcf_scores.ars:AugmentationRobustScore",
        "what of an accuracy is left without augmentation, against random images",
        DDRANKING,
        "dcf_scores.options:AugmentationConfig",
    )
    yield dcf.Component(
        "evaluator",
        "calibration",
        "dcf_scores.calibration:Calibration",
        "how far the confidence of networks trained on the set can be believed",
        "Guo et al., ICML 2017",
        "dcf_scores.options:CalibrationConfig",
    )
    yield dcf.Component(
        "evaluator",
        "nas-rank",
        "dcf_scores.nas:ArchitectureRanking",
        "whether the set ranks architectures as the whole training set does",
        "Zhao et al., ICLR 2021",
        "dcf_scores.options:RankingConfig",
    )
    yield dcf.Component(
        "evaluator",
        "robust",
        "dcf_scores.robust:Robustness",
        "accuracy on attacked and on corrupted test images",
        "Goodfellow et al., ICLR 2015; Madry et al., ICLR 2018; Hendrycks and Dietterich, ICLR 2019",
        "dcf_scores.options:RobustnessConfig",
    )
    yield dcf.Component(
        "evaluator",
        "membership",
        "dcf_scores.membership:Membership",
        "nearest real image of each synthetic one, and whether networks give training images away",
        "Yeom et al., CSF 2018",
        "dcf_scores.options:MembershipConfig",
    )
