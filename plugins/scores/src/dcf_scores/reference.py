"""How architectures rank after training on the real images: dear, so kept by content."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dcf
from dcf.artifacts import Artifacts
from dcf.data import Split
from dcf.distributed import ALONE
from dcf.errors import EvaluationError
from dcf.evaluation import EvalContext, Findings, Trial, train_row
from dcf.evaluation.fit import material_of_split
from dcf.training import evaluate_accuracy

__all__ = ["Job", "Reference", "reference_of"]

log = logging.getLogger(__name__)

_KIND = "architectures"
#: Raised whenever anything changes that can change an accuracy.
_VERSION = 1


class Reference(NamedTuple):
    """Accuracies of A architectures with R networks each.

    Attributes:
        ranking: `(R, A)` accuracy on the held-out part, in [0, 1].
        test: `(R, A)` accuracy on the test images, in [0, 1].
        seconds: `(A,)` for all R networks, when they were trained.
    """

    ranking: Tensor
    test: Tensor
    seconds: Tensor


class Job(NamedTuple):
    """How the reference is trained.

    Attributes:
        ctx: Trains on the rest of the training images, tests on the part that is held out.
        test: The test images, looked at once by each network.
        augment: Spec of the augmentation.
        nets: Networks an architecture R.
        lr: Step size that was learned with the set, which some protocols take.
    """

    ctx: EvalContext
    test: Split
    augment: str
    nets: int
    lr: float | None

    def key(self, spec: str) -> dict[str, Any]:
        """Everything that decides the accuracies of an architecture."""
        ctx = self.ctx
        return {
            "version": _VERSION, "architecture": spec, "rest": ctx.data.train.digest(), "held": ctx.data.test.digest(),
            "test": self.test.digest(), "space": ctx.data.spec.space.to_json(), "protocol": ctx.rules.config_hash,
            "augment": self.augment, "seed": ctx.seed, "networks": self.nets, "lr": self.lr,
        }  # fmt: skip

    def train(self, spec: str) -> dict[str, Tensor]:
        """Train the R networks of an architecture."""
        start = time.perf_counter()
        everything = material_of_split(self.ctx.data.train, self.ctx.place, self.lr)
        tested = []

        def probe(state: dcf.NetworkState, trial: Trial) -> Findings:
            tested.append(evaluate_accuracy(state, self.test).value)
            return Findings({})

        ctx = replace(self.ctx, probe=probe, progress=None, world=ALONE)
        trials = [Trial(0, net, 0, everything) for net in range(self.nets)]
        row = train_row("reference", trials, self.nets, ctx, spec, self.augment).row
        ranking = torch.tensor([run.value for run in row.runs], dtype=torch.float64)
        seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        return {"ranking": ranking, "test": torch.tensor(tested, dtype=torch.float64), "seconds": seconds}


def reference_of(specs: Sequence[str], job: Job, make: bool) -> Reference:
    """What is in the cache, one file an architecture, and what is trained because it is not.

    Several processes divide the architectures among them.

    Args:
        specs: The architectures.
        job: How they are trained.
        make: Whether anything may be trained.

    Raises:
        EvaluationError: When something is missing and nothing may be trained.
    """
    store, ctx, keys = Artifacts(), job.ctx, {spec: job.key(spec) for spec in specs}
    missing = [spec for spec in specs if store.get(keys[spec], _KIND) is None]
    if missing and not make:
        raise EvaluationError(
            f"{len(missing)} of {len(specs)} architectures have no reference in '{store.root}'\n"
            "  train them: --evaluator nas-rank:reference=make"
        )
    log.info("reference ranking: %d architectures in the cache, %d to train", len(specs) - len(missing), len(missing))
    mine, found = ctx.world.share(specs), []
    for spec in mine:
        found.append(store.get_or_make(keys[spec], partial(job.train, spec), _KIND).tensors)
        if ctx.progress is not None:
            ctx.progress("reference", len(found), len(mine), float(found[-1]["ranking"].mean()))
    everyone = [tensors for part in ctx.world.gather(found) for tensors in part]
    return Reference(*(torch.stack([tensors[name] for tensors in everyone], dim=-1) for name in Reference._fields))
