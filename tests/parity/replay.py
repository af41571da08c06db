"""dcf's own objects, fed with what was recorded instead of what they would draw.

`RecordedContext` stands in for the run: matchers ask it for real images, networks, augmentation and training as
they ask any context, and get the recorded batches, weights, draws and orders. `drive` then runs a matcher through
the engine and notes each loss and each gradient as the optimiser saw it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tests.parity.case import Case, ParityError
from torch import Tensor

from dcf.augmenter import Augmenter, NoAugmentation
from dcf.build import create
from dcf.components import Kind
from dcf.context import Chunk, Context
from dcf.engine import Engine
from dcf.matcher import Matcher
from dcf.networks.base import NetworkState
from dcf.networks.names import from_published_names, published_spec
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.space import ValueSpace
from dcf.training import Schedule, train
from dcf.types import Batch, DataSpec, Step

__all__ = [
    "RecordedContext",
    "Replay",
    "augmenter",
    "buffers",
    "class_major",
    "data_spec",
    "draws",
    "drive",
    "network",
    "numbered",
    "parameters",
    "pixels",
]

#: Values that one row of a draw has, for operations that need two.
_COLUMNS = {"crop": 2, "cutout": 2, "scale": 2}


def data_spec(case: Case) -> DataSpec:
    """What the images of the case's network look like."""
    net = case.net
    height, width = net["im_size"]
    classes = tuple(map(str, range(net["num_classes"])))
    return DataSpec(net["channel"], height, width, classes, ValueSpace.unit(net["channel"]))


# --- networks ---------------------------------------------------------------------------------------------------


def network(case: Case, prefix: str = "net") -> NetworkState:
    """The case's network in training mode, with the weights `prefix/*` and the buffers `buf/*`."""
    factory = create(Kind.NETWORK, published_spec(case.net))
    state = NetworkState(factory.create(data_spec(case), 0).module.to(case.dtype))
    with torch.no_grad():
        _fill(state.params, _own_names(case, "params"), case.group(prefix))
        if buf := case.group("buf"):
            _fill(state.buffers, _own_names(case, "buffers"), buf, partly=True)
    return state


