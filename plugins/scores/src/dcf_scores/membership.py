"""The evaluator `membership`: nearest real images, and whether networks give training images away."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

import dcf
from dcf.data import Split
from dcf.evaluation import EvalContext, Findings, Report, Trial, random_selection, set_row
from dcf.evaluation.baselines import equal_bytes, find_baseline
from dcf.evaluation.fit import Measured, material_of_split
from dcf.evaluation.train import build_report, with_program
from dcf_scores.copies import Features, Gallery, save_pairs
from dcf_scores.neighbours import area_under_curve, hits_at
from dcf_scores.options import MembershipConfig
from dcf_scores.predictions import predictions
from dcf_scores.rows import train_one

__all__ = ["WARNING", "Membership"]

WARNING: Final = (
    "membership: this is no privacy guarantee. A simple attack that fails here says nothing about a better one; sets "
    "that start from real images may stay near them; an AUC away from 0.5 may also come from training and test images "
    "that differ by origin: compare with the random images, whose other images nobody has seen"
)


class Membership(dcf.Evaluator):
    """Nearest training image of each synthetic one, and a loss attack on networks trained on the set.

    The attack (Yeom et al., 2018) takes an image for a training image the smaller its loss is. Training images that
    the set was made from are the members, test images the others. Two controls stand beside it: networks trained on
    random real images, with these images as members (`chosen`, which the attack must find) and with all other training
    images (which nobody has seen, so that it cannot).
    """

    Config = MembershipConfig

    def evaluate(self, sets: Sequence[dcf.SyntheticSet], ctx: EvalContext) -> Report:
        """Train the protocol's networks on each set and the baselines, attack them, and search for neighbours.

        Raises:
            EvaluationError: When the sets do not fit the data or the protocol, or a training diverges.
            RunError: When the picture cannot be written.
        """
        start, config = time.perf_counter(), self.config
        ctx.check(sets)
        network, notes = ctx.network_spec(sets), [WARNING]
        attack = _attack(ctx, config, notes)
        probed = replace(ctx, probe=attack)
        result = set_row(sets, probed, network)
        results, ordered = with_program(result, sets, probed, network)
        beside, missing = _beside(sets, ctx, network, attack)
        features = _features(sets, ctx, network, config)
        tables = [attack.gallery.table(one, features) for one in sets]
        if config.picture is not None and ctx.world.first:
            index = torch.tensor([row["index"] for row in tables[0]])
            save_pairs(sets[0], ctx.data, index, config.picture)
        facts = {
            **config.model_dump(mode="json", exclude={"picture"}), "members": len(attack.members),
            "others": len(attack.others), "near": attack.gallery.near, "copy": attack.gallery.rounding,
            "fresh": _quantiles(attack.gallery.fresh), "nearest": tables,
        }  # fmt: skip
        summary, notes = result.row.stats["loss_auc"], [*notes, *ordered, *missing]
        return build_report("membership", self, sets, ctx, results, beside, notes, summary, start, facts)


@dataclass(frozen=True)
class _Attack:
    """Tells training images from test images by what a network makes of them, or by how near its own images are.

    Args:
        ctx: Real data, seeds, device.
        gallery: The real training images.
        members: Numbers of training images.
        others: Numbers of test images.
        rate: Of false alarms; None where there are too few test images to count them.
        per_class: Of the random training images, where the network was trained on such.
    """

    ctx: EvalContext
    gallery: Gallery
    members: Tensor
    others: Tensor
    rate: float | None
    per_class: int = 0

    def __call__(self, state: dcf.NetworkState, trial: Trial) -> Findings:
        data, who = self.ctx.data, f"network {trial.net} of set {trial.set}"
        others = _losses(state, data.test.select(self.others), who)
        chosen, members = self.chosen(trial.net), self.unseen(trial.net)
        metrics = self._scores("loss", _losses(state, data.train.select(members), who), others)
        if len(chosen):
            metrics |= self._scores("chosen", _losses(state, data.train.select(chosen), who), others)
        if trial.material.size < len(data.train):
            images = trial.material.fetch(torch.arange(trial.material.size, device=data.train.device)).x
            real = data.train.images(members), data.test.images(self.others)
            metrics |= self.gallery.figures(images, *real)
        return Findings(metrics)

    def chosen(self, net: int) -> Tensor:
        """Numbers of the random training images that network `net` is trained on; none where it is not."""
        return random_selection(self.ctx, net, self.per_class) if self.per_class else self.members[:0]

    def unseen(self, net: int) -> Tensor:
        """The members without those."""
        return self.members[~torch.isin(self.members, self.chosen(net))]

    def _scores(self, name: str, members: Tensor, others: Tensor) -> dict[str, float]:
        found = {f"{name}_auc": area_under_curve(-members, -others)}
        return found if self.rate is None else {**found, f"{name}_tpr": hits_at(-members, -others, self.rate)}


def _attack(ctx: EvalContext, config: MembershipConfig, notes: list[str]) -> _Attack:
    """The attack, and in `notes` what it cannot do."""
    draws = ctx.generator(0, 0, "membership")
    members, others = (
        torch.randperm(len(s), generator=draws)[: config.images] for s in (ctx.data.train, ctx.data.test)
    )
    enough = config.fpr * len(others) >= 1
    if not enough:
        notes.append(f"membership: {len(others)} test images cannot show a false alarm rate of {config.fpr:g}")
    gallery = Gallery(ctx.data, ctx.place, ctx.generator(0, 0, "fresh images"))
    return _Attack(ctx, gallery, members.sort().values, others.sort().values, config.fpr if enough else None)


def _losses(state: dcf.NetworkState, split: Split, who: str) -> Tensor:
    return F.cross_entropy(*predictions(state, split, who), reduction="none")


def _beside(
    sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, network: str, attack: _Attack
) -> tuple[list[Measured], list[str]]:
    nbytes = min(one.storage().nbytes for one in sets)
    k = equal_bytes(nbytes, ctx.data.spec.shape, ctx.data.spec.num_classes)
    control, notes, names = replace(attack, per_class=k), list[str](), list(ctx.baselines)
    if k and "random" in names and not all(len(control.unseen(net)) for net in range(ctx.n_nets)):
        names.remove("random")
        notes.append(f"random: no row, because {k} images a class leave no training image that nobody has seen")
    probes = {"random": control}
    made = [find_baseline(n)(sets, replace(ctx, probe=probes.get(n, attack)), network) for n in names]
    return [m for m in made if isinstance(m, Measured)], [*notes, *(m for m in made if isinstance(m, str))]


def _features(
    sets: Sequence[dcf.SyntheticSet], ctx: EvalContext, network: str, config: MembershipConfig
) -> Features | None:
    if config.features == "none":
        return None
    if config.features == "trained":
        everything = material_of_split(ctx.data.train, ctx.place, sets[0].hints.lr)
        state, _ = train_one(everything, ctx, network, ctx.augment_spec(sets))
    else:
        stream = ctx.stream(0, 0, "features")
        state = ctx.factory(network).create(ctx.data.spec, ctx.seed, *stream, device=ctx.place)
    state.eval()

    @torch.no_grad()
    def embedded(images: Tensor) -> Tensor:
        return torch.cat([state.embed(part) for part in torch.split(images, 256)])

    return embedded


def _quantiles(distances: Tensor) -> dict[str, Any]:
    """Of the distances of test images to their nearest training image."""
    at = (0.01, 0.1, 0.5, 0.9)
    values = torch.quantile(distances, torch.tensor(at)).tolist()
    return {"images": len(distances), **{f"{100 * q:g}%": value for q, value in zip(at, values, strict=True)}}
