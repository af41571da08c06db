"""One condensation from configuration to finished set: build, initialise, run, checkpoint, resume."""

from __future__ import annotations

import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from dcf import compiled
from dcf.augmenter import Augmenter, ChainAugmenter
from dcf.build import create, create_stack, stacked, used_packages
from dcf.components import Kind
from dcf.context import Context
from dcf.data.real import RealData
from dcf.distributed import ALONE, World
from dcf.engine import Engine, Progress, estimate_chunk
from dcf.errors import NonFiniteError, RunError, UsageError
from dcf.estimate.memory import Machine
from dcf.estimate.model import DoesNotFitError
from dcf.matcher import Matcher
from dcf.metadata import format_of
from dcf.networks.base import NetworkFactory
from dcf.networks.preflight import preflight_double_backward
from dcf.nothing import Nothing
from dcf.parameterization import Parameterization
from dcf.planning import plan_items
from dcf.plausible import flaw
from dcf.runconfig import SPEC_ROLES, RunConfig
from dcf.rundir import RunDir
from dcf.runtime import environment, precision_text
from dcf.seeding import generator
from dcf.selection import select
from dcf.selector import Selector
from dcf.synthetic import SyntheticSet

__all__ = ["Session", "interruptible", "make_augmenter"]

log = logging.getLogger(__name__)

#: Memory that the graphs of one chunk of classes may take on a CPU, in bytes.
_CPU_GRAPH_BYTES = 2 * 2**30


def make_augmenter(what: Any, flag: str = "--augment") -> Augmenter:
    """An augmenter from a spec, a stack of specs, or an object."""
    parts = create_stack(Kind.AUGMENTER, what, flag)
    made: Augmenter = parts[0] if len(parts) == 1 else ChainAugmenter(parts)
    return made


