"""`Context`: what a matcher sees of a run: real data, the synthetic set, networks, augmentation, training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcf.augmenter import Augmenter
from dcf.data.ahead import ReadAhead, Request
from dcf.data.real import RealData
from dcf.distributed import ALONE, World
from dcf.errors import Stopped, UsageError
from dcf.networks.base import NetworkFactory, NetworkState
from dcf.parameterization import Parameterization
from dcf.seeding import generator, seed_for
from dcf.sending import send
from dcf.training import sgd_epochs
from dcf.types import DataSpec

__all__ = ["Chunk", "Context"]


@dataclass(frozen=True)
class Chunk:
    """Classes that are worked on together.

    Attributes:
        classes: `(c,)` class indices.
        last: Whether this is the last chunk of the pass, after which the synthetic set may be updated.
    """

    classes: Tensor
    last: bool


class Context:
    """One run as a matcher sees it.

    Every random draw is a function of the run's seed, its purpose, the iteration and, where it applies, the class;
    so nothing depends on how classes are chunked or on what happened before.

    Args:
        data: The real data, on the run's device.
        param: The synthetic set.
        networks: Makes fresh networks.
        augmenter: The run's augmentation.
        seed: The run's seed.
        class_chunk: Classes a chunk, at most.
        iterations: Outer iterations of the whole run; 0 where unknown.
        images_per_class: Plain images a class that the run's budget pays for; worked out from what is stored where
            None.
    """

    def __init__(
        self,
        data: RealData,
        param: Parameterization,
        networks: NetworkFactory,
        augmenter: Augmenter,
        seed: int,
        class_chunk: int,
        iterations: int = 0,
        images_per_class: int | None = None,
    ) -> None:
        self.data = data
        self.param = param
        self.networks = networks
        self.augmenter = augmenter
        self.seed = seed
        self.class_chunk = class_chunk
        self.iterations = iterations
        self._images_per_class = images_per_class
        #: Told what is being prepared, how much of it is done, of how much, and further facts; set by the run.
        self.on_report: Callable[[str, int, int, str], None] = lambda what, done, total, facts: None
        #: Whether the user asked to stop; set by the run.
        self.stopping: Callable[[], bool] = lambda: False
        #: The processes that work on the run together; set by the run.
        self.world: World = ALONE
        #: Whether these divide the classes of an iteration among them; set by the engine.
        self.sharded = False
        #: What the run's matcher teaches; set by the engine.
        self.teaches: frozenset[str] = frozenset({"images", "labels"})
        self.it = 0
        #: Updates done within the iteration.
        self.update = 0
        view_class = param.view_class
        self._views = [torch.nonzero(view_class == c).flatten() for c in range(data.spec.num_classes)]
        #: Classes as tensors on the device, and by the identity of each of these, which are kept, what they are.
        self._at: dict[tuple[int, ...], Tensor] = {}
        self._chunked: dict[int, tuple[tuple[int, ...], Tensor]] = {}
        self._drawn: tuple[tuple[object, ...], Tensor] | None = None
        self._ahead: ReadAhead | None = None

    # --- facts -----------------------------------------------------------------------------------

    @property
    def spec(self) -> DataSpec:
        """Shape, classes and value space of the data."""
        return self.data.spec

    @property
    def device(self) -> torch.device:
        """Where tensors live."""
        return self.data.train.device

    @property
    def images_per_class(self) -> int:
        """The set's budget in plain images a class: what published settings are tabled by.

        The budget, not what is used of it: where items do not divide it, a little of it stays unused.
        """
        if self._images_per_class is not None:
            return max(1, self._images_per_class)
        per_class = self.param.storage().equivalent_images / self.spec.num_classes
        return max(1, int(per_class + 1e-6))

    def begin(self, it: int) -> None:
        """Seed the iteration; called by the engine."""
        self.it = it
        self.update = 0

    def report(self, what: str, done: int, total: int, facts: str = "") -> None:
        """Say how far a preparation is.

        Args:
            what: Such as "training experts".
            done: Parts that are done.
            total: Of how many.
            facts: Anything else worth a glance, such as "accuracy 98.1 %".
        """
        self.on_report(what, done, total, facts)

    def check_stop(self) -> None:
        """End a preparation if the user asked for it; call it where what is done so far is kept.

        Raises:
            Stopped: When asked.
        """
        if self.stopping():
            raise Stopped("stopped while preparing; the same command goes on from there")

    # --- processes -------------------------------------------------------------------------------

    def replica(self, number: int) -> Context:
        """The same run with other random draws: number 0 has those of the run itself."""
        other = copy.copy(self)
        other.seed = seed_for(self.seed, "replica", number) if number else self.seed
        other._drawn, other._ahead = None, None
        return other

    @property
    def processes(self) -> int:
        """How many processes divide the classes of an iteration among them.

        What a matcher yields is summed over them: a loss that all of them compute whole is to be divided by this.
        """
        return self.world.size if self.sharded else 1

    def sum_over_processes(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The sum of parts that belong to the classes of an iteration, wherever these are worked on; without a graph.

        Added up in order of the classes, so the result does not depend on the number of processes where the parts
        do not.

        Args:
            parts: This process's parts in order of its classes, at least one: lists of tensors of one dtype.
        """
        return (self.world if self.sharded else ALONE).sum_in_order(parts)

    # --- classes ---------------------------------------------------------------------------------

    def chunks(self) -> Iterator[Chunk]:
        """The classes that have synthetic images, chunk after chunk; those of one chunk have equally many.

        Where several processes divide the classes among them, those of this process.
        """
        groups: dict[int, list[int]] = {}
        present = [c for c, views in enumerate(self._views) if len(views)]
        for c in self.world.share(present) if self.sharded else present:
            groups.setdefault(len(self._views[c]), []).append(c)
        parts = [
            group[i : i + self.class_chunk] for group in groups.values() for i in range(0, len(group), self.class_chunk)
        ]
        for number, part in enumerate(parts, 1):
            yield Chunk(self.classes(part), number == len(parts))

    def all_classes(self) -> Chunk:
        """Every class as one chunk, for what must see them together.

        Raises:
            UsageError: When classes have different numbers of synthetic images.
        """
        counts = {len(views) for views in self._views}
        if len(counts) > 1:
            raise UsageError(
                "this matcher sees all classes at once, which takes equally many synthetic images of each; "
                f"got from {min(counts)} to {max(counts)} a class\n"
                "  use another parameterization, or a network without batch norm if that is why it needs them together"
            )
        return Chunk(self.classes(range(self.spec.num_classes)), True)

    def numbers(self, classes: Tensor) -> list[int]:
        """Class indices `(c,)` as integers; of a chunk that this context gave, without waiting for the device."""
        known = self._chunked.get(id(classes))
        return classes.tolist() if known is None else list(known[0])

    def classes(self, numbers: Sequence[int]) -> Tensor:
        """Class indices `(c,)` on the device; the same tensor each time, so that nothing is sent in every step."""
        key = tuple(numbers)
        if key not in self._at:
            self._at[key] = send(torch.tensor(key, dtype=torch.int64), self.device)
            self._chunked[id(self._at[key])] = key, self._at[key]
        return self._at[key]

    def part(self, classes: Tensor, which: slice) -> Tensor:
        """Some of the classes of a chunk, as `classes[which]`, such that `numbers` need not wait for these either."""
        return self.classes(self.numbers(classes)[which])

    @property
    def classes_with_images(self) -> int:
        """How many classes have synthetic images, over all processes."""
        return sum(len(views) > 0 for views in self._views)

    def labels(self, classes: Tensor, n: int) -> Tensor:
        """`(c, n)` class indices for n images of each class."""
        return classes[:, None].expand(-1, n)

    # --- images ----------------------------------------------------------------------------------

    def real(self, classes: Tensor, n: int, *stream: str | int) -> Tensor:
        """Random real images of each class.

        Args:
            classes: `(c,)`.
            n: Images a class, drawn without replacement; a class that has fewer visits all of its images and starts
                again. Where every class has fewer, as many as the largest one has.
            stream: Name of the draw within the iteration, such as `("match", step)`.

        Returns:
            `(c, n, C, H, W)` in the dataset's value space.
        """
        request = Request(self.it, n, stream, tuple(self.numbers(classes)))
        if self.data.train.resident:
            index = self._draw(request)
            return self.data.train.images(index[classes.to(index.device)])
        if self._ahead is None:
            self._ahead = ReadAhead(self._stored, self.iterations)
        stored = self._ahead.get(request)
        return self.data.train.encode(stored).view(len(request.classes), -1, *self.spec.shape)

    def _draw(self, request: Request) -> Tensor:
        """`(K, n)` image numbers, of all classes, drawn once for all chunks."""
        key: tuple[object, ...] = (request.it, request.n, *request.stream)
        drawn = self._drawn  # read once: another thread may draw something else meanwhile
        if drawn is None or drawn[0] != key:
            n = min(request.n, int(self.data.train.counts.max()))
            drawn = key, self.data.train.sample(n, generator(self.seed, "real", request.it, *request.stream))
            self._drawn = drawn
        return drawn[1]

    def _stored(self, request: Request) -> Tensor:
        """`(c * n, C, H, W)` stored values of what is asked for."""
        return self.data.train.store.take(self._draw(request)[list(request.classes)].flatten())

    def synthetic(self, classes: Tensor) -> Tensor:
        """`(c, I, C, H, W)`: all synthetic images of the classes of one chunk, differentiable."""
        index = self._index(classes)
        images = self.param.images(index.flatten())
        return images.view(*index.shape, *images.shape[1:])

    def synthetic_labels(self, classes: Tensor) -> Tensor:
        """Labels of `synthetic(classes)`: `(c, I)` class indices, or `(c, I, K)` probabilities, differentiable."""
        index = self._index(classes)
        labels = self.param.labels(index.flatten())
        return labels.view(*index.shape, *labels.shape[1:])

    def _index(self, classes: Tensor) -> Tensor:
        """`(c, I)` view numbers."""
        return torch.stack([self._views[c] for c in self.numbers(classes)])

    def siamese(self, classes: Tensor, real: Tensor, synthetic: Tensor, *stream: str | int) -> tuple[Tensor, Tensor]:
        """Augment real and synthetic images of a class with one and the same draw (Zhao and Bilen, ICML 2021).

        An augmenter that is not siamese draws for every image apart instead.

        Args:
            classes: `(c,)`.
            real: `(c, B, C, H, W)`.
            synthetic: `(c, I, C, H, W)`.
            stream: Name of the draw within the iteration.
        """
        if self.augmenter.is_identity:
            return real, synthetic
        aug, shape = self.augmenter, self.spec.shape
        streams = [generator(self.seed, "siamese", self.it, *stream, c) for c in self.numbers(classes)]
        if aug.siamese:
            draws = [aug.draw(1, shape, draw, shared=True) for draw in streams]
            return aug.apply_classes(real, draws), aug.apply_classes(synthetic, draws)
        for_real = [aug.draw(real.shape[1], shape, draw, shared=False) for draw in streams]
        for_syn = [aug.draw(synthetic.shape[1], shape, draw, shared=False) for draw in streams]
        return aug.apply_classes(real, for_real), aug.apply_classes(synthetic, for_syn)

    # --- networks --------------------------------------------------------------------------------

    def network(self, *stream: str | int) -> NetworkState:
        """A freshly initialised network of this iteration, in training mode."""
        return self.networks.create(self.spec, self.seed, "network", self.it, *stream, device=self.device)

    def train(self, net: NetworkState, epochs: int, lr: float, batch: int, *stream: str | int) -> None:
        """Train a network in place on a copy of the synthetic set, with plain SGD.

        Args:
            net: Its weights move; every layer is put in training mode.
            epochs: Passes over the synthetic set, shuffled.
            lr: Step size; no momentum, no weight decay.
            batch: Images a step.
            stream: Name of the training within the iteration.
        """
        with torch.no_grad():
            copy = self.param.batch(torch.arange(len(self.param.view_class), device=self.device))
        draws = generator(self.seed, "train", self.it, *stream)
        sgd_epochs(net, copy, lr=lr, epochs=epochs, generator=draws, batch=batch, augmenter=self.augmenter)
