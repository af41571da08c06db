"""The engine: runs a matcher's generator, moves the synthetic set, checkpoints, stops and resumes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dcf.context import Context
from dcf.errors import NonFiniteError, UsageError
from dcf.matcher import Matcher
from dcf.parameterization import Parameterization
from dcf.types import ParamGroup, Step

__all__ = ["Engine", "Progress", "check_composition"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the engine reports after an outer iteration.

    Attributes:
        it: Iterations done.
        iterations: Iterations in all.
        loss: Mean over the iteration's updates of the loss summed over chunks; NaN where it was not read.
        log: Further scalars of the matcher, averaged over the iteration.
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
    updates: int = 0
    logs: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        if step.loss is not None:
            loss = step.loss.detach()
            self.loss = loss if self.loss is None else self.loss + loss
        self.updates += step.update
        for name, value in step.log.items():
            self.logs.setdefault(name, []).append(value.detach())

    def read(self) -> tuple[float, dict[str, float]]:
        loss = float(self.loss) / max(1, self.updates) if self.loss is not None else float("nan")
        return loss, {name: float(torch.stack(values).float().mean()) for name, values in self.logs.items()}


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
        matcher: Prepared or not; `run` prepares it.
        lr: Step size of groups that have none of their own.
        momentum: Likewise.
        clip: Largest L2 norm of all gradients together; None for no clipping.
    """

    def __init__(self, ctx: Context, matcher: Matcher, lr: float, momentum: float, clip: float | None = None) -> None:
        check_composition(matcher, ctx.param)
        self.ctx = ctx
        self.matcher = matcher
        self.clip = clip
        self.groups: list[ParamGroup] = [*ctx.param.param_groups(), *matcher.param_groups()]
        self.watch: list[Tensor] = [p for group in self.groups for p in group.params]
        self.optimizer = torch.optim.SGD(
            [
                {
                    "params": list(g.params),
                    "lr": lr if g.lr is None else g.lr,
                    "momentum": momentum if g.momentum is None else g.momentum,
                }
                for g in self.groups
            ],
            lr=lr,
        )

    # --- running ---------------------------------------------------------------------------------

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
        self.matcher.prepare(self.ctx)
        began = time.monotonic()
        for it in range(start, iterations):
            tally = self.iterate(it)
            loss, logs = tally.read()
            self._guard(it, loss if tally.loss is not None else 0.0)
            on_iteration(Progress(it + 1, iterations, loss, logs, time.monotonic() - began))
            if should_stop():
                return it + 1
        return iterations

    def iterate(self, it: int) -> _Tally:
        """One outer iteration."""
        self.ctx.begin(it)
        self._zero()
        tally = _Tally()
        for step in self._steps(it):
            if not step.accumulated:
                self._backward(step)
            if step.update:
                self._update()
            tally.add(step)
        return tally

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

    def _update(self) -> None:
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.watch, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            self.ctx.param.project_()
            self.matcher.project_()
        self._zero()

    def _zero(self) -> None:
        # Zero, not None: a tensor that got no gradient in a step still moves by its momentum, as published.
        for tensor in self.watch:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            else:
                tensor.grad.zero_()

    def _guard(self, it: int, loss: float) -> None:
        finite = torch.stack([torch.isfinite(t).all() for t in self.watch]).all()
        if loss != loss or loss in (float("inf"), float("-inf")) or not bool(finite):
            what = (
                f"the loss became {loss}"
                if loss != loss or abs(loss) == float("inf")
                else "the synthetic set became NaN or infinite"
            )
            raise NonFiniteError(
                f"{what} in iteration {it + 1}; the last good checkpoint is kept\n"
                "  lower the step size (--lr) or clip the gradients (--clip), and start again"
            )

    # --- state -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that outlives an iteration; there is no generator state to keep."""
        state = {f"param.{k}": v for k, v in self.ctx.param.state_dict().items()}
        state |= {f"matcher.{k}": v for k, v in self.matcher.state_dict().items()}
        for number, tensor in enumerate(self.watch):
            buffer = self.optimizer.state.get(tensor, {}).get("momentum_buffer")
            if buffer is not None:
                state[f"momentum.{number}"] = buffer
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in place."""
        device = self.ctx.device
        self.ctx.param.load_state_dict(_strip(state, "param."))
        self.matcher.load_state_dict({k: v.to(device) for k, v in _strip(state, "matcher.").items()})
        for number, tensor in enumerate(self.watch):
            if (buffer := state.get(f"momentum.{number}")) is not None:
                self.optimizer.state[tensor]["momentum_buffer"] = buffer.to(tensor.device).clone()


def _strip(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def estimate_chunk(bytes_per_image: int, images_per_class: int, classes: Sequence[int] | int, budget: int) -> int:
    """How many classes a chunk fit into `budget` bytes; at least one.

    Args:
        bytes_per_image: Activations that one synthetic image keeps alive until its loss is differentiated.
        images_per_class: Synthetic images a class.
        classes: Number of classes.
        budget: Bytes that may be used.
    """
    count = classes if isinstance(classes, int) else len(classes)
    return max(1, min(count, budget // max(1, bytes_per_image * images_per_class)))
