"""Training as a differentiable function: weights after T steps, with gradients for what the steps were made of.

Differentiating through training the plain way keeps the graph of every step. Here the default is the discrete adjoint:
steps are made without a graph, their weights are kept, and the way back rebuilds one step at a time. The gradients are
the same; memory is that of one step and of the weights (see docs/unroll.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dcf.errors import UsageError
from dcf.networks.base import NetworkState
from dcf.types import UnrollMode
from dcf.unroll._adjoint import sweep
from dcf.unroll._closure import repeatable
from dcf.unroll._sizes import StepSizes
from dcf.unroll._steps import Loss, Rule, StepKernel, record, walk
from dcf.unroll._training import train_on

__all__ = ["Loss", "Mode", "StepSizes", "stateless", "train_on", "unroll"]

#: How gradients are obtained; see `unroll`.
Mode: TypeAlias = UnrollMode


def unroll(
    loss: Loss,
    start: Mapping[str, Tensor],
    lrs: Tensor,
    inputs: Sequence[Tensor],
    *,
    momentum: float = 0.0,
    mode: Mode = "adjoint",
    keep: int | Literal["cpu"] = 1,
    kernel: StepKernel | None = None,
) -> dict[str, Tensor]:
    """Weights after T steps of SGD, differentiable in `start`, `lrs` and `inputs`.

    Step s is `v <- momentum v + grad loss(w, s)` and `w <- w - lrs[s] v`, from `v = 0`.

    Args:
        loss: The scalar training loss of step s at given weights. It must be pure, since it is computed more than once
            for a step: the same arguments give the same value, so random draws are made beforehand, and autocast, where
            wanted, is entered inside. A network with batch norms or dropout goes through `stateless`.
        start: Weights before the first step. Those that require gradients receive them; detached ones save a part of
            the first step on the way back.
        lrs: `(T,)` step sizes, constant or differentiable.
        inputs: Every tensor that `loss` closes over and that shall receive gradients, these very objects: leaves, or
            tensors computed beforehand, such as decoded images. None may be computed from another.
        momentum: Of SGD, without dampening.
        mode: "adjoint": exact, with the memory of one step and of the weights kept. "full": ordinary autograd, with the
            memory of all steps. "checkpoint": autograd that recomputes each step on the way back. "tesla": the adjoint
            without the Hessian term, as if the weights of every step were constants (Cui et al., ICML 2023); exact for
            one step only. Only "full" and "checkpoint" can be differentiated twice.
        keep: For "adjoint" and "tesla": keep the weights of every k-th step and recompute those between; "cpu" keeps
            all of them in main memory.
        kernel: A quicker way to the derivatives of the same loss, for all but "checkpoint"; "full" can be
            differentiated once with it. `train_on` gives one where there is one.

    Returns:
        The weights by name, in the order of `start`; without a graph where gradients are switched off.

    Raises:
        UsageError: For arguments that make no sense. In the modes "adjoint" and "tesla" also for an input that is
            computed from another, a loss that depends on a tensor that requires gradients and is not among `inputs`,
            and, on the way back, a second derivative. In all but "full", on the way back and on the CPU, for a loss
            that is another one when that of the first step is computed again.
    """
    inputs = _listed(inputs)
    _check(start, lrs, momentum, mode, keep)
    weights = list(start.values())
    loss = repeatable(loss) if mode == "checkpoint" else loss
    rule = Rule(loss, tuple(start), momentum, None if mode == "checkpoint" else kernel)
    lrs = lrs.to(weights[0].device)
    if not torch.is_grad_enabled():
        *_, (final, _) = walk(rule, weights, None, list(enumerate(lrs.unbind())))
    elif mode in ("full", "checkpoint"):
        final = record(rule, weights, lrs.unbind(), recompute=mode == "checkpoint")
    else:
        final = sweep(rule, weights, lrs, inputs, hessian=mode == "adjoint", keep=keep)
    return dict(zip(start, final, strict=True))


class Stateless:
    """A network as a pure function `(images, weights) -> logits`; see `stateless`."""

    def __init__(self, net: NetworkState) -> None:
        self.net = net
        self.drops = [layer for layer in net.module.modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Logits `(N, K)` of `(N, C, H, W)` images."""
        buffers = {name: buffer.clone() for name, buffer in self.net.buffers.items()}
        with _switched_off(self.drops):
            return functional_call(self.net.module, ({**weights}, buffers), (x,))  # type: ignore[no-any-return]


@contextmanager
def _switched_off(layers: Sequence[nn.Module]) -> Iterator[None]:
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode


def stateless(net: NetworkState) -> Stateless:
    """A network as a pure function, for the loss of an unrolled step.

    Called directly, batch norms in training mode move the running statistics of `net.buffers` each time a step is
    computed, so more than once for some modes. The weights and gradients do not depend on that; what is left in the
    buffers would. Dropout would draw anew each time, and the gradients would be wrong.

    Returns:
        `(images, weights) -> logits`, computed with copies of the present buffers, and without dropout.
    """
    return Stateless(net)


def _listed(inputs: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(inputs, Tensor):  # it would be taken for a list of its parts
        raise UsageError("unroll: expected inputs to be a list of tensors, got a tensor; write [x]")
    found = list(inputs)
    wrong = [type(x).__name__ for x in found if not isinstance(x, Tensor)]
    if wrong:
        raise UsageError(f"unroll: expected inputs to be a list of tensors, got a {wrong[0]} among them")
    return found


def _check(start: Mapping[str, Tensor], lrs: Tensor, momentum: float, mode: str, keep: int | str) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"unroll: expected the mode {', '.join(get_args(Mode))}, got '{mode}'")
    if keep != "cpu" and not (isinstance(keep, int) and keep >= 1):
        raise UsageError(f"unroll: expected keep to be a number of steps from 1, or 'cpu', got {keep!r}")
    if not isinstance(lrs, Tensor):
        raise UsageError(f"unroll: expected the step sizes as a tensor, (T,), got a {type(lrs).__name__}")
    if lrs.ndim != 1 or not len(lrs):
        raise UsageError(f"unroll: expected the step size of each step, (T,), got shape {tuple(lrs.shape)}")
    if not start:
        raise UsageError("unroll: expected weights to start from, got none")
    counts = [name for name, w in start.items() if not w.is_floating_point()]
    if counts:
        raise UsageError(f"unroll: expected weights alone to start from, got '{counts[0]}' of {start[counts[0]].dtype}")
    if not momentum >= 0:
        raise UsageError(f"unroll: expected a momentum from 0, got {momentum}")
