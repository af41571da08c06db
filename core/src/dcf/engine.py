"""The engine: runs a matcher's generator, moves the synthetic set, checkpoints, stops and resumes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from dcf.auxiliary import require_sound
from dcf.context import Context
from dcf.distributed import ALONE, World
from dcf.errors import NonFiniteError, UsageError
from dcf.matcher import Matcher
from dcf.optimizer import Optimizer, require_groups, settle
from dcf.parameterization import Parameterization
from dcf.runconfig import GroupSettings
from dcf.types import ParamGroup, Step

__all__ = ["Engine", "Progress", "check_composition"]

log = logging.getLogger(__name__)

#: Iterations in a row that may go without an update before a run is given up; of a shorter run, all of them.
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
    """Losses of one iteration, kept on the device until they are read.

    Attributes:
        replicas: Draws that every update is averaged over.
        world: Processes that the losses of the iteration are spread over.
    """

    replicas: int = 1
    world: World = ALONE
    loss: Tensor | None = None
    aux: Tensor | None = None
    updates: int = 0
    skipped: int = 0
    logs: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, steps: Sequence[Step]) -> None:
        """Count what the draws of one update, or of a part of one, came to."""
        for step in steps:
            if step.loss is not None:
                loss = step.loss.detach() / self.replicas
                self.loss = loss if self.loss is None else self.loss + loss
            for name, value in step.log.items():
                self.logs.setdefault(name, []).append(value.detach())
        self.updates += steps[0].update

    def add_aux(self, loss: Tensor) -> None:
        self.aux = loss.detach() if self.aux is None else self.aux + loss.detach()

    def read(self) -> tuple[float, dict[str, float]]:
        if self.loss is not None:
            self.world.sum_([self.loss])
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
        soft = "let labels be learned (--labels soft), or " if "labels" in matcher.reads and param.drives else ""
        raise UsageError(
            f"{type(matcher).__name__} teaches {reads}, but {type(param).__name__} learns {drives}: "
            f"nothing would change; {soft}choose another matcher or parameterization"
        )


class Engine:
    """Drives one run.

    Args:
        ctx: The run as the matcher sees it.
        matcher: A fresh one; `prepare` prepares it.
        lr: Step size of groups that have none of their own, before the matcher's factor.
        momentum: Likewise.
        clip: Largest L2 norm of all gradients together; None for no clipping.
        optim: Settings that win over those of the groups of these names.
        replicas: Independent draws of an iteration, such as networks, that every update is averaged over. Those of
            one iteration run in step; where several processes work on a matcher that does not divide classes, they
            divide the replicas.

    Raises:
        UsageError: When nothing could be learned, `optim` names no group, or there is not enough work for the
            processes.
    """

    def __init__(
        self,
        ctx: Context,
        matcher: Matcher,
        lr: float,
        momentum: float,
        clip: float | None = None,
        optim: Mapping[str, GroupSettings] | None = None,
        replicas: int = 1,
    ) -> None:
        check_composition(matcher, ctx.param)
        self.ctx = ctx
        self.world = ctx.world
        ctx.sharded = matcher.shards and self.world.size > 1
        _check_work(ctx, replicas)
        self.replicas = replicas
        numbers = range(replicas) if ctx.sharded else self.world.share(range(replicas))
        #: The run as each draw of this process sees it.
        self.views = [ctx if replicas == 1 else ctx.replica(number) for number in numbers]
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
        usual = replace(matcher.defaults, lr=lr * matcher.lr_factor(ctx), momentum=momentum)
        self.optimizer = Optimizer([settle(group, usual, optim or {}) for group in self.groups])
        require_groups(self.groups, optim or {})
        #: Iterations in a row without any update, because of `Step.limit`.
        self.skipped = 0
        self._prepared = False

    # --- running ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Let the matcher do what comes before the first iteration and before `load_state_dict`; once only.

        Raises:
            UsageError: When the matcher remembers more than what is learned and updates are averaged over draws.
        """
        if not self._prepared:
            self.matcher.prepare(self.ctx)
            self._prepared = True
            self._require_no_memory()

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
            NonFiniteError: When a loss or the set became NaN or infinite, or too many iterations made no update.
        """
        self.prepare()
        began = time.monotonic()
        for it in range(start, iterations):
            tally = self.iterate(it)
            loss, logs = tally.read()
            self._guard(it, loss if tally.loss is not None and not tally.skipped else 0.0)
            self._count_skipped(it, iterations, tally, loss)
            on_iteration(Progress(it + 1, iterations, loss, logs, time.monotonic() - began))
            if self.world.any(should_stop()):
                return it + 1
        return iterations

    def iterate(self, it: int, go_on: Callable[[], bool] = lambda: True) -> _Tally:
        """One outer iteration.

        Args:
            it: Its number.
            go_on: Asked after each update; False ends the iteration there, unfinished.
        """
        for ctx in {id(c): c for c in (self.ctx, *self.views)}.values():
            ctx.begin(it)
        with torch.no_grad():
            self.ctx.param.begin_()
        self.optimizer.begin(it)
        self._zero()
        tally = _Tally(self.replicas, self.world)
        for steps in self._rounds(it):
            update = steps[0].update
            if update and self._within(steps):
                self._update(tally)
            elif update:
                tally.skipped += 1
                self._zero()
            tally.add(steps)
            if update and not go_on():
                break
        return tally

    def _rounds(self, it: int) -> Iterator[list[Step]]:
        """The next step of every draw, each differentiated before the one of the next draw is made."""
        draws = [self._steps(ctx, it) for ctx in self.views]
        while True:
            steps = []
            for draw in draws:
                step = next(draw, None)
                if step is not None and not step.accumulated:
                    self._backward(step)
                steps.append(step)
            found = [step for step in steps if step is not None]
            if not found:
                return
            if len(found) < len(steps) or len({step.update for step in found}) > 1:
                raise RuntimeError(f"{type(self.matcher).__name__}.outer yielded other steps for other draws")
            yield found

    def _within(self, steps: Sequence[Step]) -> bool:
        """Whether each loss is at most its limit, and everything finite; the same answer in every process."""
        if all(step.limit is None for step in steps):
            return True
        asked = [torch.isfinite(t.grad).all() for t in self.watch if t.grad is not None]
        for loss, limit in ((step.loss.detach(), step.limit) for step in steps if step.loss is not None):
            asked += [torch.isfinite(loss), loss <= (math.inf if limit is None else limit)]
        # Read once: each answer that is asked for alone would hold up a GPU.
        return not self.world.any(not bool(torch.stack(asked).all()))

    def _steps(self, ctx: Context, it: int) -> Iterator[Step]:
        for step in self.matcher.outer(ctx, it):
            if not torch.is_grad_enabled() or torch.is_autocast_enabled(self.ctx.device.type):
                raise RuntimeError(
                    f"{type(self.matcher).__name__}.outer yielded inside no_grad or autocast; "
                    "compute there and yield outside"
                )
            if step.accumulated and self.replicas > 1:
                raise RuntimeError(
                    f"{type(self.matcher).__name__}.outer wrote gradients itself, which cannot be averaged"
                )
            yield step

    def _backward(self, step: Step) -> None:
        if step.loss is None:
            raise RuntimeError(f"{type(self.matcher).__name__}.outer yielded no loss and accumulated=False")
        # Only into what is learned: a plain backward() would also fill the network's gradients.
        loss = step.loss if self.replicas == 1 else step.loss / self.replicas
        torch.autograd.backward(loss, inputs=self.watch)

    def _update(self, tally: _Tally) -> None:
        # Before the set's own objectives, which every process computes alike.
        self.world.sum_([t.grad for t in self.watch if t.grad is not None])
        objectives = [o for o in self.objectives if o.every == "update" or self.ctx.update == 0]
        for objective in objectives:
            loss = objective.loss(self.ctx)
            torch.autograd.backward(loss, inputs=self.watch)
            tally.add_aux(loss)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.watch, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            self.ctx.param.project_()
            self.matcher.project_()
        for objective in objectives:
            objective.after_update(self.ctx)
        for ctx in {id(c): c for c in (self.ctx, *self.views)}.values():
            ctx.update += 1
        self._zero()

    def _zero(self) -> None:
        # Zero, not None: a tensor that got no gradient in a step still moves by its momentum, as published.
        for tensor in self.watch:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            else:
                tensor.grad.zero_()

    def _guard(self, it: int, loss: float) -> None:
        """Stop before a checkpoint could be written that nobody can use.

        Raises:
            NonFiniteError: When the loss or what is learned is not finite, or what an objective trains diverged.
        """
        finite = torch.stack([torch.isfinite(t).all() for t in self.watch]).all() if self.watch else torch.tensor(True)
        if not math.isfinite(loss) or not bool(finite):
            what = "the synthetic set became NaN or infinite" if math.isfinite(loss) else f"the loss became {loss}"
            kept = f"in iteration {it + 1}; the last good checkpoint is kept\n  {self.matcher.advice}"
            raise NonFiniteError(f"{what} {kept}")
        require_sound(self.objectives, it, self.matcher.advice)  # last: it may be the set that led them astray

    def _count_skipped(self, it: int, iterations: int, tally: _Tally, loss: float) -> None:
        self.skipped = self.skipped + 1 if tally.skipped and tally.skipped == tally.updates else 0
        if self.skipped >= min(_MOST_SKIPPED, iterations):
            many = f"{self.skipped} iterations in a row, up to" if self.skipped > 1 else "all there is,"
            raise NonFiniteError(
                f"{many} iteration {it + 1}, made no update, because the loss ({loss:.4g}) or its gradient was too "
                f"large or not finite; the last good checkpoint is kept\n  {self.matcher.advice}"
            )

    def _require_no_memory(self) -> None:
        learned = {t.data_ptr() for t in self.watch}
        if self.replicas > 1 and any(t.data_ptr() not in learned for t in self.matcher.state_dict().values()):
            raise UsageError(
                f"{type(self.matcher).__name__} remembers more from one iteration to the next than what it learns, so "
                "its updates cannot be averaged over several draws; run it in one process, with --set replicas=1"
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


def _check_work(ctx: Context, replicas: int) -> None:
    """Refuse more processes than there are parts of the work.

    Raises:
        UsageError: With the largest number that works.
    """
    classes = len(torch.unique(ctx.param.view_class))
    parts, what = (classes, "classes") if ctx.sharded else (replicas, "replicas, each with draws of its own")
    if ctx.world.size > parts:
        more = "" if ctx.sharded else f", or start it with --set replicas={ctx.world.size}"
        raise UsageError(
            f"{ctx.world.size} processes divide {parts} {what}: some would have nothing to do; "
            f"start at most {parts}: torchrun --nproc-per-node={parts}{more}"
        )


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
