"""The engine: runs a matcher's generator, moves the synthetic set, checkpoints, stops and resumes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from dcf.context import Context
from dcf.errors import NonFiniteError, UsageError
from dcf.matcher import Matcher
from dcf.optimizer import Optimizer, require_groups, settle
from dcf.parameterization import Parameterization
from dcf.runconfig import GroupSettings
from dcf.types import ParamGroup, Step

__all__ = ["Engine", "Progress", "check_composition"]

log = logging.getLogger(__name__)

#: Iterations in a row that may go without an update before a run is given up.
_MOST_SKIPPED: Final = 5


@dataclass(frozen=True)
class Progress:
    """What the engine reports after an outer iteration.

    Attributes:
        it: Iterations done.
        iterations: Iterations in all.
        loss: Mean over the iteration's updates of the loss summed over chunks; NaN where it was not read.
        log: Further scalars of the matcher, averaged over the iteration; `aux` is the sum of the
            parameterization's own objectives, `skipped` the number of updates that were left out.
        seconds: Since the engine was started.
    """

    it: int
    iterations: int
    loss: float
    log: Mapping[str, float]
    seconds: float


@dataclass
class _Tally:
    """Losses of one iteration, kept on the device until they are read."""

    loss: Tensor | None = None
    aux: Tensor | None = None
    updates: int = 0
    skipped: int = 0
    logs: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        if step.loss is not None:
            loss = step.loss.detach()
            self.loss = loss if self.loss is None else self.loss + loss
        self.updates += step.update
        for name, value in step.log.items():
            self.logs.setdefault(name, []).append(value.detach())

    def add_aux(self, loss: Tensor) -> None:
        self.aux = loss.detach() if self.aux is None else self.aux + loss.detach()

    def read(self) -> tuple[float, dict[str, float]]:
        loss = float(self.loss) / max(1, self.updates) if self.loss is not None else float("nan")
        logs = {name: float(torch.stack(values).float().mean()) for name, values in self.logs.items()}
        if self.aux is not None:
            logs["aux"] = float(self.aux) / max(1, self.updates)
        if self.skipped:
            logs["skipped"] = float(self.skipped)
        return loss, logs


def check_composition(matcher: Matcher, param: Parameterization) -> None:
    """Refuse a pair that cannot learn anything.

    Raises:
        UsageError: With the reason.
    """
    if not matcher.reads & param.drives:
        reads, drives = " and ".join(sorted(matcher.reads)), " and ".join(sorted(param.drives)) or "nothing"
        raise UsageError(
            f"{type(matcher).__name__} teaches {reads}, but {type(param).__name__} learns {drives}: "
            "nothing would change; choose another matcher or parameterization"
        )


class Engine:
    """Drives one run.

    Args:
        ctx: The run as the matcher sees it.
        matcher: A fresh one; `prepare` prepares it.
        lr: Step size of groups that have none of their own.
        momentum: Likewise.
        clip: Largest L2 norm of all gradients together; None for no clipping.
        optim: Settings that win over those of the groups of these names.

    Raises:
        UsageError: When nothing could be learned, or `optim` names no group.
    """

    def __init__(
        self,
        ctx: Context,
        matcher: Matcher,
        lr: float,
        momentum: float,
        clip: float | None = None,
        optim: Mapping[str, GroupSettings] | None = None,
    ) -> None:
        check_composition(matcher, ctx.param)
        self.ctx = ctx
        self.matcher = matcher
        self.clip = clip
        ctx.teaches = matcher.reads
        matcher.setup(ctx)
        own = matcher.param_groups()
        for tensor in (p for group in own for p in group.params):
            tensor.data = tensor.data.to(ctx.device)
        self.groups: list[ParamGroup] = [*ctx.param.param_groups(), *own]
        self.watch: list[Tensor] = [p for group in self.groups for p in group.params]
        self.objectives = ctx.param.aux()
        usual = replace(matcher.defaults, lr=lr, momentum=momentum)
        self.optimizer = Optimizer([settle(group, usual, optim or {}) for group in self.groups])
        require_groups(self.groups, optim or {})
        #: Iterations in a row without any update, because of `Step.limit`.
        self.skipped = 0
        self._prepared = False

    # --- running ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the matcher do what comes before the first iteration and before `load_state_dict`; once only."""
        if not self._prepared:
            self.matcher.prepare(self.ctx)
            self._prepared = True

    def rehearse(self) -> None:
        """Stand in for `prepare` where only the time and memory of iterations are measured."""
        if not self._prepared:
            self.matcher.rehearse(self.ctx)
            self._prepared = True

    def run(
        self,
        start: int,
        iterations: int,
        on_iteration: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run outer iterations `start` to `iterations`.

        Args:
            start: First iteration.
            iterations: One past the last.
            on_iteration: Called after each; may checkpoint, as everything is then between two iterations.
            should_stop: Asked after each iteration; true ends the run there.

        Returns:
            The number of iterations that are done.

        Raises:
            NonFiniteError: When a loss or the set became NaN or infinite; the iteration is not reported.
        """
        self.prepare()
        began = time.monotonic()
        for it in range(start, iterations):
            tally = self.iterate(it)
            loss, logs = tally.read()
            self._guard(it, loss if tally.loss is not None and not tally.skipped else 0.0)
            self._count_skipped(it, tally, loss)
            on_iteration(Progress(it + 1, iterations, loss, logs, time.monotonic() - began))
            if should_stop():
                return it + 1
        return iterations

    def iterate(self, it: int, go_on: Callable[[], bool] = lambda: True) -> _Tally:
        """One outer iteration.

        Args:
            it: Its number.
            go_on: Asked after each update; False ends the iteration there, unfinished.
        """
        self.ctx.begin(it)
        self.optimizer.begin(it)
        self._zero()
        tally = _Tally()
        for step in self._steps(it):
            if not step.accumulated:
                self._backward(step)
            if step.update and (step.limit is None or self._within(step)):
                self._update(tally)
            elif step.update:
                tally.skipped += 1
                self._zero()
            tally.add(step)
            if step.update and not go_on():
                break
        return tally

    def _within(self, step: Step) -> bool:
        """Whether the loss is at most its limit, and everything finite."""
        loss = 0.0 if step.loss is None else float(step.loss.detach())
        if not math.isfinite(loss) or (step.limit is not None and loss > step.limit):
            return False
        return bool(torch.stack([torch.isfinite(t.grad).all() for t in self.watch if t.grad is not None]).all())

    def _steps(self, it: int) -> Iterator[Step]:
        for step in self.matcher.outer(self.ctx, it):
            if not torch.is_grad_enabled() or torch.is_autocast_enabled(self.ctx.device.type):
                raise RuntimeError(
                    f"{type(self.matcher).__name__}.outer yielded inside no_grad or autocast; "
                    "compute there and yield outside"
                )
            yield step

    def _backward(self, step: Step) -> None:
        if step.loss is None:
            raise RuntimeError(f"{type(self.matcher).__name__}.outer yielded no loss and accumulated=False")
        # Only into what is learned: a plain backward() would also fill the network's gradients.
        torch.autograd.backward(step.loss, inputs=self.watch)

    def _update(self, tally: _Tally) -> None:
        for objective in self.objectives:
            loss = objective.loss(self.ctx)
            torch.autograd.backward(loss, inputs=self.watch)
            tally.add_aux(loss)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.watch, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            self.ctx.param.project_()
            self.matcher.project_()
        for objective in self.objectives:
            objective.after_update(self.ctx)
        self.ctx.update += 1
        self._zero()

    def _zero(self) -> None:
        # Zero, not None: a tensor that got no gradient in a step still moves by its momentum, as published.
        for tensor in self.watch:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            else:
                tensor.grad.zero_()

    def _guard(self, it: int, loss: float) -> None:
        finite = torch.stack([torch.isfinite(t).all() for t in self.watch]).all() if self.watch else torch.tensor(True)
        if not math.isfinite(loss) or not bool(finite):
            what = "the synthetic set became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
            raise NonFiniteError(
                f"{what} in iteration {it + 1}; the last good checkpoint is kept\n  {self.matcher.advice}"
            )

    def _count_skipped(self, it: int, tally: _Tally, loss: float) -> None:
        self.skipped = self.skipped + 1 if tally.skipped and tally.skipped == tally.updates else 0
        if self.skipped >= _MOST_SKIPPED:
            raise NonFiniteError(
                f"{self.skipped} iterations in a row, up to iteration {it + 1}, made no update, because the loss "
                f"({loss:.4g}) or its gradient was too large or not finite; the last good checkpoint is kept\n"
                f"  {self.matcher.advice}"
            )

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that outlives an iteration; there is no generator state to keep."""
        state = {f"param.{k}": v for k, v in self.ctx.param.state_dict().items()}
        state |= {f"matcher.{k}": v for k, v in self.matcher.state_dict().items()}
        for number, objective in enumerate(self.objectives):
            state |= {f"aux.{number}.{k}": v for k, v in objective.state_dict().items()}
        if self.skipped:
            state["engine.skipped"] = torch.tensor(self.skipped)
        return state | self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""
        device = self.ctx.device
        self.ctx.param.load_state_dict(_strip(state, "param.", device))
        self.matcher.load_state_dict(_strip(state, "matcher.", device))
        for number, objective in enumerate(self.objectives):
            objective.load_state_dict(_strip(state, f"aux.{number}.", device))
        self.optimizer.load_state_dict(state)
        self.skipped = int(state.get("engine.skipped", torch.tensor(0)))


def _strip(state: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.to(device) for k, v in state.items() if k.startswith(prefix)}


def estimate_chunk(bytes_per_image: int, images_per_class: int, classes: int, budget: int) -> int:
    """How many classes a chunk fit into `budget` bytes; at least one.

    Args:
        bytes_per_image: Activations that one synthetic image keeps alive until its loss is differentiated.
        images_per_class: Synthetic images a class.
        classes: Number of classes.
        budget: Bytes that may be used.
    """
    return max(1, min(classes, budget // max(1, bytes_per_image * images_per_class)))
