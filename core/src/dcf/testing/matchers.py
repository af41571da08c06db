"""Checks of matchers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dcf.data.real import RealData
from dcf.engine import Engine
from dcf.files import read_tensors, write_tensors
from dcf.networks.base import NetworkState
from dcf.pixels import Pixels
from dcf.testing.fakes import TinyFactory, fake_context, fake_data, filled
from dcf.testing.subject import Check, CheckSkipped, Subject, require, same
from dcf.types import DataSpec, Step

__all__ = ["CHECKS", "exercise"]


class _Watched(TinyFactory):
    """Remembers the networks that it made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[NetworkState] = []

    def create(self, spec: DataSpec, seed: int, *stream: str | int, device: torch.device | str = "cpu") -> NetworkState:
        """A fresh network, remembered."""
        state = super().create(spec, seed, *stream, device=device)
        self.made.append(state)
        return state


def engine_of(
    subject: Subject,
    data: RealData | None = None,
    seed: int = 0,
    class_chunk: int = 10,
    init: Tensor | None = None,
    items: int = 1,
) -> Engine:
    """A run of the matcher over plain pixels, small steps and a network that is quick."""
    matcher = subject.make()
    if "images" not in matcher.reads:
        raise CheckSkipped("it does not teach images")
    data = fake_data() if data is None else data
    param = filled(Pixels(), data, items, init)
    ctx = fake_context(param, data, _Watched(), seed=seed, class_chunk=class_chunk)
    return Engine(ctx, matcher, lr=0.01, momentum=0.5)


def steps(engine: Engine) -> Iterator[Step]:
    """The first outer iteration, step by step; nothing is differentiated or moved."""
    engine.prepare()
    engine.ctx.begin(0)
    yield from engine.matcher.outer(engine.ctx, 0)


def first_update(engine: Engine) -> list[Step]:
    """The steps up to the first update of the set.

    Raises:
        CheckSkipped: When there is none.
    """
    found: list[Step] = []
    iteration = steps(engine)
    for step in iteration:
        found.append(step)
        if step.update:
            iteration.close()  # type: ignore[attr-defined]
            return found
    if not found:
        raise CheckSkipped("it yields nothing")
    require(False, "its last step does not update the set: what was accumulated is lost")
    return found


def losses(engine: Engine) -> Tensor:
    """Loss of the first update, summed over its steps."""
    found = [step.loss for step in first_update(engine) if step.loss is not None]
    if not found:
        raise CheckSkipped("it writes its gradients itself and yields no loss")
    return torch.stack(found).sum()


