"""The sides of the unroll benchmark: one image gradient through T training steps, computed in several ways.

All of them start from the same weights, visit the same images and end in the same loss, the squared distance of the
final weights from given ones over that of the first weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNet
from dcf.unroll import Mode, unroll

__all__ = ["SHAPE", "Gradients", "Problem", "sides"]

SHAPE = (3, 32, 32)
CLASSES = 10
WIDTH = 128
#: Depth of the network, as of the published runs at this size.
DEPTH = 3

#: Image gradient, step-size gradient.
Gradients = tuple[Tensor, Tensor]


class Problem:
    """Random images in the shape of CIFAR-10, a start, a target.

    Args:
        steps: Training steps T.
        batch: Images a step, out of as many.
        dtype: Of everything.
    """

    def __init__(self, steps: int, batch: int, dtype: torch.dtype = torch.float32) -> None:
        draws = torch.Generator().manual_seed(0)
        self.steps = steps
        self.images = torch.randn(batch, *SHAPE, generator=draws).to(dtype)
        self.labels = torch.arange(batch) % CLASSES
        self.order = [torch.randperm(batch, generator=draws) for _ in range(steps)]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = ConvNet(SHAPE, CLASSES, WIDTH, DEPTH)
        start = {name: p.detach() for name, p in network.named_parameters()}
        # What some hundred steps away from the start may look like: a tenth of the spread of each weight.
        noise = {name: 0.1 * float(p.std(correction=0)) for name, p in start.items()}
        target = {name: p + noise[name] * torch.randn(p.shape, generator=draws) for name, p in start.items()}
        self.start = {name: p.to(dtype) for name, p in start.items()}
        self.target = {name: p.to(dtype) for name, p in target.items()}

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Fresh images and step size that require gradients."""
        return self.images.clone().requires_grad_(), self.images.new_tensor(0.01).requires_grad_()


def sides() -> dict[str, Callable[[Problem], Callable[[], Gradients]]]:
    """Makers of what is timed, by name; "published" is the one that the others are compared with."""
    return {"published": published, **{mode: unrolled(mode) for mode in get_args(Mode)}}


def unrolled(mode: str) -> Callable[[Problem], Callable[[], Gradients]]:
    """One image gradient by `dcf.unroll`."""

    def make(problem: Problem) -> Callable[[], Gradients]:
        net = NetworkState(ConvNet(SHAPE, CLASSES, WIDTH, DEPTH))
        start, target = problem.start, problem.target
        scale = sum((start[k] - target[k]).square().sum() for k in start)

        def step() -> Gradients:
            images, lr = problem.leaves()

            def loss(weights: Any, s: int) -> Tensor:
                index = problem.order[s]
                return F.cross_entropy(net(images[index], weights), problem.labels[index])

            final = unroll(loss, start, lr.expand(problem.steps), [images], mode=cast("Mode", mode))
            distance = torch.stack([(final[k] - target[k]).square().sum() for k in start]).sum()
            torch.autograd.backward(distance / scale, inputs=[images, lr])
            return cast("Gradients", (images.grad, lr.grad))

        return step

    return make


class FlatNetwork(nn.Module):
    """A network whose weights are cut out of one vector and put in place before each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(DEPTH):
            channels = SHAPE[0] if block == 0 else WIDTH
            norm = nn.GroupNorm(WIDTH, WIDTH)
            layers += [nn.Conv2d(channels, WIDTH, 3, padding=1), norm, nn.ReLU(inplace=True), nn.AvgPool2d(2, 2)]
        side = SHAPE[1] // 2**DEPTH
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH * side * side, CLASSES))
        self.slots = [(m, n, p.shape) for m in self.layers.modules() for n, p in m.named_parameters(recurse=False)]
        for module, name, _ in self.slots:
            delattr(module, name)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Logits of `(N, C, H, W)` images under the weights in `vector`."""
        parts = vector.split([shape.numel() for _, _, shape in self.slots])
        for (module, name, shape), part in zip(self.slots, parts, strict=True):
            setattr(module, name, part.view(shape))
        return cast("Tensor", self.layers(x))


def published(problem: Problem) -> Callable[[], Gradients]:
    """One image gradient in the way of the published programs: a flat vector, and the graph of all steps at once."""
    net = FlatNetwork()
    start, target = (torch.cat([p.flatten() for p in w.values()]) for w in (problem.start, problem.target))

    def step() -> Gradients:
        images, lr = problem.leaves()
        weights = [start.clone().requires_grad_()]
        for index in problem.order:
            loss = F.cross_entropy(net(images[index], weights[-1]), problem.labels[index])
            (gradient,) = torch.autograd.grad(loss, weights[-1], create_graph=True)
            weights.append(weights[-1] - lr * gradient)
        distance = F.mse_loss(weights[-1], target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
        distance.backward()
        return cast("Gradients", (images.grad, lr.grad))

    return step
