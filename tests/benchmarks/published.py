"""The published code (VICO-UoE/DatasetCondensation), run from a checkout: its network, distance, augmentation, epoch.

Its scripts are one function each and cannot be called in pieces. So the order of a step is written down here, from
the algorithms of the papers, and everything that computes is called in the checkout.

What has to be mended in memory for it to be imported today: it takes `rotate` from a module that SciPy has removed;
a stand-in is put in its place while it is imported, and is never called. Nothing in the checkout is changed.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.benchmarks.cases import BATCH_REAL, BATCH_TRAIN, CLASSES, LR_NET, SHAPE, STRATEGY, Case, Shared
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dcf.data.real import RealData

__all__ = ["Published", "fingerprint", "load"]

_FILES = ("networks", "utils")


def load(path: Path) -> ModuleType:
    """Import the published functions from a checkout, leaving `sys.modules` as it was.

    Raises:
        FileNotFoundError: When `path` is no such checkout.
    """
    missing = [name for name in _FILES if not (path / f"{name}.py").is_file()]
    if missing:
        raise FileNotFoundError(f"'{path}' is no checkout of the published code: it has no {missing[0]}.py")
    with _restored_modules():
        # Tests of its own import lines: only the name has to exist.
        sys.modules["scipy.ndimage.interpolation"] = SimpleNamespace(rotate=None)  # type: ignore[assignment]
        modules = [_import(path / f"{name}.py", name) for name in _FILES]
    return modules[-1]


def fingerprint(path: Path) -> str:
    """Sha256 of the files that are used, so that a result says what it was compared with."""
    return hashlib.sha256(b"".join((path / f"{name}.py").read_bytes() for name in _FILES)).hexdigest()


def _import(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"cannot import '{file}'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _restored_modules() -> Iterator[None]:
    names = (*_FILES, "scipy.ndimage.interpolation")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


class Published:
    """One case, computed by the published functions.

    Args:
        modules: What `load` returned.
        case: The case.
        data: The real images; kept normalised in fp32, as the published scripts do.
    """

    def __init__(self, modules: ModuleType, case: Case, data: RealData) -> None:
        self.code = modules
        self.case = case
        self.device = data.train.device
        self.real = torch.cat([batch.x for batch in data.train.batches(4096)])
        self.indices = [data.train.of_class(c).cpu().numpy() for c in range(CLASSES)]
        self.synthetic = torch.randn(CLASSES * case.ipc, *SHAPE, device=self.device, requires_grad=True)
        self.labels = torch.arange(CLASSES, device=self.device).repeat_interleave(case.ipc)
        self.optimizer = torch.optim.SGD([self.synthetic], lr=case.lr, momentum=0.5)
        self.criterion = nn.CrossEntropyLoss().to(self.device)
        self.options = SimpleNamespace(
            device=self.device,
            dis_metric="ours",
            dsa=case.augmented,
            dsa_strategy=STRATEGY,
            dsa_param=modules.ParamDiffAug(),
            dc_aug_param=None,
        )
        self._seed = 0

    # --- the two things a side can do --------------------------------------------------------------------------

    def step(self) -> None:
        """Do the work of the case once, with the update where there is one."""
        net = self._network()
        if self.case.part == "training":
            self._train(net)
            return
        loss = self._loss(net, lambda c: self._sample(c), lambda c: self._next_seed())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()  # the scripts sum up the loss of every step on the host

    def once(self, shared: Shared) -> dict[str, Tensor]:
        """What the case computes from given input: loss and image gradient, or the trained weights."""
        net = self._network()
        with torch.no_grad():
            self.synthetic.copy_(shared.synthetic)
            for own, given in zip(net.parameters(), shared.weights, strict=True):
                own.copy_(given)
        if self.case.part == "training":
            self._train(net)
            return {"weights": torch.cat([p.detach().flatten() for p in net.parameters()])}
        loss = self._loss(net, lambda c: shared.real[c], lambda c: shared.seeds[c])
        (gradient,) = torch.autograd.grad(loss, [self.synthetic])
        return {"loss": loss.detach(), "gradient": gradient}

    # --- pieces ------------------------------------------------------------------------------------------------

    def _network(self) -> Any:
        # It seeds the global generator from the clock; that must not reach the other side.
        with torch.random.fork_rng(devices=[]), redirect_stdout(StringIO()):
            net = self.code.get_network("ConvNet", SHAPE[0], CLASSES, SHAPE[1:]).to(self.device)
        net.train()
        return net

    def _sample(self, c: int) -> Tensor:
        return self.real[np.random.permutation(self.indices[c])[:BATCH_REAL]]

    def _next_seed(self) -> int:
        self._seed = (self._seed + 7919) % 100_000
        return self._seed

    def _loss(self, net: Any, real_of: Any, seed_of: Any) -> Tensor:
        one = self._gradient_loss if self.case.part == "gradient" else self._embedding_loss
        if self.case.part == "embedding":
            for parameter in net.parameters():
                parameter.requires_grad = False
        total = torch.zeros((), device=self.device)
        for c in range(CLASSES):
            real, syn = real_of(c), self.synthetic[c * self.case.ipc : (c + 1) * self.case.ipc]
            if self.case.augmented:
                seed = seed_of(c)
                real, syn = self._augment(real, seed), self._augment(syn, seed)
            total = total + one(net, c, real, syn)
        return total

    def _augment(self, images: Tensor, seed: int) -> Tensor:
        return self.code.DiffAugment(images, STRATEGY, seed=seed, param=self.options.dsa_param)  # type: ignore[no-any-return]

    def _gradient_loss(self, net: Any, c: int, real: Tensor, syn: Tensor) -> Tensor:
        weights = list(net.parameters())
        wanted = torch.autograd.grad(self.criterion(net(real), self._label(c, real)), weights)
        wanted = tuple(g.detach().clone() for g in wanted)
        found = torch.autograd.grad(self.criterion(net(syn), self._label(c, syn)), weights, create_graph=True)
        return self.code.match_loss(found, wanted, self.options)  # type: ignore[no-any-return]

    def _label(self, c: int, images: Tensor) -> Tensor:
        return torch.full((len(images),), c, dtype=torch.long, device=self.device)

    def _embedding_loss(self, net: Any, c: int, real: Tensor, syn: Tensor) -> Tensor:
        # As in the scripts: the graph of the real side is recorded up to its detached output.
        wanted, found = net.embed(real).detach(), net.embed(syn)
        return (wanted.mean(dim=0) - found.mean(dim=0)).square().sum()

    def _train(self, net: Any) -> None:
        images = copy.deepcopy(self.synthetic.detach())
        loader = DataLoader(self.code.TensorDataset(images, self.labels), batch_size=BATCH_TRAIN, shuffle=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR_NET)
        for _ in range(self.case.epochs):
            self.code.epoch("train", loader, net, optimizer, self.criterion, self.options, aug=self.case.augmented)
