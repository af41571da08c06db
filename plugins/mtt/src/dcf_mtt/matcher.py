"""Trajectory matching (Cazenavette et al., CVPR 2022), its truncated gradient and its aligned windows."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

import dcf
from dcf.seeding import generator
from dcf.sending import send
from dcf.training import Augmentation
from dcf.unroll import StepSizes, stateless, train_on
from dcf_mtt.experts import ExpertSet, Weights
from dcf_mtt.options import MTTConfig, experts_of
from dcf_mtt.start import agreed_labels, classify, images_known_to_experts
from dcf_mtt.student import (
    draw_start,
    scale_gradient,
    student_batches,
    trajectory_loss,
    window_end,
)
from dcf_mtt.workers import Tally

__all__ = ["MTT", "StandIns"]

log = logging.getLogger(__name__)

#: How far the step size may get from where it began, as a factor.
_MOST: Final = 1000.0
#: Factor of the images' gradient in the released code of TESLA.
_HALF: Final = 0.5


class MTT(dcf.Matcher):
    """Match where training on the set leads with where experts went on the real data.

    An expert is a network that was trained on the real data, its weights kept after every epoch. In each iteration a
    student starts from the weights that one of them had at some epoch, takes `syn_steps` steps on the set, and the loss
    is how far it then is from where the expert was `expert_epochs` epochs later. The student's step size is learned.
    """

    Config = MTTConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=5000, lr=1000.0, momentum=0.5, init="random", iterations_small=40
    )
    advice: ClassVar[str] = (
        "lower the student's step size (--set matcher.lr_teacher=0.001) or what learns it (matcher.lr_lr), take fewer "
        "steps (matcher.syn_steps), or lower --lr"
    )

    def __init__(self, config: MTTConfig | None = None) -> None:
        super().__init__(config)
        self.step_size = StepSizes([self.config.lr_teacher], "log")
        self.experts: Weights | None = None
        self.net: dcf.NetworkState | None = None

    # --- the run -----------------------------------------------------------------------------------

    def setup(self, ctx: dcf.Context) -> None:
        """Refuse what could not work, before experts are trained for it.

        Raises:
            UsageError: When labels shall start from experts and are not learned.
        """
        if self.config.start == "experts" and "labels" not in ctx.param.drives:
            raise dcf.UsageError(
                "mtt: start=experts gives soft labels to start from, which takes labels that are learned; "
                "add --labels soft, or leave start=experts out"
            )

    def param_groups(self) -> list[dcf.ParamGroup]:
        """The student's step size; what is learned is its logarithm, so that it stays positive."""
        return [self.step_size.group("step_size", self.config.lr_lr)]

    def expert_set(self, ctx: dcf.Context) -> ExpertSet:
        """The experts of a run."""
        return ExpertSet(ctx.data, ctx.networks, ctx.augmenter, self.config.training)

    def count(self, ctx: dcf.Context) -> int:
        """Number of experts of a run."""
        return experts_of(self.config.experts, len(ctx.data.train))

    def prepare(self, ctx: dcf.Context) -> None:
        """Train the experts that are missing.

        Raises:
            NonFiniteError: When the training of an expert diverges.
        """
        experts, count, epochs = self.expert_set(ctx), self.count(ctx), self.config.epochs
        missing = experts.missing(count, epochs)
        if missing:
            log.info(
                "training %d of %d experts for %d epochs, to keep them in '%s'; 'dcf experts train --jobs N' does so "
                "in several processes",
                *(len(missing), count, epochs, experts.folder),
            )
            experts.make(count, epochs, Tally(missing, ctx.report), ctx.check_stop)
        self._begin(ctx, experts)

    def rehearse(self, ctx: dcf.Context) -> None:
        """Take random weights for experts."""
        self._begin(ctx, StandIns(self.expert_set(ctx)))

    def preparation(self, ctx: dcf.Context) -> float:
        """Seconds that the missing experts will take."""
        experts = self.expert_set(ctx)
        missing = sum(experts.missing(self.count(ctx), self.config.epochs).values())
        return missing * experts.seconds_per_epoch(self.config.epochs) if missing else 0.0

    def _begin(self, ctx: dcf.Context, experts: Weights) -> None:
        self.experts = experts
        self.net = ctx.networks.create(ctx.spec, ctx.seed, "student", device=ctx.device)
        self.net.train()

    def initialise(self, ctx: dcf.Context) -> None:
        """Where asked for, start from images that experts know, and from their mean logits as labels."""
        if self.config.start == "none":
            return
        experts, net = self._ready()
        last, split, view_class = self.config.epochs, ctx.data.train, ctx.param.view_class
        numbers = range(self.count(ctx))
        final = (_to(experts.weights(number, last), ctx.device) for number in numbers)
        images = split.images(images_known_to_experts(net, final, split, view_class, ctx.seed))
        logits = [classify(net, _to(experts.weights(number, last), ctx.device), images) for number in numbers]
        ctx.param.absorb(images, generator(ctx.seed, "absorb"))
        ctx.param.absorb_labels(agreed_labels(logits, view_class))

    # --- an iteration --------------------------------------------------------------------------------

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """One student of one expert, and one update."""
        config, (experts, net) = self.config, self._ready()
        number = int(torch.randint(self.count(ctx), (), generator=generator(ctx.seed, "expert", it)))
        epoch = draw_start(config.min_start_epoch, self.end(it), generator(ctx.seed, "start epoch", it))
        data, batches = self.drawn(ctx, it)
        start, target = (
            {name: w.to(data.x.dtype) for name, w in _to(experts.weights(number, when), ctx.device).items()}
            for when in (epoch, epoch + config.expert_epochs)
        )
        lrs = self.step_size().to(data.x.dtype).expand(config.syn_steps)
        ended = train_on(
            stateless(net), start, data, batches, lrs, mode=config.unroll, keep=config.keep,
            augment=_augmentation(ctx, batches),
        )  # fmt: skip
        loss = trajectory_loss(ended, start, target)
        yield dcf.Step(loss, log={"step_size": lrs[0], "start_epoch": lrs.new_tensor(epoch)}, limit=self.limit)

    @property
    def limit(self) -> float:
        """Loss above which an update is left out."""
        return math.inf if self.config.threshold == "none" else float(self.config.threshold)

    def end(self, it: int) -> int:
        """Where the start epochs of an iteration end."""
        config = self.config
        if config.window == "fixed":
            return int(config.max_start_epoch)
        return window_end(it, config.window_start, config.max_start_epoch, config.window_iterations)

    def drawn(self, ctx: dcf.Context, it: int) -> tuple[dcf.Batch, list[Tensor]]:
        """The images and labels that an iteration uses, decoded once, and where each step finds its own in them."""
        config, param = self.config, ctx.param
        size = param.epoch_length if config.batch_syn == "all" else min(config.batch_syn, param.epoch_length)
        draws = generator(ctx.seed, "student batches", it)
        orders = (param.inner_epoch(draws, size).cpu() for _ in itertools.count())
        batches = student_batches(orders, size, config.syn_steps)
        used, positions = torch.unique(torch.cat(batches), return_inverse=True)
        images, labels = ctx.param.batch(send(used, ctx.device))
        if config.reference_scale:
            images = scale_gradient(images, _HALF)
        split = torch.split(send(positions, ctx.device), [len(batch) for batch in batches])
        return dcf.Batch(images, labels), list(split)

    # --- what outlives an iteration --------------------------------------------------------------------

    def project_(self) -> None:
        """Keep the step size within a factor of 1000 of where it began, and above its least value."""
        begin = self.config.lr_teacher
        least = max(begin / _MOST, self.config.lr_least)
        self.step_size.raw.clamp_(math.log(least), math.log(begin * _MOST))

    def hints(self) -> dcf.Hints:
        """The learned step size, which the set is to be trained with."""
        return dcf.Hints(lr=float(self.step_size().detach()))

    def state_dict(self) -> Mapping[str, Tensor]:
        """What is learned of the step size."""
        return {"step_size": self.step_size.raw.detach()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore it."""
        with torch.no_grad():
            self.step_size.raw.copy_(state["step_size"])

    def _ready(self) -> tuple[Weights, dcf.NetworkState]:
        if self.experts is None or self.net is None:
            raise RuntimeError("MTT.outer was used before MTT.prepare")
        return self.experts, self.net


class StandIns:
    """Weights that have the form of experts and are none: each is near those that every expert begins with.

    Args:
        experts: Those that they stand in for.
    """

    def __init__(self, experts: ExpertSet) -> None:
        self.start = {name: w.detach() for name, w in experts.network(0, "cpu").params.items()}

    def weights(self, number: int, epoch: int) -> dict[str, Tensor]:
        """Weights by name, on the CPU."""
        draw = generator(0, "stand-in", number, epoch)
        return {name: w + 0.01 * torch.randn(w.shape, generator=draw) for name, w in self.start.items()}


def _to(weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: send(w, device) for name, w in weights.items()}


def _augmentation(ctx: dcf.Context, batches: list[Tensor]) -> Augmentation | None:
    """Fresh values for every image of every step, drawn beforehand as a step is computed more than once."""
    if ctx.augmenter.is_identity:
        return None
    draw = generator(ctx.seed, "student augment", ctx.it)
    values: list[Any] = [ctx.augmenter.draw(len(b), ctx.spec.shape, draw, shared=False) for b in batches]
    return Augmentation(ctx.augmenter, lambda step, _: values[step])
