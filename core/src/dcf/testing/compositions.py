"""Trying out a composition: one real outer iteration on tiny data, and the file it leads to."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dcf.compositions import Status
from dcf.errors import UsageError
from dcf.testing.fakes import NETWORK, fake_data

if TYPE_CHECKING:
    from dcf.data.real import RealData
    from dcf.session import Session

__all__ = ["try_composition"]

#: Budget in plain images a class: enough for what shares bases or decoders between images.
_IPC = 4


def try_composition(
    matcher: str, param: str, augmenter: str, data: RealData | None = None, ipc: int = _IPC
) -> tuple[Status, str]:
    """Run one outer iteration of a composition, as a run would, and save and load the set.

    Args:
        matcher: Spec.
        param: Spec, or specs of a stack.
        augmenter: Spec.
        data: Real data; a few images of two classes by default.
        ipc: Budget in plain images a class.

    Returns:
        `RUNS`, or `IMPOSSIBLE` and the reason with which the run is refused before it starts.

    Raises:
        AssertionError: When it neither runs nor is refused: nothing has changed that was to be learned, something is
            not finite, or the file holds another set.
    """
    try:
        session = _session(matcher, param, augmenter, data or fake_data(train=12), ipc)
    except UsageError as error:
        return Status.IMPOSSIBLE, " ".join(str(error).split())
    session.engine.prepare()
    session.initialise()
    before = _state(session)
    losses: list[float] = []
    session.engine.run(0, 1, lambda progress: losses.append(progress.loss))
    after = _state(session)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in after.values()):
        raise AssertionError("the set is not finite after one iteration")
    if not math.isnan(losses[0]) and all(torch.equal(before[name], tensor) for name, tensor in after.items()):
        raise AssertionError("one iteration changed nothing")
    _require_same_from_file(session)
    return Status.RUNS, ""


def _session(matcher: str, param: str, augmenter: str, data: RealData, ipc: int) -> Session:
    from dcf.resolve import resolve
    from dcf.run import prepare
    from dcf.session import Session

    size = {"ipc": ipc, "iterations": 1, "device": "cpu", "evaluate": False}
    request = resolve(
        {"matcher": matcher, "param": param, "augment": augmenter, "network": NETWORK, "data": data, **size}
    )
    prepared = prepare(request)
    return Session(prepared.config, prepared.data, prepared.matcher, prepared.objects)


def _state(session: Session) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in session.param.state_dict().items()}


def _require_same_from_file(session: Session) -> None:
    from dcf.synthetic import load

    made = session.result()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "set.safetensors"
        made.save(file)
        images, labels = load(file).tensors()
    ours = made.tensors()
    if not (torch.equal(images, ours.x) and torch.equal(labels, ours.y)):
        raise AssertionError("the set that is read from its file is another one")
