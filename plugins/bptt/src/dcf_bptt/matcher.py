"""Dataset distillation (Wang et al., 2018) and RememberThePast's matcher (Deng and Russakovsky, NeurIPS 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

import dcf
from dcf.seeding import generator
from dcf.training import BLOWN_UP
from dcf.unroll import StepSizes, stateless, train_on
from dcf_bptt.options import BPTTConfig, DDConfig
from dcf_bptt.order import cycled, ordered_batches, random_batches, require_all_used, views_by_class
from dcf_bptt.training import real_loss

__all__ = ["BPTT", "DD"]

ADVICE = (
    "lower the step size (--lr), clip the gradients (--clip 2) or begin with a smaller step size of the training "
    "(lr of the matcher), and start again"
)


@dataclass(frozen=True)
class _Task:
    """What all networks of an outer iteration share: classes, real images, and the draw of the augmentation, if any."""

    classes: Tensor
    real: dcf.Batch
    alike: Callable[[dcf.Batch], dcf.Batch]


class BPTT(dcf.Matcher):
    """Train a fresh network on the set, test it on real images, and differentiate the loss through all of the training.

    One outer iteration is one update. The order of the images, momentum, learned step sizes and the rest are options;
    the defaults are RememberThePast's.
    """

    Config = BPTTConfig

    reads: ClassVar[frozenset[str]] = frozenset({"images", "labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=5000, lr=0.1, momentum=0.5, init="random", iterations_small=200
    )
    advice: ClassVar[str] = ADVICE

    def __init__(self, config: dcf.Config | None = None) -> None:
        super().__init__(config)
        every = self.config.halve_every
        # What decays are step sizes that belong to the run, and these follow the matcher's defaults.
        self.defaults = replace(type(self).defaults, decay=(every, 0.5) if every else None)  # type: ignore[misc]
        self.sizes: StepSizes | None = None
        self.views: list[Tensor] = []
        self.program: list[Tensor] = []
        self.steps = 0

    # --- learned step sizes ----------------------------------------------------------------------

    def setup(self, ctx: dcf.Context) -> None:
        """Fix the number of training steps, their images where they are ordered, and the step sizes to learn.

        Raises:
            UsageError: When batches in a fixed order do not divide the set, or are more than there are steps.
        """
        config = self.config
        self.views = views_by_class(ctx.param.view_class, ctx.spec.num_classes)
        if config.order == "fixed":
            batches = ordered_batches([own for own in self.views if len(own)], config.batch)
            self.steps = len(batches) * config.epochs if config.steps == "auto" else config.steps
            require_all_used(len(batches), self.steps)
            self.program = cycled(batches, self.steps)
        else:
            a_pass = math.ceil(max(map(len, self.views)) / config.batch)
            self.steps = a_pass * config.epochs if config.steps == "auto" else config.steps
        if config.learn_lr != "no":
            self.sizes = StepSizes([config.lr] * (self.steps if config.learn_lr == "each" else 1), "softplus")

    def param_groups(self) -> list[dcf.ParamGroup]:
        """What softplus makes the learned step sizes from, as `lrs`."""
        if self.sizes is None:
            return []
        lr = None if self.config.lr_lr == "auto" else self.config.lr_lr
        return [dcf.ParamGroup("lrs", [self.sizes.raw], lr)]

    def step_sizes(self, device: torch.device) -> Tensor:
        """`(T,)` step sizes of the training, differentiable where they are learned."""
        if self.sizes is None:
            return torch.full((self.steps,), self.config.lr, device=device)
        return self.sizes().expand(self.steps)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The learned step sizes."""
        return {} if self.sizes is None else {"lrs": self.sizes.raw.detach()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        if self.sizes is not None:
            with torch.no_grad():
                self.sizes.raw.copy_(state["lrs"])

    def hints(self) -> dcf.Hints:
        """The training as a program where it is an ordered one, else the learned step size, if any."""
        sizes = self.step_sizes(torch.device("cpu")).tolist()
        if not self.program:
            return dcf.Hints(lr=None if self.sizes is None else sizes[0])
        steps = tuple(tuple(step.tolist()) for step in self.program)
        return dcf.Hints(ordered=True, program=dcf.Program(steps, tuple(sizes), self.config.momentum))

    # --- one outer iteration ---------------------------------------------------------------------

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """Train, test, and update the set once, with the mean over the networks."""
        task, nets = self.task(ctx), self.config.nets
        for number in range(nets):
            loss, right = self.trained_loss(ctx, task, number)
            last = number == nets - 1
            log = {"accuracy": right}
            if self.sizes is not None:
                log["step_size"] = self.sizes().detach().mean()
            yield dcf.Step(loss / nets, update=last, log=log, limit=BLOWN_UP / nets)

    def trained_loss(self, ctx: dcf.Context, task: _Task, number: int) -> tuple[Tensor, Tensor]:
        """Loss and accuracy on the real images of a fresh network that was trained on the set."""
        config, net = self.config, ctx.network(number)
        logits = stateless(net)
        steps = self.batches(ctx, task, number)
        used = torch.cat(steps).unique()
        # Decoded once, whatever number of steps takes them; the way back through the decoding follows by itself.
        images = task.alike(ctx.param.batch(used))
        weights = train_on(
            logits,
            {name: weight.detach() for name, weight in net.params.items()},
            images,
            [torch.searchsorted(used, step) for step in steps],
            self.step_sizes(used.device),
            momentum=config.momentum,
            mode=config.unroll,
            keep=config.keep,
            augment=self.apart(ctx, steps, number),
        )
        return real_loss(logits, weights, task.real)

    def batches(self, ctx: dcf.Context, task: _Task, number: int) -> list[Tensor]:
        """View numbers of each training step of a network."""
        if self.program:
            return [step.to(ctx.device) for step in self.program]
        views = [self.views[c] for c in task.classes.tolist() if len(self.views[c])]
        draws = generator(ctx.seed, "mini-batches", ctx.it, number)
        return random_batches(views, self.config.batch, self.steps, draws)

    # --- what the networks share -----------------------------------------------------------------

    def task(self, ctx: dcf.Context) -> _Task:
        """Classes, real images and augmentation of this iteration."""
        classes = self.drawn_classes(ctx)
        real = self.real(ctx, classes)
        if not self.is_siamese(ctx):
            return _Task(classes, self._real_apart(ctx, real), lambda batch: batch)
        values = ctx.augmenter.draw(1, ctx.spec.shape, generator(ctx.seed, "siamese", ctx.it), shared=True)

        def alike(batch: dcf.Batch) -> dcf.Batch:
            return ctx.augmenter.apply(batch, values)

        # One draw for everything: the set may be augmented once instead of in every step.
        return _Task(classes, alike(real), alike)

    def drawn_classes(self, ctx: dcf.Context) -> Tensor:
        """`(c,)` classes of this iteration, ascending."""
        total = ctx.spec.num_classes
        count = total if self.config.classes == "all" else min(self.config.classes, total)
        drawn = torch.randperm(total, generator=generator(ctx.seed, "classes", ctx.it))[:count]
        return drawn.sort().values.to(ctx.device)

    def real(self, ctx: dcf.Context, classes: Tensor) -> dcf.Batch:
        """Real images of these classes: so many of each, or so many of any."""
        if self.config.real == "per-class":
            images = ctx.real(classes, self.config.batch_real, "test")
            return dcf.Batch(images.flatten(0, 1), ctx.labels(classes, images.shape[1]).flatten())
        train = ctx.data.train
        those = torch.isin(train.labels, classes).nonzero().flatten()
        drawn = torch.randperm(len(those), generator=generator(ctx.seed, "test", ctx.it))[: self.config.batch_real]
        index = those[drawn.to(those.device)]
        return dcf.Batch(train.images(index), train.labels[index])

    # --- augmentation ----------------------------------------------------------------------------

    def is_siamese(self, ctx: dcf.Context) -> bool:
        """Whether one draw is for all steps and the real images."""
        return bool(self.config.siamese and ctx.augmenter.siamese)

    def apart(self, ctx: dcf.Context, steps: list[Tensor], number: int) -> Callable[[dcf.Batch, int], dcf.Batch] | None:
        """Augmentation of each step with draws of its own, fixed beforehand; None where there is nothing to do."""
        aug = ctx.augmenter
        if aug.is_identity or self.is_siamese(ctx):
            return None
        draws = generator(ctx.seed, "augment", ctx.it, number)
        values = [aug.draw(len(step), ctx.spec.shape, draws, shared=False) for step in steps]
        return lambda batch, s: aug.apply(batch, values[s])

    def _real_apart(self, ctx: dcf.Context, real: dcf.Batch) -> dcf.Batch:
        if ctx.augmenter.is_identity:
            return real
        draws = generator(ctx.seed, "augment real", ctx.it)
        return ctx.augmenter.apply(real, ctx.augmenter.draw(len(real.x), ctx.spec.shape, draws, shared=False))


class DD(BPTT):
    """Dataset distillation: ordered batches, each step with a learned step size of its own; the set is a program."""

    Config = DDConfig

    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=23600,
        lr=0.01,
        momentum=0.0,
        init="noise",
        iterations_small=200,
        optimizer="adam",
        betas=(0.5, 0.999),
        decay=(2360, 0.5),
    )
