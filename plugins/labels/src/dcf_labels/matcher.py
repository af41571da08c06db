"""Label distillation (Bohdal, Yang and Hospedales, 2020): fixed images, learned labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor

import dcf
from dcf.seeding import generator
from dcf.training import BLOWN_UP, cross_entropy
from dcf.unroll import stateless
from dcf_labels.learner import Learner
from dcf_labels.options import LDConfig
from dcf_labels.restart import RestartRule
from dcf_labels.ridge import ridge_head, with_bias

__all__ = ["LD", "inner_batch", "restart_window"]

log = logging.getLogger(__name__)

#: Classes from which the published settings are those of the larger problems.
_MANY_CLASSES = 49
#: Images of the set from which a row holds -> images a step.
_BATCHES = {1: 10, 50: 25, 100: 50}
_LR_SCALE = 0.01


def inner_batch(images: int, classes: int) -> int:
    """Images of the set a step: 10, 10, 25 and 50 of 10, 20, 50 and 100; 100 from 49 classes on.

    Example:
        >>> [inner_batch(n, 10) for n in (10, 20, 50, 100, 500)], inner_batch(100, 100)
        ([10, 10, 25, 50, 50], 100)
    """
    size = 100 if classes >= _MANY_CLASSES else _BATCHES[max(n for n in _BATCHES if n <= max(1, images))]
    return min(images, size)


def restart_window(images: int, classes: int) -> int:
    """Iterations that the error is averaged over: 50; 100 from 49 classes on; 200 for more than 100 images.

    Example:
        >>> restart_window(100, 10), restart_window(100, 100), restart_window(500, 10)
        (50, 100, 200)
    """
    if classes >= _MANY_CLASSES:
        return 100
    return 200 if images > 100 else 50


class LD(dcf.Matcher):
    """Learn labels with which a network that is trained on the set does well on real images.

    One network goes on learning from the set through the iterations. In each, a mini-batch of the set is asked what a
    step of training on it does for a batch of real images, and the labels are moved so that it does more; then the
    network makes that step. When it improves no more, a new one takes its place, and the steps it took are noted: their
    mean is the length of training that belongs to the set.
    """

    Config = LDConfig

    reads: ClassVar[frozenset[str]] = frozenset({"labels"})
    needs: ClassVar[frozenset[str]] = frozenset({"double-backward"})
    defaults: ClassVar[dcf.MatcherDefaults] = dcf.MatcherDefaults(
        iterations=20000, lr=1e-3, init="random", optimizer="adam"
    )
    advice: ClassVar[str] = "lower the step size of the labels (--set optim.labels.lr=1e-4) or that of the network"

    def __init__(self, config: dcf.Config | None = None) -> None:
        super().__init__(config)
        #: What the logits of the running classifier are multiplied by; learned, `variant=ridge` only.
        self.scale = torch.ones((), requires_grad=True)

    # --- before the first iteration --------------------------------------------------------------

    def prepare(self, ctx: dcf.Context) -> None:
        """Make the first network; its weights are replaced if the run is resumed."""
        images, classes = ctx.param.epoch_length, ctx.spec.num_classes
        config = self.config
        self.batch = inner_batch(images, classes) if config.batch == "auto" else min(config.batch, images)
        self.rule = RestartRule(restart_window(images, classes) if config.window == "auto" else config.window)
        self.learner = Learner(ctx, config.lr_net)
        self.head = torch.zeros(0, classes, device=ctx.device)
        if config.variant == "ridge":
            self.head = torch.zeros(self.learner.width() + 1, classes, device=ctx.device)
        if not ctx.augmenter.is_identity:
            log.warning("ld augments nothing; the augmentation is used in evaluation alone, where the protocol says so")

    def param_groups(self) -> list[dcf.ParamGroup]:
        """`scale` of the ridge variant."""
        if self.config.variant == "or2":
            return []
        return [dcf.ParamGroup("scale", [self.scale], lr=_LR_SCALE, optimizer="adam", betas=(0.9, 0.999))]

    # --- an iteration ----------------------------------------------------------------------------

    def outer(self, ctx: dcf.Context, it: int) -> Iterator[dcf.Step]:
        """Judge the labels of a mini-batch, let them be moved, then train the network on what they were."""
        real, small = self.real_batch(ctx, it), self.small_batch(ctx, it)
        self.learner.net.train()
        judge = self.look_ahead if self.config.variant == "or2" else self.fit_head
        logits, inner, gradients = judge(real.x, small)
        loss = cross_entropy(logits, real.y)
        error = (logits.detach().argmax(1) != real.y).float().mean()
        yield dcf.Step(loss, limit=BLOWN_UP, log={"error": error, "inner": inner})
        self.learner.step(gradients)
        if self.rule.advance(float(error)):
            log.debug("ld: network %d learned for %d steps", self.rule.restarts, self.rule.lengths[-1])
            self.learner.begin(self.rule.restarts)
            self.head = torch.zeros_like(self.head)

    def look_ahead(self, real: Tensor, small: dcf.Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The second-order variant: logits of real images after one step of SGD on the mini-batch.

        Args:
            real: `(B, C, H, W)` real images.
            small: Mini-batch of the set; its labels are differentiated through.

        Returns:
            Logits `(B, K)` of w - lr_step grad L(w), L being the soft cross-entropy averaged over the mini-batch; L;
            and its gradient, a constant, one tensor for each weight.
        """
        net = self.learner.net
        inner = cross_entropy(net(small.x), small.y)
        gradients = torch.autograd.grad(inner, net.parameters(), create_graph=True, materialize_grads=True)
        moved = {
            name: weight.detach() - self.config.lr_step * gradient
            for (name, weight), gradient in zip(net.params.items(), gradients, strict=True)
        }
        # Running statistics move by what the network learns from, not by what it is tested on.
        return stateless(net)(real, moved), inner.detach(), [g.detach() for g in gradients]

    def fit_head(self, real: Tensor, small: dcf.Batch) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The first-order variant: logits of real images by a running mean of classifiers fitted to the labels.

        As `look_ahead`, with the head W <- (1 - head_rate) W + head_rate ridge(features, labels) and the logits
        features (scale W). The gradient is that of the soft cross-entropy of these logits for the mini-batch, in the
        weights alone; the network's own classifier gets none.
        """
        net, rate = self.learner.net, self.config.head_rate
        features = with_bias(net.embed(small.x))
        fitted = ridge_head(features.detach(), small.y, self.config.ridge)
        head = (1 - rate) * self.head + rate * fitted
        inner = cross_entropy(features @ (self.scale.detach() * head.detach()), small.y.detach())
        gradients = torch.autograd.grad(inner, net.parameters(), materialize_grads=True)
        with torch.no_grad():
            seen = with_bias(_embedded(net, real))
        self.head = head.detach()
        return seen @ (self.scale * head), inner.detach(), list(gradients)

    # --- batches ---------------------------------------------------------------------------------

    def real_batch(self, ctx: dcf.Context, it: int) -> dcf.Batch:
        """Real images: consecutive parts of a shuffled pass over the training images, then of another one."""
        split = ctx.data.train
        size = min(self.config.batch_real, len(split))
        index = _part(torch.randperm(len(split), generator=_pass(ctx, "real", it, len(split) // size)), it, size)
        index = index.to(ctx.device)
        return dcf.Batch(split.images(index), split.labels[index])

    def small_batch(self, ctx: dcf.Context, it: int) -> dcf.Batch:
        """Images of the set, as constants, with their labels: likewise, of passes over the set."""
        draws = _pass(ctx, "set", it, ctx.param.epoch_length // self.batch)
        index = _part(ctx.param.inner_epoch(draws, self.batch), it, self.batch)
        return dcf.Batch(ctx.param.images(index).detach(), ctx.param.labels(index))

    # --- what outlives an iteration --------------------------------------------------------------

    def hints(self) -> dcf.Hints:
        """The training length that was learned."""
        return dcf.Hints(steps=self.rule.length)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The network with its optimiser, the running classifier with its scale, and the counts of the restarts."""
        own = {"head": self.head, "scale": self.scale.detach()} if self.config.variant == "ridge" else {}
        rule = {f"rule.{k}": v for k, v in self.rule.state_dict().items()}
        return {**own, **rule, **self.learner.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        if self.config.variant == "ridge":
            self.head = state["head"].clone()
            with torch.no_grad():
                self.scale.copy_(state["scale"])
        self.rule.load_state_dict({k.removeprefix("rule."): v for k, v in state.items() if k.startswith("rule.")})
        self.learner.load_state_dict({k: v for k, v in state.items() if k.startswith(("net.", "adam."))})


def _pass(ctx: dcf.Context, what: str, it: int, parts: int) -> torch.Generator:
    """The generator of the pass that iteration `it` is in, of passes with so many parts."""
    return generator(ctx.seed, "label distillation", what, it // max(1, parts))


def _part(order: Tensor, it: int, size: int) -> Tensor:
    """The part of a pass that iteration `it` takes; what does not fill a part is left out."""
    slot = it % max(1, len(order) // size)
    return order[slot * size : (slot + 1) * size]


def _embedded(net: dcf.NetworkState, images: Tensor) -> Tensor:
    """`(N, F)` embeddings; running statistics of batch norms stay as they are."""
    kept = {name: buffer.clone() for name, buffer in net.buffers.items()}
    found = net.embed(images)
    for name, buffer in kept.items():
        net.buffers[name].copy_(buffer)
    return found
