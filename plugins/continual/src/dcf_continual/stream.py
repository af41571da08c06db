"""Runs a stream: step by step, network by network; what is done is not done again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import dcf
from dcf.build import create
from dcf.compiled import allowed, expected, noticed
from dcf.data import RealData
from dcf.evaluation import EvalContext
from dcf.files import atomic_write, read_tensors, write_tensors
from dcf.recorded import load_data
from dcf.run import Listener
from dcf.runtime import environment, precision_of, precision_text, select_device
from dcf.storage import content_hash
from dcf_continual.learners import Hits, Place, count_hits, from_scratch, going_on
from dcf_continual.memory import condensed, memories, require_alike_steps, require_keepable
from dcf_continual.model import FILE, MemoryFacts, NetRun, OrderResult, Stream, StreamRow, row_of
from dcf_continual.options import StreamSettings
from dcf_continual.plan import Group, points_of, slug, stream_groups

__all__ = ["Runner", "run_stream"]

#: Raised whenever anything changes that can change a number.
_VERSION: Final = 1


def run_stream(settings: StreamSettings, root: Path, listener: Listener | None = None) -> Stream:
    """Run a stream to its end, and write its file after every order of every method.

    Args:
        settings: Of the stream.
        root: Its directory; what is done in it is not done again.
        listener: Told of progress.

    Raises:
        DcfError: When something is missing or does not fit.
        KeyboardInterrupt: When the user stopped it; the same call goes on from there.
    """
    listener = listener or Listener()
    device = select_device(settings.device)
    with _locked(root), precision_of(settings.precision), allowed(settings.precision, device):
        listener.stage(f"loading {', '.join(settings.data)}")
        data = [load_data(text) for text in settings.data]
        _require_alike(data, settings)
        return Runner(settings, root, data, listener).run()


def _require_alike(data: Sequence[RealData], settings: StreamSettings) -> None:
    """Make sure that the datasets of a sequence can share a memory and a network.

    Raises:
        DataError: When they cannot, or have no test images.
    """
    for one, text in zip(data, settings.data, strict=True):
        if not len(one.test):
            raise dcf.DataError(f"the data '{one.id}' have no test images to evaluate on")
        if one.spec != data[0].spec:
            raise dcf.DataError(
                f"'{text}' and '{settings.data[0]}' differ in classes, shape or value space of their images, so they "
                "cannot share a memory: give them the same size and channels, and norm=unit"
            )


def _require_tested(groups: Sequence[Group], data: Sequence[RealData]) -> None:
    """Make sure that there are test images of each step.

    Raises:
        DataError: When of one there are none, so that it has no accuracy.
    """
    for step, group in enumerate(groups, start=1):
        if not sum(int(data[group.data].test.counts[c]) for c in group.numbers):
            names = ", ".join(data[group.data].spec.classes[c] for c in group.numbers)
            raise dcf.DataError(f"the data '{data[group.data].id}' have no test images of step {step}: {names}")


@dataclass
class _Unit:
    """One method over one order."""

    method: int
    label: str
    seed: int
    groups: list[Group]
    memories: list[dcf.SyntheticSet]
    hashes: list[str]


class Runner:
    """The parts of a run.

    Args:
        settings: Of the stream.
        root: Its directory.
        data: Its datasets, on the CPU.
        listener: Told of progress.
    """

    def __init__(self, settings: StreamSettings, root: Path, data: Sequence[RealData], listener: Listener) -> None:
        self.settings = settings
        self.root = root
        self.data = data
        self.listener = listener
        device = select_device(settings.device)
        self.real = [one.to(device) for one in data]
        self.points = points_of(settings, settings.data[0], "ipc=1")
        self.seconds = {"condense": 0.0, "learn": 0.0}
        self.specs: dict[str, tuple[dict[str, str], int]] = {}
        self.precisions = set[str]()

    def run(self) -> Stream:
        """Order after order, method after method."""
        groups = stream_groups(self.settings, self.settings.seeds[0], self.data[0].spec.classes)
        for seed in self.settings.seeds:
            _require_tested(stream_groups(self.settings, seed, self.data[0].spec.classes), self.data)
        require_keepable(self.settings, groups, self.data)
        done: dict[str, list[OrderResult]] = {point.label: [] for point in self.points}
        stream = self._stream(done)
        for seed in self.settings.seeds:
            for method, point in enumerate(self.points):
                unit = self._unit(method, point.label, seed)
                done[point.label].append(self._order(unit))
                stream = self._stream(done)
                stream.write(self.root / FILE)
        return stream

    # --- memory ----------------------------------------------------------------------------------

    def _unit(self, method: int, label: str, seed: int) -> _Unit:
        """Fill the memory, step by step."""
        start = time.perf_counter()
        groups = stream_groups(self.settings, seed, self.data[0].spec.classes)
        files, seen = [], set[int]()
        for step, group in enumerate(groups):
            seen |= set(group.numbers)
            self.listener.stage(f"{label}, order {seed}, step {step + 1} of {len(groups)}: condensing")
            count = len(seen) * (step + 1 if self.settings.sequence else 1)
            files.append(condensed(self.settings, method, group, count, seed, self.data, self.root, self.listener))
            require_alike_steps(label, files)  # after each step: the others would be in vain
        found = memories(self.settings, files, groups, self.data)
        for step, memory in enumerate(found):
            # Also where there is one: another stream in this directory may have left it.
            memory.save(self.root / "memory" / f"{slug(label)}-o{seed}-t{step}.safetensors")
        one = found[0]
        iterations = int(dcf.load(files[0][0]).metadata.get("run", {}).get("iterations", 0))
        specs = {k: str(v) for k, v in one.config.items() if k in ("matcher", "param", "augment", "init")}
        self.specs.setdefault(label, (specs, iterations))
        self.seconds["condense"] += time.perf_counter() - start
        return _Unit(method, label, seed, groups, found, [content_hash(m.stored_tensors()) for m in found])

    # --- learning --------------------------------------------------------------------------------

    def _order(self, unit: _Unit) -> OrderResult:
        start = time.perf_counter()
        nets = range(self.settings.nets)
        with expected(len(self.settings.seeds) * len(nets)):
            results = [self._chain(unit, net) for net in nets]
        self.seconds["learn"] += time.perf_counter() - start
        self.precisions |= {one["precision"] for chain in results for one in chain if one.get("precision")}
        names = self.data[0].spec.classes
        return OrderResult(
            seed=unit.seed,
            groups=tuple(tuple(names[c] for c in group.numbers) for group in unit.groups),
            counts=tuple(results[0][-1]["counts"]),
            memory=tuple(
                MemoryFacts(bytes=m.storage().nbytes, views=len(m), tensors=h)
                for m, h in zip(unit.memories, unit.hashes, strict=True)
            ),
            runs=tuple(_net_run(net, chain) for net, chain in zip(nets, results, strict=True)),
        )

    def _chain(self, unit: _Unit, net: int) -> list[dict[str, Any]]:
        """What one network came to after each step."""
        found: list[dict[str, Any]] = []
        state: dcf.NetworkState | None = None
        for step in range(len(unit.groups)):
            place = Place(step, net)
            stem = self.root / "results" / f"{slug(unit.label)}-o{unit.seed}-n{net}-t{step}"
            key = self._key(unit, place, found[-1]["key"] if found else "")
            known = self._known(stem, key)
            if known is None:
                self.listener.stage(
                    f"{unit.label}, order {unit.seed}, step {step + 1} of {len(unit.groups)}: network {net + 1}"
                )
                if state is None and step and self.settings.learner == "replay":
                    state = self._restored(unit, step - 1, net)
                known, state = self._learned(unit, place, state)
                known["key"] = key
                if self.settings.learner == "replay":
                    write_tensors(stem.with_suffix(".safetensors"), {**state.params, **state.buffers}, {"key": key})
                atomic_write(stem.with_suffix(".json"), json.dumps(known))
            else:
                state = None
            found.append(known)
        return found

    def _known(self, stem: Path, key: str) -> dict[str, Any] | None:
        """What was found before, and can be gone on from."""
        known = _known(stem.with_suffix(".json"), key)
        if known is None or self.settings.learner != "replay":
            return known
        try:  # a network of another stream in this directory, or a damaged one, is no beginning of the next step
            _, told = read_tensors(stem.with_suffix(".safetensors"))
        except dcf.DcfError:
            return None
        return known if told.get("key") == key else None

    def _learned(
        self, unit: _Unit, place: Place, before: dcf.NetworkState | None
    ) -> tuple[dict[str, Any], dcf.NetworkState]:
        """Train one network after one step, and test it once."""
        memory, groups = unit.memories[place.step], unit.groups[: place.step + 1]
        memory.param.to(self.real[0].train.device)
        ctx = EvalContext(self.real[0], self.settings.rules, unit.seed, networks=self.settings.nets)
        order = _arrived(groups)
        outputs = None if self.settings.learner == "gdumb" else order
        with noticed() as usage:
            if outputs is None:
                state, trained = from_scratch(memory, ctx, self.settings, place)
            else:
                state, trained = going_on(memory, ctx, self.settings, place, order, before)
        hits = [count_hits(state, self.real[g.data].test, outputs, order, g.numbers) for g in groups]
        loss = math.nan if trained.loss is None else float(trained.loss)
        facts = {
            "loss": loss if math.isfinite(loss) else None, "steps": trained.steps,
            "precision": precision_text(ctx.place, usage.kernels),
        }  # fmt: skip
        self._tell(unit, place, hits)
        return {**facts, "counts": [h.count for h in hits], "hits": [dict(h.correct) for h in hits]}, state

    def _restored(self, unit: _Unit, step: int, net: int) -> dcf.NetworkState:
        """The network after a step that was done before."""
        file = self.root / "results" / f"{slug(unit.label)}-o{unit.seed}-n{net}-t{step}.safetensors"
        values, _ = read_tensors(file)
        names = [self.data[0].spec.classes[c] for c in _arrived(unit.groups[: step + 1])]
        spec = replace(self.data[0].spec, classes=tuple(names))
        state: dcf.NetworkState = create(dcf.Kind.NETWORK, self.settings.network).create(
            spec, 0, "restored", device=self.real[0].train.device
        )
        state.load({k: v.to(self.real[0].train.device) for k, v in values.items()})
        return state

    def _key(self, unit: _Unit, place: Place, before: str) -> str:
        """Everything that decides the outcome of one training, as a hash."""
        s = self.settings
        replay = [s.distil, s.temperature, before] if s.learner == "replay" else []
        values = [
            _VERSION, s.rules.id, s.rules.config_hash, s.network, s.learner, replay, s.precision,
            [(g.data, g.numbers) for g in unit.groups[: place.step + 1]], unit.seed, place, unit.hashes[place.step],
            [one.checksum for one in self.data], self.real[0].train.device.type,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def _tell(self, unit: _Unit, place: Place, hits: Sequence[Hits]) -> None:
        total = sum(h.count for h in hits)
        accuracy = sum(h.correct[self.settings.head] for h in hits) / total
        what = f"{unit.label}, order {unit.seed}, network {place.net + 1}"
        self.listener.evaluated(what, place.step + 1, len(unit.groups), accuracy)

    # --- result ----------------------------------------------------------------------------------

    def _stream(self, done: Mapping[str, Sequence[OrderResult]]) -> Stream:
        rows: list[StreamRow] = [row_of(label, *self.specs[label], orders) for label, orders in done.items() if orders]
        s = self.settings
        groups = stream_groups(s, s.seeds[0], self.data[0].spec.classes)
        seen = [len({c for g in groups[: t + 1] for c in g.numbers}) for t in range(len(groups))]
        return Stream(
            id=s.id,
            head=s.head,
            settings=s.model_dump(mode="json"),
            training=s.rules.model_dump(mode="json"),
            data=tuple({"id": one.id, "checksum": one.checksum} for one in self.data),
            classes_seen=tuple(seen),
            environment=environment(self.real[0].train.device, " and ".join(sorted(self.precisions))),
            rows=tuple(rows),
            timing=dict(self.seconds),
        )


def _arrived(groups: Sequence[Group]) -> list[int]:
    """Class numbers in order of their first arrival."""
    return list(dict.fromkeys(c for group in groups for c in group.numbers))


def _known(file: Path, key: str) -> dict[str, Any] | None:
    """What was found before under the same key."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _net_run(net: int, chain: Sequence[Mapping[str, Any]]) -> NetRun:
    heads = list(chain[0]["hits"][0])
    return NetRun(
        net=net,
        hits={head: tuple(tuple(h[head] for h in one["hits"]) for one in chain) for head in heads},
        train_loss=tuple(one["loss"] for one in chain),
        optimiser_steps=tuple(one["steps"] for one in chain),
    )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Keep a second process out of the directory; the lock goes with the process, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise dcf.RunError(f"cannot write in '{root}': {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise dcf.RunError(f"another stream is running in '{root}'     (another place: --out DIR)") from None
        yield
    finally:
        os.close(handle)
