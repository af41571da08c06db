"""dcf's side: the session that `dcf condense` would make for the case, one outer iteration at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tests.benchmarks.cases import BATCH_TRAIN, LR_NET, Case, Shared
from torch import Tensor

from dcf.context import Context
from dcf.data.real import RealData
from dcf.networks.base import NetworkState
from dcf.runconfig import RunConfig
from dcf.session import Session
from dcf_dsa.augment import DSA
from dcf_dsa.reference_seed import draws_from_reference_seed

__all__ = ["Ours", "initial_weights"]


class Ours:
    """One case, computed by dcf.

    Args:
        case: The case.
        data: The real images.
        class_chunk: Classes that are worked on together; None leaves the choice to dcf.
    """

    def __init__(self, case: Case, data: RealData, class_chunk: int | None = None) -> None:
        self.case = case
        self.data = data
        self.class_chunk = class_chunk
        self.session = self._session({})
        self.session.initialise()
        self.session.matcher.prepare(self.session.ctx)
        self.it = 0

    def step(self) -> None:
        """Do the work of the case once, with the update where there is one."""
        self.it += 1
        if self.case.part == "training":
            ctx = self.session.ctx
            ctx.begin(self.it)
            self._train(ctx, ctx.network())
        else:
            self.session.engine.iterate(self.it).read()

    def once(self, shared: Shared) -> dict[str, Tensor]:
        """What the case computes from given input: loss and image gradient, or the trained weights."""
        session = self._session({"augment": _Replayed(shared.seeds)} if self.case.augmented else {})
        session.param.absorb(shared.synthetic)
        net = self._with_weights(session.ctx, shared.weights)
        if self.case.part == "training":
            self._train(session.ctx, net)
            return {"weights": torch.cat([p.detach().flatten() for p in net.parameters()])}
        session.ctx.network = lambda *stream: net  # type: ignore[method-assign]
        session.ctx.real = lambda classes, n, *stream: shared.real[classes]  # type: ignore[method-assign]
        (images,) = session.engine.watch
        total = torch.zeros((), device=images.device)
        for step in session.matcher.outer(session.ctx, 0):
            if step.loss is not None:
                total += step.loss.detach()
                torch.autograd.backward(step.loss, inputs=[images])
        if images.grad is None:
            raise RuntimeError("the matcher gave the images no gradient")
        return {"loss": total, "gradient": images.grad}

    def _session(self, objects: dict[str, Any]) -> Session:
        matcher = "dm" if self.case.part == "embedding" else "dc:match_steps=1"
        config = RunConfig(
            matcher=matcher,
            augment="dsa" if self.case.augmented else "none",
            init="noise",
            ipc=self.case.ipc,
            lr=self.case.lr,
            device=str(self.data.train.device),
            class_chunk="auto" if self.class_chunk is None else self.class_chunk,
        )
        return Session(config, self.data, objects=objects)

    def _with_weights(self, ctx: Context, weights: tuple[Tensor, ...]) -> NetworkState:
        net = ctx.network()
        net.load(dict(zip(net.params, weights, strict=True)))
        return net

    def _train(self, ctx: Context, net: NetworkState) -> None:
        ctx.train(net, self.case.epochs, LR_NET, BATCH_TRAIN, 0)


class _Replayed(DSA):
    """The augmentation with the draws that the published code makes from given seeds, class after class."""

    def __init__(self, seeds: tuple[int, ...]) -> None:
        super().__init__()
        self.seeds: Iterator[int] = iter(seeds)

    def draw(self, n: int, shape: tuple[int, int, int], generator: torch.Generator, shared: bool) -> Any:
        """The next class's draw."""
        return draws_from_reference_seed(next(self.seeds), shape, self.config).values


def initial_weights(ours: Ours) -> tuple[Tensor, ...]:
    """Weights of a fresh network, in order of its layers."""
    return tuple(p.detach() for p in ours.session.ctx.network("agreement").parameters())
