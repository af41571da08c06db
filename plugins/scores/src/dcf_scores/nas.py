"""The evaluator `nas-rank`: does a set rank architectures as the whole training set does?"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

import dcf
from dcf.distributed import ALONE
from dcf.evaluation import EvalContext, Material, Report, Row, Run, Trial, material_of, random_selection, train_row
from dcf.evaluation.baselines import equal_bytes
from dcf.evaluation.fit import Measured, material_of_split
from dcf.evaluation.protocol import PROGRAM
from dcf.evaluation.train import build_report, order_notes
from dcf.seeding import generator
from dcf.training import Order
from dcf_scores.correlation import agreement, kendall, spearman, top_by
from dcf_scores.grid import architectures
from dcf_scores.options import RankingConfig
from dcf_scores.reference import Job, Reference, reference_of

__all__ = ["ArchitectureRanking", "early_stopping"]

log = logging.getLogger(__name__)

#: Rows of the sets themselves; the others stand beside them.
_OWN: Final = ("sets", "replay")


class _Proxy(NamedTuple):
    """Something that architectures are trained on instead of the whole training set.

    Attributes:
        name: Of its row.
        trials: What one architecture is trained on, afresh for each.
        images: Training images at most.
        sizes: Further fields of the row.
        program: Whether it is run as the program that it is, rather than under the protocol.
    """

    name: str
    trials: Callable[[], list[Trial]]
    images: int
    sizes: dict[str, Any]
    program: bool = False


@dataclass(frozen=True)
class _Search:
    """What all proxies of an evaluation share."""

    ctx: EvalContext
    specs: Sequence[str]
    augment: str
    reference: Reference
    config: RankingConfig

    @property
    def truth(self) -> Tensor:
        """`(A,)` accuracy of the reference on the held-out part, mean over its networks."""
        return self.reference.ranking.mean(dim=0)

    @property
    def tops(self) -> dict[str, Tensor]:
        """Places of the best architectures of the reference, by name of the figure's ending."""
        n, found = len(self.specs), {"": torch.arange(len(self.specs))}
        for text in self.config.top:
            k = self.config.places(text, n)
            if 3 <= k < n:
                found[f"_top{text}"] = top_by(self.truth, k)
        return found


