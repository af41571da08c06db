"""dcf's side: the session that `dcf condense` would make for the case, one outer iteration at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from tests.benchmarks.cases import BATCH_TRAIN, LR_NET, Case, Shared
from torch import Tensor

from dcf.compiled import allowed, expected
from dcf.context import Context
from dcf.data.real import RealData
from dcf.evaluation import EvalContext, set_row
from dcf.networks.base import NetworkState
from dcf.runconfig import RunConfig
from dcf.runtime import precision_of
from dcf.session import Session
from dcf_dsa.augment import DSA
from dcf_dsa.reference_seed import draws_from_reference_seed

__all__ = ["Ours", "Precision", "initial_weights"]

Precision: TypeAlias = Literal["default", "strict"]

#: Networks of a published run, which decide whether compiling pays.
ITERATIONS = 1000
#: The plain protocol of the published code, without augmentation, as it has it for CIFAR.
PROTOCOL = "vico-dc@2"


class Ours:
    """One case, computed by dcf.

    Args:
        case: The case.
        data: The real images.
        class_chunk: Classes that are worked on together; None leaves the choice to dcf.
        precision: Of the run: "default" uses compiled kernels where the processor suits.
    """

    def __init__(
        self, case: Case, data: RealData, class_chunk: int | None = None, precision: Precision = "default"
    ) -> None:
        self.case = case
        self.data = data
        self.class_chunk = class_chunk
        self.precision = precision
        self.session = self._session({})
        self.session.initialise()
        self.session.engine.rehearse()
        self.it = 0

    # --- the two things a side can do ----------------------------------------------------------------

    def step(self) -> None:
        """Do the work of the case once, with the update where there is one."""
        self.it += 1
        ctx = self.session.ctx
        with self._running():
            if self.case.part == "evaluation":
                self._evaluate()
            elif self.case.part == "training":
                ctx.begin(self.it)
                self._train(ctx, ctx.network())
            else:
                self.session.engine.iterate(self.it).read()

    def parts(self) -> Iterator[None]:
        """One outer iteration, part by part: a matching step, its update, and the training that follows."""
        self.it += 1
        engine, ctx = self.session.engine, self.session.ctx
        ctx.begin(self.it)
        steps = self.session.matcher.outer(ctx, self.it)
        going = True
        while going:
            with self._running():
                going = self._part(steps, engine)
            if going:
                yield

    def once(self, shared: Shared) -> dict[str, Tensor]:
        """What the case computes from given input: loss and image gradient, or the trained weights."""
        with self._running():
            return self._once(shared)

    # --- pieces --------------------------------------------------------------------------------------

    def _part(self, steps: Iterator[Any], engine: Any) -> bool:
        """The steps up to the next update; the training is done when the step after it is asked for."""
        for step in steps:
            torch.autograd.backward(step.loss, inputs=engine.watch)
            if step.update:
                engine.optimizer.step()
                for tensor in engine.watch:
                    tensor.grad = None
                return True
        return False

    @contextmanager
    def _running(self) -> Iterator[None]:
        """What a run of the published length allows."""
        with precision_of(self.precision), allowed(self.precision, self.data.train.device), expected(ITERATIONS):
            yield

    def _once(self, shared: Shared) -> dict[str, Tensor]:
        session = self._session({"augment": "none" if shared.seeds is None else _Replayed(shared.seeds)})
        (images, *others) = session.engine.watch
        images.data = shared.synthetic.clone()
        net = session.ctx.network()
        net.load(dict(zip(net.params, shared.weights, strict=True)))
        if self.case.part != "match":
            self._train(session.ctx, net)
            return {"weights": torch.cat([p.detach().flatten() for p in net.parameters()])}
        session.ctx.network = lambda *stream: net  # type: ignore[method-assign]
        session.ctx.real = lambda classes, n, *stream: shared.real[classes]  # type: ignore[method-assign]
        session.engine.rehearse()
        if self.case.checkout == "mtt":
            session.matcher.experts = _Shared(net, shared)  # type: ignore[attr-defined]
        total = torch.zeros((), device=images.device, dtype=shared.dtype)
        for step in session.matcher.outer(session.ctx, 0):
            total += step.loss.detach()  # type: ignore[union-attr]
            torch.autograd.backward(step.loss, inputs=[images, *others])  # type: ignore[arg-type]
        if images.grad is None:
            raise RuntimeError("the matcher gave the images no gradient")
        return {"loss": total, "gradient": images.grad}

    def _evaluate(self) -> None:
        changes = {"epochs": self.case.epochs, "augment": "none"}
        ctx = EvalContext(self.data, PROTOCOL, self.it, networks=self.case.networks, overrides=changes)
        set_row([self.session.result()], ctx, "convnet")

    def _session(self, objects: dict[str, Any]) -> Session:
        known = {name: value for name, value in objects.items() if not isinstance(value, str)}
        usual = ("idc" if self.case.checkout == "idc" else "dsa") if self.case.augmented else "none"
        config = RunConfig(
            matcher=self.case.matcher,
            param="multiformation:factor=2" if self.case.checkout == "idc" else "pixels",
            augment="none" if objects.get("augment") == "none" else usual,
            init="noise",
            ipc=self.case.ipc,
            lr=self.case.lr,
            device=str(self.data.train.device),
            class_chunk="auto" if self.class_chunk is None else self.class_chunk,
            precision=self.precision,
        )
        return Session(config, self.data, objects=known)

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


class _Shared:
    """An expert that went from the shared weights to the shared target, whenever it is asked."""

    def __init__(self, net: NetworkState, shared: Shared) -> None:
        self.net, self.shared = net, shared
        self.asked = 0

    def weights(self, number: int, epoch: int) -> dict[str, Tensor]:
        """Start and target in turn."""
        self.asked += 1
        values = self.shared.weights if self.asked % 2 else self.shared.target
        return dict(zip(self.net.params, values, strict=True))


def initial_weights(ours: Ours) -> tuple[Tensor, ...]:
    """Weights of a fresh network, in order of its layers."""
    return tuple(p.detach() for p in ours.session.ctx.network("agreement").parameters())
