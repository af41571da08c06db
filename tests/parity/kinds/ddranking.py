"""The scores of DD-Ranking."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from torch import Tensor

from dcf_scores.ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)


def compute(case: Case) -> dict[str, Tensor]:
    """`scores`, one row for each row of accuracies, columns by name."""
    names, wanted = case.meta["input_columns"], case.meta["output_columns"]
    rows = [_scores(dict(zip(names, row, strict=True))) for row in case["inputs"].tolist()]
    return {"out/scores": torch.tensor([[row[name] for name in wanted] for row in rows], dtype=case.dtype)}


def _scores(a: dict[str, float]) -> dict[str, float]:
    hlr, weight = hard_label_recovery(a["full_hard"], a["syn_hard"]), a["lambda"]
    found = {}
    for kind in ("soft", "hard"):
        ior = improvement_over_random(a[f"syn_{kind}"], a["random"])
        found |= {f"{kind}.hlr": hlr, f"{kind}.ior": ior, f"{kind}.lrs": label_robust_score(hlr, ior, weight)}
    augmented = improvement_over_random(a["syn_aug"], a["random_aug"])
    without = improvement_over_random(a["syn_noaug"], a["random_noaug"])
    score = augmentation_robust_score(augmented, without, weight)
    return {**found, "aug.with": augmented, "aug.without": without, "aug.ars": score}