class ArchitectureRanking(dcf.Evaluator):
    """Rank correlation over ConvNets between training on a set and on the real images (Zhao et al., ICLR 2021, 4.3).

    Architectures are ranked by their accuracy on a part of the real training images that is held out from the
    reference, from random images and from early stopping; the set itself may have been made from all of them. The
    test images are looked at by the reference networks alone, to say how good the architecture is that a proxy
    selects. Random images (at equal bytes) and early stopping on the whole training set take as many steps as the set,
    so about as much time. Each architecture's reference is kept in the folder of caches.
    """

    Config = RankingConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train every architecture on the sets, on what stands beside them and, unless it is known, on real images.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol, or there is no reference and none is to
                be made.
        """
        start, config = time.perf_counter(), self.config
        ctx.check(sets)
        parts = ctx.data.holdout(config.holdout, ctx.generator(0, 0, "ranking holdout"))
        search = _search(sets, ctx, replace(ctx, data=parts), config)
        proxies, notes = _proxies(sets, search.ctx)
        ranked = [_ranked(proxy, search) for proxy in proxies]
        facts: dict[str, Any] = {
            **config.model_dump(mode="json"), "architectures": list(search.specs), "held_out": len(parts.test),
            "reference": _reference_facts(search),
            "rows": {measured.row.name: found for measured, found in ranked},
        }  # fmt: skip
        results = [one for proxy, (one, _) in zip(proxies, ranked, strict=True) if proxy.name in _OWN]
        beside = [one for proxy, (one, _) in zip(proxies, ranked, strict=True) if proxy.name not in _OWN]
        accuracies = {name: entry["accuracy"] for name, entry in facts["rows"].items()}
        notes = [*order_notes(sets), *notes, *_few(search), *_undecided(accuracies, search.truth.tolist())]
        stat = results[0].row.stat
        report = build_report("nas-rank", self, sets, ctx, results, beside, notes, stat, start, facts)
        seconds = {**report.timing.rows, "reference": search.reference.seconds.tolist()}
        _tell(seconds)
        return report.model_copy(update={"timing": report.timing.model_copy(update={"rows": seconds})})


def _search(sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, rest: EvalContext, config: RankingConfig) -> _Search:
    specs = architectures(config.max_width)
    if config.sample != "all" and config.sample < len(specs):
        drawn = torch.randperm(len(specs), generator=generator(config.sample_seed, "architectures"))[: config.sample]
        specs = [specs[i] for i in drawn.sort().values.tolist()]
    augment, rules = ctx.augment_spec(sets), rest.rules
    if config.reference_epochs != "protocol":
        rules = rules.with_overrides(epochs=config.reference_epochs, steps_min=0)
    job = Job(
        replace(rest, protocol=rules, overrides={}), ctx.data.test, augment, config.reference_nets, sets[0].hints.lr
    )
    reference = reference_of(specs, job, config.reference == "make")
    return _Search(rest, specs, augment, reference, config)


# --- what architectures are trained on ----------------------------------------------------------------------------


def _proxies(sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> tuple[list[_Proxy], list[str]]:
    """The sets, random images and early stopping, and why one of them is missing."""
    materials = [material_of(one, ctx) for one in sets]
    size, (lr, steps) = materials[0].size, (sets[0].hints.lr, sets[0].hints.steps)
    largest = max((one.storage() for one in sets), key=lambda storage: storage.nbytes)
    sizes = {"bytes": largest.nbytes, "floats": largest.floats, "utilisation": largest.utilisation}
    own = [Trial(s, net, s, material) for s, material in enumerate(materials) for net in range(ctx.n_nets)]
    found, notes = [_Proxy("sets", lambda: own, size, sizes)], []
    if sets[0].hints.program is not None:
        run = [t._replace(material=replace(t.material, program=sets[t.set].hints.program)) for t in own]
        found.append(_Proxy("replay", lambda: run, size, sizes, program=True))
    k = equal_bytes(min(one.storage().nbytes for one in sets), ctx.data.spec.shape, ctx.data.spec.num_classes)
    if k:
        picked = [_chosen(ctx, net, k, lr, steps) for net in range(ctx.n_nets)]
        drawn = [Trial(net, net, 0, material) for net, material in enumerate(picked)]
        found.append(_Proxy("random", lambda: drawn, picked[0].size, {"info": {"per_class": k}}))
    else:
        notes.append("random: no row, because the bytes of the set hold no float32 image a class")
    stopped = replace(early_stopping(ctx, size, lr), steps=steps)
    early = [Trial(0, net, 0, stopped) for net in range(ctx.n_nets)]
    return [*found, _Proxy("early-stop", lambda: early, size, {})], notes


def _chosen(ctx: EvalContext, net: int, k: int, lr: float | None, steps: int | None) -> Material:
    split = ctx.data.train.select(random_selection(ctx, net, k))
    return replace(material_of_split(split, ctx.place, lr), steps=steps)


def early_stopping(ctx: EvalContext, size: int, lr: float | None = None) -> Material:
    """The whole training set, of which an epoch sees only `size` images: the next ones in an order drawn at random.

    So a training under any protocol takes as many steps as one on a set of `size` images, with other images in each
    until all have been seen.

    Args:
        ctx: Real data and device.
        size: Images an epoch.
        lr: Step size that some protocols take.
    """
    split = ctx.data.train
    home = split.labels.device

    def order(draws: torch.Generator) -> Order:
        coming = _endless(len(split), draws)
        return lambda _epoch: torch.tensor([next(coming) for _ in range(size)], device=home)

    return replace(material_of_split(split, ctx.place, lr), size=size, order=order)


def _endless(n: int, draws: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(n, generator=draws).tolist()


# --- rankings -----------------------------------------------------------------------------------------------------


def _ranked(proxy: _Proxy, search: _Search) -> tuple[Measured, dict[str, Any]]:
    """The row of a proxy, and its accuracies and correlations as the report has them."""
    ctx = search.ctx
    mine, rows = ctx.world.share(search.specs), []
    augment = "none" if proxy.program else search.augment
    alone = replace(ctx, progress=None, world=ALONE)
    for spec in mine:
        trials = proxy.trials()
        rows.append(train_row(proxy.name, trials, len(trials), alone, spec, augment))
        if ctx.progress is not None:
            ctx.progress(proxy.name, len(rows), len(mine), rows[-1].row.stat.mean)
    everyone = [one for part in ctx.world.gather(rows) for one in part]
    found = torch.tensor([[run.value for run in one.row.runs] for one in everyone], dtype=torch.float64).T
    runs = tuple(_run([one.row.runs[i] for one in everyone], found[i], search) for i in range(len(found)))
    row = Row.of(
        runs, name=proxy.name, network=f"{len(search.specs)} ConvNets", augment=augment,
        protocol=PROGRAM if proxy.program else ctx.rules.id, images=proxy.images, **proxy.sizes,
    )  # fmt: skip
    row, facts = _with_intervals(row, found, search)
    seconds = [sum(one.seconds[i] for one in everyone) for i in range(len(found))]
    return Measured(row, sorted({w for one in everyone for w in one.warnings}), seconds), facts


def _run(each: Sequence[Run], accuracy: Tensor, search: _Search) -> Run:
    """One network of every architecture: how they rank, and how good the first of them really is.

    Args:
        each: Its run for every architecture.
        accuracy: `(A,)` on the held-out part.
        search: The reference.
    """
    metrics: dict[str, float] = {}
    for ending, places in search.tops.items():
        pair = accuracy[places], search.truth[places]
        for name, figure in (("spearman", spearman(*pair)), ("kendall", kendall(*pair))):
            metrics[name + ending] = float(figure.nan_to_num(nan=0.0))
    selected = float(search.reference.test.mean(dim=0)[top_by(accuracy, 1)])
    return each[0].model_copy(
        update={
            "metric": "spearman", "value": metrics["spearman"], "last": selected, "train_acc": None, "train_loss": None,
            "steps": sum(run.steps for run in each), "images_seen": sum(run.images_seen for run in each),
            "diverged": any(run.diverged for run in each), "metrics": {**metrics, "selected_accuracy": selected},
        }
    )  # fmt: skip


def _with_intervals(row: Row, accuracy: Tensor, search: _Search) -> tuple[Row, dict[str, Any]]:
    """The row with intervals that generalise over architectures, and the correlations for the report.

    Args:
        row: As it was measured.
        accuracy: `(R, A)` of each run.
        search: The reference.
    """
    facts: dict[str, Any] = {"accuracy": accuracy.tolist()}
    stats, basis = dict(row.stats), {"ci_basis": "architectures, by bootstrap"}
    for ending, places in search.tops.items():
        draws = search.ctx.generator(0, len(places), "bootstrap")
        found = agreement(accuracy[:, places], search.truth[places], search.config.resamples, draws)
        facts[ending.removeprefix("_") or "all"] = found.to_json()
        for name, interval in (("spearman", found.spearman_ci), ("kendall", found.kendall_ci)):
            stats[name + ending] = stats[name + ending].model_copy(update={"ci": interval, **basis})
    best = int(top_by(accuracy.mean(dim=0), 1))
    facts["selected"] = {
        "architecture": search.specs[best],
        "accuracy": float(search.reference.test[:, best].mean()),
        "place": int((search.truth > search.truth[best]).sum()) + 1,
    }
    return row.model_copy(update={"stat": stats["spearman"], "stats": stats}), facts


def _reference_facts(search: _Search) -> dict[str, Any]:
    """The reference for the report; with several networks also how well they agree among themselves."""
    ranking, best = search.reference.ranking, int(top_by(search.truth, 1))
    found: dict[str, Any] = {
        "accuracy": ranking.tolist(),
        "test": search.reference.test.tolist(),
        "best": {"architecture": search.specs[best], "accuracy": float(search.reference.test[:, best].mean())},
        "best_test": float(search.reference.test.mean(dim=0).max()),
    }
    if len(ranking) > 1:
        pairs = [(i, j) for i in range(len(ranking)) for j in range(i)]
        each = torch.stack([spearman(ranking[i], ranking[j]) for i, j in pairs]).nan_to_num(nan=0.0)
        found["between_networks"] = float(each.mean())
    return found


def _few(search: _Search) -> list[str]:
    n = len(search.specs)
    return [f"nas-rank: {n} architectures say little about the 720 of the grid; see the intervals"] if n < 30 else []


def _undecided(accuracies: Mapping[str, Sequence[Sequence[float]]], truth: Sequence[float]) -> list[str]:
    """Where all architectures came out equally good, so that a correlation of 0 is none at all."""
    if len(set(truth)) == 1:
        return ["nas-rank: the reference finds all architectures equally good: correlations of 0 mean that none exists"]
    found = {name: sum(len(set(one)) == 1 for one in runs) for name, runs in accuracies.items()}
    return [
        f"nas-rank: {name}: {n} of {len(accuracies[name])} networks find all architectures equally good, which counts "
        "as a correlation of 0"
        for name, n in found.items()
        if n
    ]


def _tell(seconds: dict[str, list[float]]) -> None:
    for name, values in seconds.items():
        log.info("ranking by '%s' took %.1f minutes", name, sum(values) / 60)
