"""The evaluator `robust`: accuracy on attacked and on corrupted test images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import dcf
from dcf.evaluation import EvalContext, Findings, Report, Row, Trial, set_row
from dcf.evaluation.train import baseline_rows, build_report, with_program
from dcf_scores.attacks import fgsm, pgd
from dcf_scores.corruptions import corrupt
from dcf_scores.options import Corruption, RobustnessConfig

__all__ = ["Robustness"]

#: Images of one pass; no result depends on it beyond rounding.
_BATCH = 256


class Robustness(dcf.Evaluator):
    """Accuracy on some test images as they are, under FGSM and PGD, and under common corruptions.

    The networks, their accuracies and the rows beside them are those of `train`. Attacks know the network whole and
    move pixels, in [0, 1]; what the network sees is encoded afterwards. The accuracy as is (`clean`) belongs beside
    every other figure: a network that knows little has little to lose.
    """

    Config = RobustnessConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train the protocol's networks on each set and the baselines, attack them and disturb what they see.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol.
        """
        start = time.perf_counter()
        ctx.check(sets)
        network, config = ctx.network_spec(sets), self.config
        probed = replace(ctx, probe=_disturbed(ctx, config))
        result = set_row(sets, probed, network)
        results, ordered = with_program(result, sets, probed, network)
        beside, notes = baseline_rows(sets, probed, [network])
        rows = [one.row for one in (*results, *beside)]
        images = min(config.images, len(ctx.data.test))
        facts = {
            **config.model_dump(mode="json"), "images": images, "step": config.step_size,
            "corruptions": {row.name: _means(row) for row in rows},
        }  # fmt: skip
        notes = [*ordered, *notes]
        return build_report("robust", self, sets, ctx, results, beside, notes, result.row.stats["pgd"], start, facts)


@dataclass(frozen=True)
class _Disturbed:
    """Looks at the accuracy of a network on images that were tampered with.

    Args:
        ctx: Value space, seeds, device.
        pixels: `(n, C, H, W)` in [0, 1].
        labels: `(n,)`.
        config: Attacks and corruptions.
    """

    ctx: EvalContext
    pixels: Tensor
    labels: Tensor
    config: RobustnessConfig

    def __call__(self, state: dcf.NetworkState, trial: Trial) -> Findings:
        state.eval()
        found = {"clean": self._accuracy(state, self.pixels), **self._attacks(state)}
        table = {kind: self._severities(state, kind) for kind in self.config.corruptions}
        state.train()
        found |= {kind: fmean(values) for kind, values in table.items()}
        if table:
            found["corrupted"] = fmean(value for values in table.values() for value in values)
        return Findings(found, {"severities": table} if table else {})

    def _attacks(self, state: dcf.NetworkState) -> dict[str, float]:
        """Each network meets the same random starts."""
        config, draw = self.config, self.ctx.generator(0, 0, "attack")
        hits = {"fgsm": 0, "pgd": 0}
        for x, y in self._parts(self.pixels):
            hits["fgsm"] += self._hits(state, fgsm(self._model(state), x, y, config.eps), y)
            moved = pgd(self._model(state), x, y, config.eps, config.steps, config.step_size, draw)
            hits["pgd"] += self._hits(state, moved, y)
        return {name: n / len(self.labels) for name, n in hits.items()}

    def _severities(self, state: dcf.NetworkState, kind: Corruption) -> list[float]:
        """Accuracy at each severity; corrupted images are the same for every network, and made when they are needed."""
        return [
            self._accuracy(state, corrupt(self.pixels, kind, s, self.ctx.generator(0, s, f"corruption {kind}")))
            for s in self.config.severities
        ]

    def _accuracy(self, state: dcf.NetworkState, pixels: Tensor) -> float:
        return sum(self._hits(state, x, y) for x, y in self._parts(pixels)) / len(self.labels)

    def _parts(self, pixels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, a bounded number at a time."""
        yield from zip(torch.split(pixels, _BATCH), torch.split(self.labels, _BATCH), strict=True)

    @torch.no_grad()
    def _hits(self, state: dcf.NetworkState, pixels: Tensor, labels: Tensor) -> int:
        return int((self._model(state)(pixels).argmax(dim=1) == labels).sum())

    def _model(self, state: dcf.NetworkState) -> Any:
        """The network as a function of pixels: what it sees are their values in the space of the data."""
        return lambda pixels: state(self.ctx.data.spec.space.encode(pixels))


def _disturbed(ctx: EvalContext, config: RobustnessConfig) -> _Disturbed:
    test, space = ctx.data.test, ctx.data.spec.space
    chosen = torch.randperm(len(test), generator=ctx.generator(0, 0, "test images"))[: config.images].sort().values
    pixels = space.decode(test.images(chosen)).clamp(0, 1).to(ctx.place)
    return _Disturbed(ctx, pixels, test.labels[chosen.to(test.device)].to(ctx.place), config)


def _means(row: Row) -> dict[str, list[float]]:
    """Accuracy under each corruption at each severity, mean over the networks of a row."""
    tables: list[dict[str, list[float]]] = [run.details["severities"] for run in row.runs if run.details]
    return {
        kind: [fmean(column) for column in zip(*(table[kind] for table in tables), strict=True)]
        for kind in (tables[0] if tables else ())
    }
