"""The published code, run from checkouts: its networks, distances, augmentation, epochs.

Its scripts are one function each and cannot be called in pieces. So the order of a step is written down here, from
the algorithms of the papers, and everything that computes is called in the checkout.

What has to be mended in memory for it to be imported today: it takes `rotate` from a module that SciPy has removed, and
imports packages that it needs for other things; stand-ins are put in their place while it is imported, and are never
called. Nothing in a checkout is changed.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.benchmarks.cases import (
    BATCH_TRAIN,
    CLASSES,
    LR_NET,
    PARTS,
    SHAPE,
    STRATEGY,
    Case,
    Shared,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dcf.data.real import RealData

__all__ = ["CHECKOUTS", "Published", "checkout", "fingerprint", "load"]

#: The published repositories, the files that are used of each in the order of their import, and what these import that
#: is not used.
CHECKOUTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "dc": ("VICO-UoE/DatasetCondensation", ("networks", "utils"), ()),
    "dcc": ("Saehyung-Lee/DCC", ("networks", "utils"), ()),
    "mtt": ("GeorgeCazenavette/mtt-distillation", ("networks", "reparam_module", "utils"), ("kornia", "tqdm")),
    "idc": (
        "snu-mllab/Efficient-Dataset-Condensation",
        ("models/convnet", "misc/augment", "condense"),
        ("data", "train", "test", "misc.utils"),
    ),
}

_ROTATE = "scipy.ndimage.interpolation"


def checkout(folder: Path, name: str) -> Path | None:
    """Where a checkout lies: in `folder/NAME`, or for "dc" in `folder` itself; None where there is none."""
    places = [folder / name, folder] if name == "dc" else [folder / name]
    return next((p for p in places if all((p / f"{file}.py").is_file() for file in CHECKOUTS[name][1])), None)


def load(path: Path, name: str) -> SimpleNamespace:
    """Import the published functions from a checkout, leaving `sys.modules` as it was.

    Returns:
        The modules by the last part of their names.
    """
    _, files, unused = CHECKOUTS[name]
    modules = [file.replace("/", ".") for file in files]
    parents = {module.partition(".")[0] for module in modules if "." in module}
    with _restored_modules([*modules, *parents, *unused, _ROTATE]):
        for stand_in in (*parents, *unused, _ROTATE):
            sys.modules[stand_in] = _StandIn(stand_in)
        return SimpleNamespace(
            **{m.rpartition(".")[2]: _import(path / f"{f}.py", m) for f, m in zip(files, modules, strict=True)}
        )


def fingerprint(path: Path, name: str) -> str:
    """Sha256 of the files that are used, so that a result says what it was compared with."""
    return hashlib.sha256(b"".join((path / f"{file}.py").read_bytes() for file in CHECKOUTS[name][1])).hexdigest()


class _StandIn(ModuleType):
    """A module that has every name, for lines that only import."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _import(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"cannot import '{file}'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _restored_modules(names: list[str]) -> Iterator[None]:
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