def parameters(case: Case, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors by parameter name as `prefix/NNN`, numbered as the case numbers them."""
    return numbered(prefix, [tensors[name] for name in _own_names(case, "params")])


def buffers(case: Case, state: NetworkState) -> dict[str, Tensor]:
    """The buffers of a network as `out/buf/NNN`, numbered as the case numbers them; a copy."""
    return numbered("out/buf", [state.buffers[name].clone() for name in _own_names(case, "buffers")])


def numbered(prefix: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """`prefix/000`, `prefix/001`, ..."""
    return {f"{prefix}/{number:03d}": tensor for number, tensor in enumerate(tensors)}


def _own_names(case: Case, what: str) -> list[str]:
    return from_published_names(case.net.get(what, []), case.net["arch"])


def _fill(own: dict[str, Tensor], names: list[str], given: dict[str, Tensor], partly: bool = False) -> None:
    """Copy weights by name; every one must fit, and all must be there unless `partly`."""
    unknown, missing = set(names) - set(own), set() if partly else set(own) - set(names)
    if unknown or missing or len(names) != len(given):
        odd = ", ".join(sorted(unknown | missing)) or f"{len(names)} names for {len(given)} tensors"
        raise ParityError(f"the case's tensors are not those of the network: {odd}")
    for name, tensor in zip(names, given.values(), strict=True):
        if own[name].shape != tensor.shape:
            raise ParityError(f"expected '{name}' of {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
        own[name].copy_(tensor)


# --- augmentation -------------------------------------------------------------------------------------------------


def augmenter(case: Case) -> Augmenter:
    """The case's augmentation, or none."""
    if not case.meta.get("augment"):
        return NoAugmentation()
    from dcf_dsa.augment import DSA

    return DSA(DSA.Config(cutout=case.hyper.get("ratio_cutout", 0.5)))


def draws(case: Case) -> list[Any]:
    """The recorded draws, one an augmentation call."""
    calls = case.meta.get("augment") or []
    return [[(op, rows(op, case[f"aug/{k:03d}/{i:02d}"])) for i, op in enumerate(ops)] for k, ops in enumerate(calls)]


def rows(op: str, values: Tensor) -> Tensor:
    """One row an image, or one for all, also where a single row was stored without its axis."""
    return values.reshape(-1, _COLUMNS[op]) if op in _COLUMNS else values.reshape(-1)


# --- the synthetic set --------------------------------------------------------------------------------------------


def class_major(case: Case, items: int) -> Tensor:
    """`(items,)` class of each of `items` synthetic images, equally many a class."""
    classes = case.hyper.get("num_classes", case.net["num_classes"])
    if items % classes:
        raise ParityError(f"expected equally many synthetic images in {classes} classes, got {items} images")
    return torch.arange(classes).repeat_interleave(items // classes)


def pixels(case: Case) -> Parameterization:
    """The synthetic images `syn`, stored as they are."""
    images = case["syn"]
    param = Pixels()
    param.allocate(data_spec(case), class_major(case, len(images)))
    param.to(case.dtype)
    param.absorb(images)
    return param


# --- the run --------------------------------------------------------------------------------------------------------


class RecordedContext(Context):
    """A context that draws nothing.

    Args:
        case: Where everything comes from.
        param: The synthetic set.
        class_chunk: Classes a chunk, at most; all by default.
    """

    def __init__(self, case: Case, param: Parameterization, class_chunk: int | None = None) -> None:
        spec = data_spec(case)
        data: Any = SimpleNamespace(spec=spec)
        networks: Any = None  # nothing is initialised here
        super().__init__(data, param, networks, augmenter(case), 0, class_chunk or spec.num_classes)
        self.case = case
        self.net = network(case)
        self.draws = draws(case)

    @property
    def device(self) -> torch.device:
        """The CPU: cases are about numbers, not devices."""
        return torch.device("cpu")

    def chunks(self) -> Iterator[Chunk]:
        """As ever, but apart where classes have different numbers of real images, too."""
        parts = [part for chunk in super().chunks() for part in self._alike(chunk.classes)]
        for number, part in enumerate(parts, 1):
            yield Chunk(part, number == len(parts))

    def real(self, classes: Tensor, n: int, *stream: str | int) -> Tensor:
        """The recorded batches: of one matching step where the case has several."""
        if stream[:1] == ("bn",):
            return self.case["bn_real"][None]  # one row: only the joint batch matters
        batches = self._batches(int(stream[1]) if len(stream) > 1 else 0)
        return torch.stack([batches[c] for c in classes.tolist()])

    def siamese(self, classes: Tensor, real: Tensor, synthetic: Tensor, *stream: str | int) -> tuple[Tensor, Tensor]:
        """The recorded draw of each class."""
        if self.augmenter.is_identity:
            return real, synthetic
        chosen = [self.draws[c] for c in classes.tolist()]
        return self.augmenter.apply_classes(real, chosen), self.augmenter.apply_classes(synthetic, chosen)

    def network(self, *stream: str | int) -> NetworkState:
        """The recorded network."""
        return self.net

    def train(self, net: NetworkState, epochs: int, lr: float, batch: int, *stream: str | int) -> None:
        """Plain SGD on the synthetic set as it stands, in the recorded order."""
        order = self.case["order"][int(stream[0])]
        with torch.no_grad():
            copy = self.param.batch(torch.arange(len(self.param.view_class)))
        train(
            net,
            lambda index: Batch(copy.x[index], copy.y[index]),
            lambda epoch: order[epoch],
            Schedule.constant(lr, epochs),
            batch=batch,
            momentum=self.case.hyper.get("momentum_net", 0.0),
            weight_decay=self.case.hyper.get("weight_decay_net", 0.0),
        )

    def _batches(self, step: int) -> dict[int, Tensor]:
        found = self.case.group("real") or self.case.group(f"real/{step:03d}")
        return {int(c): images for c, images in found.items()}

    def _alike(self, classes: Tensor) -> Iterator[Tensor]:
        counts = {c: len(images) for c, images in self._batches(0).items()}
        for count in dict.fromkeys(counts[c] for c in classes.tolist()):
            yield torch.tensor([c for c in classes.tolist() if counts[c] == count])


@dataclass
class Replay:
    """What a matcher did.

    Attributes:
        losses: One an update of the synthetic set, summed over the chunks of classes.
        gradients: At each update, one a learned tensor.
    """

    losses: list[Tensor] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)


def _note_losses(matcher: Matcher, replay: Replay) -> None:
    """Let `replay` have the losses of a matcher as they pass on to the engine."""
    outer = matcher.outer

    def noted(ctx: Context, it: int) -> Iterator[Step]:
        parts: list[Tensor] = []
        for step in outer(ctx, it):
            if step.loss is not None:
                parts.append(step.loss.detach())
            if step.update:
                replay.losses.append(torch.stack(parts).sum())
                parts = []
            yield step

    matcher.outer = noted


def drive(ctx: Context, matcher: Matcher, lr: float = 0.0, momentum: float = 0.0) -> Replay:
    """One outer iteration of a matcher, run by the engine.

    Args:
        ctx: The run.
        matcher: What to run.
        lr: Step size of the synthetic set.
        momentum: Likewise.
    """
    replay = Replay()
    _note_losses(matcher, replay)
    engine = Engine(ctx, matcher, lr, momentum)
    move = engine.optimizer.step

    def noted() -> None:
        replay.gradients.append([tensor.grad.clone() for tensor in engine.watch if tensor.grad is not None])
        move()

    engine.optimizer.step = noted  # type: ignore[method-assign]
    engine.iterate(0)
    return replay