@dataclass
class Interrupt:
    """Whether the user asked to stop."""

    asked: bool = False


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop after the iteration; a second one ends at once."""
    state = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if state.asked:
            raise KeyboardInterrupt
        state.asked = True
        log.warning("stopping after this iteration; once more to stop at once")

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Session:
    """The objects of one run.

    Args:
        config: The run.
        data: Its real data, on the run's device.
        matcher: Its matcher; made from the configuration where None.
        objects: Components that were given as objects, by role.
        world: Processes that work on the run together.
        resumed: Whether the run was begun before, so that what it decided then stands in `config`.
    """

    def __init__(
        self,
        config: RunConfig,
        data: RealData,
        matcher: Matcher | None = None,
        objects: Mapping[str, Any] | None = None,
        world: World = ALONE,
        resumed: bool = False,
    ) -> None:
        given = {role: getattr(config, role) for role in SPEC_ROLES} | dict(objects or {})
        self.config = config
        self.objects = dict(objects or {})
        self.data = data
        self.matcher: Matcher = matcher or create(Kind.MATCHER, given["matcher"])
        self.networks: NetworkFactory = create(Kind.NETWORK, given["network"])
        self.augmenter = make_augmenter(given["augment"])
        if not isinstance(self.matcher, Nothing):
            _require_for_matching(self.augmenter, config.augment)
        self.param: Parameterization = create_stack(Kind.PARAM, given["param"])[-1]
        self.selector: Selector = create(Kind.SELECTOR, given["init"])
        #: Whether compiled kernels computed anything in an iteration, before a resumption, too.
        self.usage = compiled.Usage()
        #: What is recorded of how the first images were chosen.
        self.selection: dict[str, Any] = {}
        self._allocate()
        self._preflight()
        chunk = self._class_chunk()
        self.ctx = Context(
            data, self.param, self.networks, self.augmenter, config.seed, chunk, config.iterations, self._plain_images()
        )
        self.ctx.world = world
        self.engine = Engine(
            self.ctx,
            self.matcher,
            config.lr,
            config.momentum,
            config.clip,
            config.optim,
            self._replicas(ALONE if resumed else world),
        )

    # --- building --------------------------------------------------------------------------------

    def _allocate(self) -> None:
        spec = self.data.spec
        budget = self.config.budget_of(math.prod(spec.shape), spec.num_classes)
        items = plan_items(self.param, spec, budget, self.config.store)
        self._require_room(items)
        item_class = torch.arange(spec.num_classes).repeat_interleave(items)
        self.param.allocate(spec, item_class)
        self.param.to(self.data.train.device)

    def _require_room(self, items: int) -> None:
        """Refuse a set that is itself larger than memory, before the system ends this process or another one for it.

        Raises:
            DoesNotFitError: With how many would fit. A GPU that is full says so itself.
        """
        room = Machine().available() if self.data.train.device.type == "cpu" else None
        needed = 2 * 4 * self.param.cost(self.data.spec, items)
        if room is None or needed <= room:
            return
        part = f"{max(1, room * 100 // needed)} % of it and less, as networks take memory, too"
        wanted = f"--ipc {self.config.ipc}" if self.config.budget is None else f"--budget {self.config.budget}"
        why = "available here; for the set and its gradients alone"
        raise DoesNotFitError(
            needed, room, why, [f"a smaller set (now {wanted}): {part}", "a machine with more memory"]
        )

    def _plain_images(self) -> int:
        """Plain images a class that the budget pays for."""
        spec = self.data.spec
        return self.config.budget_of(math.prod(spec.shape), spec.num_classes).plain_images

    def initialise(self) -> None:
        """Give the set its starting values; the matcher is prepared already."""
        images, self.selection = select(self.selector, self.data, self.param.view_class, self.config)
        self.param.absorb(images, generator(self.config.seed, "absorb"))
        self.param.initialise(self.ctx)
        self.matcher.initialise(self.ctx)

    def _preflight(self) -> None:
        if "double-backward" in self.matcher.needs and self.networks.needs_preflight:
            state = self.networks.create(self.data.spec, self.config.seed, "preflight", device=self.data.train.device)
            preflight_double_backward(state, self.data.spec)

    def _class_chunk(self) -> int:
        spec = self.data.spec
        if self.config.class_chunk != "auto":
            return min(self.config.class_chunk, spec.num_classes)
        device = self.data.train.device
        budget = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_GRAPH_BYTES
        views = math.ceil(len(self.param.view_class) / spec.num_classes)
        return estimate_chunk(self._bytes_per_image(), views, spec.num_classes, budget)

    def _replicas(self, world: World) -> int:
        if self.config.replicas == "auto":
            return 1 if self.matcher.shards else world.size
        return self.config.replicas

    def _bytes_per_image(self) -> int:
        """Bytes that one image's forward pass saves for the backward one, times four for the second-order graph."""
        net = self.networks.create(self.data.spec, self.config.seed, "measure")
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        images = torch.zeros(2, *self.data.spec.shape)
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            net(images)
        return max(1, 4 * (sum(sizes.values()) - weights) // 2)

    # --- running ---------------------------------------------------------------------------------

    def run(
        self,
        directory: RunDir | None,
        on_step: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
        on_report: Callable[[str, int, int, str], None] = lambda what, done, total, facts: None,
    ) -> int:
        """Initialise or resume, then run to the end or to a stop.

        Args:
            directory: Where checkpoints and metrics go; None keeps nothing.
            on_step: Called after each outer iteration.
            stop: Asked after each outer iteration, and by what takes long before the first.
            on_report: Told how far such preparations are.

        Returns:
            Iterations that are done.

        Raises:
            NonFiniteError: When the run diverged; the last good checkpoint is kept.
            Stopped: When the user asked to stop before the first iteration.
        """
        self.ctx.on_report, self.ctx.stopping = on_report, stop
        start = self._restore(directory)
        iterations = self.config.iterations
        recorder = _Recorder(self, directory if self.ctx.world.first else None, on_step)
        if start == 0:
            recorder.checkpoint(0)
        try:
            with compiled.expected(iterations), compiled.noticed(self.usage):
                done = self.engine.run(start, iterations, recorder.step, stop) if start < iterations else iterations
            recorder.checkpoint(done)
        except NonFiniteError:
            recorder.flush()  # how it came to that is worth knowing; a resumed run drops what is beyond its checkpoint
            raise
        return done

    def _restore(self, directory: RunDir | None) -> int:
        found = directory.newest_checkpoint() if directory is not None else None
        self.ctx.world.wait()  # nobody writes a checkpoint before everybody has looked for one
        if directory is None or found is None:
            self.engine.prepare()
            self.initialise()
            return 0
        it, state, facts = found
        if facts.get("data") != self.data.checksum:
            raise RunError(
                f"'{directory.path}' was run on other data: the dataset '{self.config.data}' has changed since"
            )
        self.engine.prepare()
        self.engine.load_state_dict(state)
        self.selection = dict(facts.get("selection", {}))
        self.usage.kernels = bool(facts.get("kernels", False))
        if self.ctx.world.first:
            directory.truncate_metrics(it)
        return it

    def result(self) -> SyntheticSet:
        """The set as it stands, with everything its file says but evaluation results.

        Where floats are stored rounded it is a copy that holds them rounded: what is previewed and evaluated is what
        the file gives back. The run goes on, and its checkpoints are written, with the exact ones.

        Raises:
            RunError: When a value is beyond what `store` can hold.
        """
        return SyntheticSet(
            self.param,
            self.data.spec,
            {**self.config.specs(), "protocol": self.config.protocol, "labels": self.config.labels},
            self.config.seed,
            self.matcher.hints(),
            self._metadata(),
            self.config.store,
        )

    def _precision(self) -> str:
        """In which precision the networks of the iterations were; empty where there were none."""
        return precision_text(self.data.train.device, self.usage.kernels) if self.config.iterations else ""

    def _metadata(self) -> dict[str, Any]:
        config = self.config
        return {
            "run": {k: v for k, v in config.model_dump(mode="json").items() if k not in SPEC_ROLES},
            "options": {
                role: [part.config.model_dump(mode="json") for part in stacked(made)]
                for role, made in (
                    ("matcher", self.matcher),
                    ("param", self.param),
                    ("augment", self.augmenter),
                    ("network", self.networks),
                )
            },
            "packages": used_packages({SPEC_ROLES[role]: text for role, text in config.specs().items()}),
            "data": {
                "id": self.data.id,
                "checksum": self.data.checksum,
                "train": len(self.data.train),
                "test": len(self.data.test),
            },
            "license": self.data.source,
            "environment": environment(self.data.train.device, self._precision()),
            "generator": f"dcf format {format_of(config.store, self.data.spec.space)}",
            **({"selection": self.selection} if self.selection else {}),
        }


class _Recorder:
    """Writes metrics and checkpoints between iterations."""

    def __init__(self, session: Session, directory: RunDir | None, on_step: Callable[[Progress], None]) -> None:
        self.session = session
        self.directory = directory
        self.on_step = on_step
        self.rows: list[Mapping[str, Any]] = []
        self.saved = -1

    def step(self, progress: Progress) -> None:
        self.rows.append({"it": progress.it, "loss": progress.loss, **progress.log})
        if progress.it % self.session.config.checkpoint_every == 0:
            self.checkpoint(progress.it)
        self.on_step(progress)

    def flush(self) -> None:
        if self.directory is not None:
            self.directory.append_metrics(self.rows)
        self.rows = []

    def checkpoint(self, it: int) -> None:
        if it == self.saved:
            return
        self._require_use(it)
        self.saved = it
        if self.directory is None:
            return
        # Metrics first: rows beyond the checkpoint are dropped on resume, rows that are missing would stay missing.
        self.flush()
        session = self.session
        facts = {"data": session.data.checksum, "selection": session.selection, "kernels": session.usage.kernels}
        self.directory.save_checkpoint(it, session.engine.state_dict(), facts)

    def _require_use(self, it: int) -> None:
        """Stop before a checkpoint could be written that nobody can use; what a run starts from is not judged.

        Raises:
            NonFiniteError: When what is finite is out of all proportion.
        """
        session = self.session
        if it and (found := flaw(session.param, session.data, session.matcher.hints())):
            raise NonFiniteError(
                f"{found} by iteration {it}; the last good checkpoint is kept\n  {session.matcher.advice}"
            )


def _require_for_matching(augmenter: Augmenter, given: str) -> None:
    """Refuse what suits the training of networks alone."""
    if augmenter.mixes_labels:
        raise UsageError(
            f"--augment {given} mixes labels, and matching compares images of one label; leave that part out here, and "
            "mix where networks are trained: --set protocol.augment=..."
        )
    if not augmenter.shareable:
        raise UsageError(
            f"--augment {given} changes images one by one, and matching changes real and synthetic images alike; leave "
            "that part out here, and use it where networks are trained: --set protocol.augment=..."
        )
