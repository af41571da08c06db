"""The adversary: a network that tells which images were made of one basis, and what it asks of those who make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import torch
from torch import Tensor
from torch.func import functional_call

import dcf
from dcf.seeding import generator
from dcf_haba.losses import adversarial, adversary_loss

if TYPE_CHECKING:
    from dcf_haba.param import Haba

__all__ = ["Adversary"]

_HEAD: Final = "classifier."


class Adversary(dcf.AuxiliaryObjective):
    """Push what two hallucinators make of a basis apart, in the eyes of a network that learns to see it as one.

    The network is one of the run's, which is never made anew, and is trained after each update by plain SGD with
    momentum. It is made when it is first needed, and its weights and velocities travel in checkpoints.

    Args:
        param: Whose images it looks at.
    """

    advice: ClassVar[str] = (
        "lower the step size of the adversary (--set param.lr_adversary=0.0001) or that of the set (--lr), "
        "or leave the adversary out (--set param.objective=none)"
    )

    def __init__(self, param: Haba) -> None:
        self.param = param
        self.every = param.config.every
        self.net: dcf.NetworkState | None = None
        self.velocity: dict[str, Tensor] = {}
        self._restored: dict[str, Tensor] = {}

    # --- what the engine asks for ------------------------------------------------------------------

    def loss(self, ctx: dcf.Context) -> Tensor:
        """`club` times how alike two images of a basis are, averaged over bases; differentiable in what is stored."""
        net = self._ready(ctx)
        pair, _ = self.pairs(ctx, "set")
        club: float = self.param.config.club
        return club * adversarial(net.embed(pair.x))

    def after_update(self, ctx: dcf.Context) -> None:
        """One step of the adversary, on a draw of its own from the set as it is now."""
        config, net = self.param.config, self._ready(ctx)
        with torch.no_grad():
            pair, labels = self.pairs(ctx, "adversary")
        embeddings = net.embed(pair.x)
        loss = adversary_loss(
            embeddings, _logits(net, embeddings), labels,
            cls=config.cls, likely=config.likelihood, contrast=config.contrast, temperature=config.temperature,
        )  # fmt: skip
        self.trained = loss.detach()
        gradients = torch.autograd.grad(loss, net.parameters(), materialize_grads=True)
        with torch.no_grad():
            for (name, weight), gradient in zip(net.params.items(), gradients, strict=True):
                self.velocity[name].mul_(config.momentum_adversary).add_(gradient)
                weight.sub_(config.lr_adversary * self.velocity[name])

    def pairs(self, ctx: dcf.Context, stream: str) -> tuple[dcf.Batch, Tensor]:
        """Some bases, each as two different hallucinators show it, augmented; the same two for all of them.

        Args:
            ctx: The run; the draw is a function of its seed, iteration and update.
            stream: Name of the draw.

        Returns:
            `(2n, C, H, W)` images with their classes, those of the first hallucinator before those of the second,
            and the `(n,)` classes.
        """
        param, draw = self.param, generator(ctx.seed, "haba", stream, ctx.it, ctx.update)
        count, styles = len(param.basis_class), param.config.styles
        wanted = count if param.config.batch == "all" else min(param.config.batch, count)
        chosen = torch.randperm(count, generator=draw)[:wanted]
        first, second = torch.randperm(styles, generator=draw)[:2].tolist()
        index = torch.cat([chosen * styles + first, chosen * styles + second]).to(param.basis_class.device)
        batch = dcf.Batch(param.images(index).to(self._dtype()), param.view_class[index])
        if not ctx.augmenter.is_identity:
            values = ctx.augmenter.draw(len(index), param.shape, draw, shared=False)
            batch = ctx.augmenter.apply(batch, values)
        return batch, param.view_class[index[:wanted]]

    # --- what outlives an update -------------------------------------------------------------------

    def state_dict(self) -> Mapping[str, Tensor]:
        """Weights, buffers and velocities of the network; nothing before it was needed."""
        if self.net is None:
            return dict(self._restored)
        held = {"net": {**self.net.params, **self.net.buffers}, "velocity": self.velocity}
        return {f"{kind}.{name}": t.detach() for kind, named in held.items() for name, t in named.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.net, self.velocity = None, {}
        self._restored = {name: tensor.clone() for name, tensor in state.items()}

    def _ready(self, ctx: dcf.Context) -> dcf.NetworkState:
        """The network: that of a checkpoint, or a fresh one."""
        if self.net is not None:
            return self.net
        net = ctx.networks.create(self.param.spec, ctx.seed, "haba adversary", device=ctx.device)
        self.velocity = {name: torch.zeros_like(weight) for name, weight in net.params.items()}
        if self._restored:
            net.load(_part(self._restored, "net."))
            self.velocity = _part(self._restored, "velocity.")
            self._restored = {}
        self.net = net
        return net

    def _dtype(self) -> torch.dtype:
        return torch.float32 if self.net is None else next(iter(self.net.params.values())).dtype


def _logits(net: dcf.NetworkState, embeddings: Tensor) -> Tensor:
    """`(N, K)` from `(N, F)`: the last layer alone, so that images go through the network once."""
    return functional_call(net.module.classifier, _part(net.params, _HEAD), (embeddings,))  # type: ignore[no-any-return]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
