"""A network that goes on learning from iteration to iteration, and all that must be kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import dcf
from dcf.optimizer import Optimizer, Settled

__all__ = ["Learner"]


class Learner:
    """A network and its Adam; replaced by fresh ones when asked.

    Args:
        ctx: The run, which makes the networks.
        lr: Step size.
    """

    def __init__(self, ctx: dcf.Context, lr: float) -> None:
        self.ctx = ctx
        self.lr = lr
        self.begin(0)

    def begin(self, number: int) -> None:
        """Take network `number` of the run, freshly initialised, and an optimiser that remembers nothing."""
        ctx = self.ctx
        self.net = ctx.networks.create(ctx.spec, ctx.seed, "label network", number, device=ctx.device)
        self._renew()

    def _renew(self) -> None:
        self.optimizer = Optimizer([Settled(self.net.parameters(), self.lr, 0.0, "adam", (0.9, 0.999), None)])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move the weights; their `.grad` is None afterwards.

        Args:
            gradients: One for each weight, in order of `net.params`.
        """
        weights = self.net.parameters()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.detach()
        self.optimizer.step()
        for weight in weights:
            weight.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, buffers and the state of Adam."""
        net = {f"net.{name}": value.detach() for name, value in {**self.net.params, **self.net.buffers}.items()}
        return net | {f"adam.{name}": value for name, value in self.optimizer.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        parts = {
            prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for prefix in ("net.", "adam.")
        }
        self.net.load(parts["net."])
        self._renew()
        # Adam counts its steps on the CPU.
        adam = {k: v.cpu() if k.startswith("step.") else v for k, v in parts["adam."].items()}
        self.optimizer.load_state_dict(adam)

    @torch.no_grad()
    def width(self) -> int:
        """Features of an image."""
        probe = torch.zeros(1, *self.ctx.spec.shape, device=self.ctx.device)
        self.net.eval()
        found = self.net.embed(probe).shape[1]
        self.net.train()
        return int(found)