def gradient(engine: Engine) -> Tensor:
    """Gradient of the first update in the synthetic images, summed over its steps."""
    (images,) = engine.ctx.param.parameters()
    total = torch.zeros_like(images)
    for step in first_update(engine):
        if step.accumulated or step.loss is None:
            continue
        (grad,) = torch.autograd.grad(step.loss, images, retain_graph=True, allow_unused=True)
        total += grad if grad is not None else 0
    return total if images.grad is None else total + images.grad


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Two iterations: the set and all that outlives them."""
    engine = engine_of(subject, fake_data(seed=seed).to(device), seed)
    engine.run(0, 2)
    return list(engine.state_dict().values())


def check_loss_is_a_finite_scalar(subject: Subject) -> None:
    """Every step of an iteration has one finite number as its loss, or has written the gradients itself."""
    engine = engine_of(subject)
    found = 0
    for step in steps(engine):
        found += 1
        if step.loss is None:
            require(step.accumulated, "a step has neither a loss nor accumulated=True")
            continue
        require(step.loss.ndim == 0, f"expected a scalar loss, got shape {tuple(step.loss.shape)}")
        require(bool(torch.isfinite(step.loss)), f"the loss is {float(step.loss.detach())}")
        if not step.accumulated:
            require(step.loss.requires_grad, "the loss does not depend on what is learned")
    if not found:
        raise CheckSkipped("it yields nothing")


def check_gradient_reaches_the_images(subject: Subject) -> None:
    """The first update has a finite gradient, not zero, in the synthetic images."""
    total = gradient(engine_of(subject))
    require(bool(torch.isfinite(total).all()), "the gradient in the synthetic images is NaN or infinite")
    require(bool(total.abs().sum() > 0), "no gradient reaches the synthetic images")


def check_yield_leaves_networks_alone(subject: Subject) -> None:
    """A yielded loss can be differentiated, and doing so neither changes weights nor leaves gradients in them."""
    engine = engine_of(subject)
    factory = engine.ctx.networks
    require(isinstance(factory, _Watched), "the networks of the run were replaced")
    made = factory.made if isinstance(factory, _Watched) else []
    found = 0
    for step in steps(engine):
        found += 1
        before = [w.detach().clone() for net in made for w in net.parameters()]
        if step.loss is not None and not step.accumulated:
            torch.autograd.backward(step.loss, inputs=engine.watch)
        weights = [w for net in made for w in net.parameters()]
        require(same(before, [w.detach() for w in weights]), "differentiating the loss changes a network's weights")
        require(all(w.grad is None for w in weights), "a network's weights hold gradients when a loss is yielded")
    if not found:
        raise CheckSkipped("it yields nothing")


def check_loss_is_lower_for_the_real_images(subject: Subject) -> None:
    """A synthetic set that is the real one has a lower loss than noise."""
    data = fake_data(train=4)
    real = data.train.images(torch.arange(8))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    perfect = float(losses(engine_of(subject, data, init=real, items=4)).detach())
    random = float(losses(engine_of(subject, data, init=noise, items=4)).detach())
    require(perfect < random, f"the loss of the real images is {perfect:.4g}, that of noise {random:.4g}")


def check_classes_may_be_chunked(subject: Subject) -> None:
    """Working through the classes one by one or all together gives the same update, within rounding."""
    one, many = (gradient(engine_of(subject, fake_data(classes=3), class_chunk=chunk)) for chunk in (1, 3))
    error = float((one - many).norm() / many.norm().clamp(min=1e-12))
    require(error < 1e-3, f"classes one by one and all together differ by {error:.2g} of the update")


def check_resuming_changes_nothing(subject: Subject) -> None:
    """Two iterations at once, or one, a checkpoint read into new objects, and another one: the same, bit for bit."""
    whole, first, second = (engine_of(subject) for _ in range(3))
    whole.run(0, 2)
    first.run(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        write_tensors(path, first.state_dict(), {})
        state, _ = read_tensors(path)
    second.prepare()
    second.load_state_dict(state)
    second.run(1, 2)
    require(
        same(dict(whole.state_dict()), dict(second.state_dict())), "a resumed run differs from an uninterrupted one"
    )


def check_iterations_do_not_depend_on_each_other(subject: Subject) -> None:
    """What is drawn in an iteration is a function of its number: the same one twice gives the same loss."""
    first, second = (float(losses(engine_of(subject)).detach()) for _ in range(2))
    require(first == second, f"the first iteration has the loss {first}, and done again {second}")


def check_hints_are_json(subject: Subject) -> None:
    """What an evaluator must know goes into the file as JSON."""
    engine = engine_of(subject)
    engine.run(0, 1)
    hints = engine.matcher.hints()
    text = json.dumps(hints.to_json(), allow_nan=False)
    require(bool(text), "hints() is not JSON")


CHECKS: Sequence[Check] = (
    check_loss_is_a_finite_scalar,
    check_gradient_reaches_the_images,
    check_yield_leaves_networks_alone,
    check_loss_is_lower_for_the_real_images,
    check_classes_may_be_chunked,
    check_resuming_changes_nothing,
    check_iterations_do_not_depend_on_each_other,
    check_hints_are_json,
)