class Published:
    """One case, computed by the published functions of gradient or distribution matching.

    Args:
        modules: What `load` returned.
        case: The case.
        data: The real images; kept normalised in fp32, as the published scripts do.
    """

    def __init__(self, modules: SimpleNamespace, case: Case, data: RealData) -> None:
        self.code = modules
        self.case = case
        self.device = data.train.device
        self.real = torch.cat([batch.x for batch in data.train.batches(4096)])
        self.test = list(data.test.batches(BATCH_TRAIN))
        self.indices = [data.train.of_class(c).cpu().numpy() for c in range(CLASSES)]
        self.synthetic = self._noise().requires_grad_()
        self.labels = torch.arange(CLASSES, device=self.device).repeat_interleave(case.ipc)
        self.optimizer = torch.optim.SGD([self.synthetic], lr=case.lr, momentum=0.5)
        self.criterion = nn.CrossEntropyLoss().to(self.device)
        self._seed = 0
        self.prepare()

    def prepare(self) -> None:
        """What a method needs beside."""
        self.options = SimpleNamespace(
            device=self.device,
            dis_metric="ours",
            dsa=self.case.augmented,
            dsa_strategy=STRATEGY,
            dsa_param=self.code.utils.ParamDiffAug(),
            dc_aug_param=None,
            lr_net=LR_NET,
            batch_train=BATCH_TRAIN,
            epoch_eval_train=self.case.epochs,
        )

    # --- the two things a side can do --------------------------------------------------------------------------

    def step(self) -> None:
        """Do the work of the case once, with the update where there is one."""
        if self.case.part == "evaluation":
            self._evaluate()
        elif self.case.part == "training":
            self._train(self._network())
        else:
            self._match(self._network())

    def parts(self) -> Iterator[None]:
        """One outer iteration, part by part: a matching step, its update, and the training that follows."""
        net = self._network()
        for step in range(PARTS):
            if step:
                self._train(net)
            self._match(net)
            yield

    def once(self, shared: Shared) -> dict[str, Tensor]:
        """What the case computes from given input: loss and image gradient, or the trained weights."""
        kept = dict(self.__dict__)
        try:
            return self._once(shared)
        finally:  # what is timed afterwards goes on with its own images
            self.__dict__.update(kept)

    def _once(self, shared: Shared) -> dict[str, Tensor]:
        net = self._network().to(shared.dtype)
        self.synthetic = shared.synthetic.clone().requires_grad_()
        with torch.no_grad():
            for own, given in zip(net.parameters(), self.arranged(shared.weights), strict=True):
                own.copy_(given)
        if self.case.part != "match":
            self._train(net)
            return {"weights": torch.cat([p.detach().flatten() for p in net.parameters()])}
        loss = self.shared_loss(net, shared)
        (gradient,) = torch.autograd.grad(loss, [self.synthetic])
        return {"loss": loss.detach(), "gradient": gradient}

    # --- pieces ------------------------------------------------------------------------------------------------

    def arranged(self, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Weights in order of the layers, in the order in which the network has them."""
        return weights

    def shared_loss(self, net: Any, shared: Shared) -> Tensor:
        """The loss of a matching step on given input."""
        return self.loss(net, lambda c: shared.real[c], lambda c: None if shared.seeds is None else shared.seeds[c])

    def _noise(self) -> Tensor:
        return torch.randn(CLASSES * self.case.ipc, *SHAPE, device=self.device)

    def _match(self, net: Any) -> None:
        loss = self.loss(net, self._sample, lambda c: self._next_seed() if self.case.augmented else None)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()  # the scripts sum up the loss of every step on the host

    def _network(self) -> Any:
        # It seeds the global generator from the clock; that must not reach the other side.
        with torch.random.fork_rng(devices=[]), redirect_stdout(StringIO()):
            net = self.code.utils.get_network("ConvNet", SHAPE[0], CLASSES, SHAPE[1:]).to(self.device)
        net.train()
        return net

    def _sample(self, c: int) -> Tensor:
        return self.real[np.random.permutation(self.indices[c])[: self.case.batch_real]]

    def _next_seed(self) -> int:
        self._seed = (self._seed + 7919) % 100_000
        return self._seed

    def loss(self, net: Any, real_of: Callable[[int], Tensor], seed_of: Callable[[int], int | None]) -> Tensor:
        """The sum over classes of the distances of a matching step."""
        one = self._embedding_loss if self.case.matcher == "dm" else self._gradient_loss
        if self.case.matcher == "dm":
            for parameter in net.parameters():
                parameter.requires_grad = False
        total = torch.zeros((), device=self.device)
        for c in range(CLASSES):
            real, syn = real_of(c), self.synthetic[c * self.case.ipc : (c + 1) * self.case.ipc]
            seed = seed_of(c)
            if seed is not None:
                real, syn = self._augment(real, seed), self._augment(syn, seed)
            total = total + one(net, c, real, syn)
        return total

    def _augment(self, images: Tensor, seed: int) -> Tensor:
        augment = self.code.utils.DiffAugment
        return augment(images, STRATEGY, seed=seed, param=self.options.dsa_param)  # type: ignore[no-any-return]

    def _gradient_loss(self, net: Any, c: int, real: Tensor, syn: Tensor) -> Tensor:
        weights = list(net.parameters())
        wanted = torch.autograd.grad(self.criterion(net(real), self.label(c, real)), weights)
        wanted = tuple(g.detach().clone() for g in wanted)
        found = torch.autograd.grad(self.criterion(net(syn), self.label(c, syn)), weights, create_graph=True)
        return self.code.utils.match_loss(found, wanted, self.options)  # type: ignore[no-any-return]

    def label(self, c: int, images: Tensor) -> Tensor:
        """Class c for each of the images."""
        return torch.full((len(images),), c, dtype=torch.long, device=self.device)

    def _embedding_loss(self, net: Any, c: int, real: Tensor, syn: Tensor) -> Tensor:
        # As in the scripts: the graph of the real side is recorded up to its detached output.
        wanted, found = net.embed(real).detach(), net.embed(syn)
        return (wanted.mean(dim=0) - found.mean(dim=0)).square().sum()

    def _train(self, net: Any) -> None:
        images = copy.deepcopy(self.synthetic.detach())
        loader = DataLoader(self.code.utils.TensorDataset(images, self.labels), batch_size=BATCH_TRAIN, shuffle=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR_NET)
        epoch = self.code.utils.epoch
        for _ in range(self.case.epochs):
            epoch("train", loader, net, optimizer, self.criterion, self.options, aug=self.case.augmented)

    def _evaluate(self) -> None:
        """Network after network."""
        for number in range(self.case.networks):
            images = copy.deepcopy(self.synthetic.detach())
            with redirect_stdout(StringIO()):
                self.code.utils.evaluate_synset(number, self._network(), images, self.labels, self.test, self.options)
