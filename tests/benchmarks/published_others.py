"""The published sides of contrastive gradient matching, trajectory matching and IDC; see `published`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import Any

import torch
from tests.benchmarks.cases import CLASSES, SHAPE, STRATEGY, STRATEGY_IDC, STUDENT_STEPS, Case, Shared
from tests.benchmarks.published import Published
from torch import Tensor
from torch.nn import functional as F

from dcf.data.real import RealData

__all__ = ["published_side"]


def published_side(modules: SimpleNamespace, case: Case, data: RealData) -> Published:
    """The published side of a case."""
    return {"dc": Published, "dcc": PublishedDCC, "mtt": PublishedMTT, "idc": PublishedIDC}[case.checkout](
        modules, case, data
    )


class PublishedDCC(Published):
    """Contrastive gradient matching: one distance, of the gradients averaged over classes."""

    def loss(self, net: Any, real_of: Callable[[int], Tensor], seed_of: Callable[[int], int | None]) -> Tensor:
        """The distance of a matching step."""
        weights = list(net.parameters())
        wanted: list[Any] = [0.0] * len(weights)
        for c in range(CLASSES):
            real = real_of(c)
            one = torch.autograd.grad(self.criterion(net(real), self.label(c, real)), weights)
            wanted = [g.detach().clone() / float(CLASSES) + sofar for g, sofar in zip(one, wanted, strict=True)]
        loss = self.criterion(net(self.synthetic), self.labels)
        found = torch.autograd.grad(loss, weights, create_graph=True)
        return self.code.utils.match_loss(found, wanted, self.options)  # type: ignore[no-any-return]


class PublishedMTT(Published):
    """Trajectory matching: a student whose weights are one vector, and the graph of all of its steps."""

    def prepare(self) -> None:
        """An expert, the step size that is learned, and the student."""
        self.param = self.code.utils.ParamDiffAug()
        self.start = _flat(self._network().parameters())
        self.target = self.start + 0.01 * torch.randn_like(self.start)
        self.lr = torch.tensor(0.01, device=self.device, requires_grad=True)
        self.optimizer_lr = torch.optim.SGD([self.lr], lr=1e-7, momentum=0.5)

    def shared_loss(self, net: Any, shared: Shared) -> Tensor:
        """The loss of a student on given input, without augmentation."""
        self.lr = torch.tensor(0.01, dtype=shared.dtype, requires_grad=True)
        return self._trajectory(net, _flat(shared.weights), _flat(shared.target), augmented=False)

    def _match(self, net: Any) -> None:
        loss = self._trajectory(net, self.start, self.target, augmented=True)
        self.optimizer.zero_grad()
        self.optimizer_lr.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.optimizer_lr.step()

    def _trajectory(self, net: Any, start: Tensor, target: Tensor, augmented: bool) -> Tensor:
        student = self.code.reparam_module.ReparamModule(net)
        weights = [start.clone().requires_grad_()]
        for _ in range(STUDENT_STEPS):
            order = torch.randperm(len(self.synthetic))
            images, labels = self.synthetic[order], self.labels[order]
            if augmented:
                images = self.code.utils.DiffAugment(images, STRATEGY, param=self.param)
            loss = self.criterion(student(images, flat_param=weights[-1]), labels)
            (gradient,) = torch.autograd.grad(loss, weights[-1], create_graph=True)
            weights.append(weights[-1] - self.lr * gradient)
        count = len(start)
        ended = F.mse_loss(weights[-1], target, reduction="sum") / count
        return ended / (F.mse_loss(start, target, reduction="sum") / count)


class PublishedIDC(Published):
    """IDC: gradients by squared differences, several images out of one, an update after every class."""

    def prepare(self) -> None:
        """Its synthetic set and its augmentation."""
        settings = SimpleNamespace(ipc=self.case.ipc, factor=2, decode_type="single")
        with redirect_stdout(StringIO()):
            self.set = self.code.condense.Synthesizer(settings, CLASSES, *SHAPE, device=self.device)
        self.synthetic = self.set.data
        self.optimizer = torch.optim.SGD(self.set.parameters(), lr=self.case.lr, momentum=0.5)
        self.augment = self.code.augment.DiffAug(strategy=STRATEGY_IDC, batch=True)
        self.options = SimpleNamespace(match="grad", metric="mse", bias=False, fc=False)

    def _network(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            net = self.code.convnet.ConvNet(CLASSES, net_width=128, im_size=SHAPE[1:]).to(self.device)
        net.train()
        return net

    def arranged(self, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """All convolutions, all norms, the classifier; of our blocks, each has two tensors of both."""
        blocks = range(0, len(weights) - 2, 4)
        convolutions, norms = ([w for b in blocks for w in weights[b + at : b + at + 2]] for at in (0, 2))
        return (*convolutions, *norms, *weights[-2:])

    def _noise(self) -> Tensor:
        return torch.rand(CLASSES * self.case.ipc, *SHAPE, device=self.device)

    def shared_loss(self, net: Any, shared: Shared) -> Tensor:
        """The sum of the losses of all classes on given input, without augmentation."""
        kept, self.set.data = self.set.data, self.synthetic
        losses = [self._class_loss(net, c, shared.real[c], lambda images: images) for c in range(CLASSES)]
        self.set.data = kept
        return torch.stack(losses).sum()

    def _match(self, net: Any) -> None:
        self.set.data.data = torch.clamp(self.set.data.data, min=0.0, max=1.0)
        for c in range(CLASSES):
            loss = self._class_loss(net, c, self._sample(c), self.augment)
            loss.item()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def _class_loss(self, net: Any, c: int, real: Tensor, augment: Callable[[Tensor], Tensor]) -> Tensor:
        images, labels = self.set.sample(c)
        both = augment(torch.cat([real, images]))
        n = len(real)
        match = self.code.condense.matchloss
        return match(self.options, both[:n], both[n:], self.label(c, real), labels, net)  # type: ignore[no-any-return]


def _flat(weights: Any) -> Tensor:
    return torch.cat([w.detach().reshape(-1) for w in weights])
