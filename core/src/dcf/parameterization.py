"""The Parameterization interface: how a synthetic set is stored, and decoded into images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dcf.auxiliary import AuxiliaryObjective
from dcf.config import Config as BaseConfig
from dcf.errors import BudgetError, UsageError
from dcf.items import rows_of_items
from dcf.sending import send
from dcf.types import Batch, DataSpec, ParamGroup

if TYPE_CHECKING:
    from dcf.context import Context

__all__ = ["Parameterization", "Storage", "TensorStorage"]


@dataclass(frozen=True)
class TensorStorage:
    """One stored tensor: its name in the file, shape, dtype name, number of elements and bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    floats: int
    nbytes: int


@dataclass(frozen=True)
class Storage:
    """What a synthetic set costs.

    Attributes:
        tensors: Every stored tensor that counts against the budget: images or factors, decoders, soft labels.
        views: Number of training images that it decodes to.
        image_floats: Elements of one decoded image.
    """

    tensors: tuple[TensorStorage, ...]
    views: int
    image_floats: int

    @property
    def floats(self) -> int:
        """Stored elements."""
        return sum(t.floats for t in self.tensors)

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def equivalent_images(self) -> float:
        """The number of plain float images that cost as many elements."""
        return self.floats / self.image_floats

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "floats": self.floats,
            "bytes": self.nbytes,
            "views": self.views,
            "equivalent_images": self.equivalent_images,
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "bytes": t.nbytes} for t in self.tensors
            ],
        }


class Parameterization(nn.Module):
    """Base of parameterizations.

    What is stored is exactly the state dict. The common case stores one latent a synthetic image ("item") and is
    complete with `encode` and `decode`. Others override `view_class`, `allocate` and `images`: several views an
    item (tiles), tensors shared by all items (bases, decoders); and `plan` where items do not all cost the same.

    Whatever else decoding needs (tables, up-sampling matrices) must follow from the layout, never from `allocate`
    alone: a file is loaded by calling `allocate` on the meta device and then filling in the state dict.

    A stackable one (`stackable = True`) owns the parameterization on its left, `self.inner`, and decodes the
    canvases that `self.inner.images` returns, instead of raw tensors. Where these are not one an item and of its
    class, such as bases that all classes share, it overrides `inner_classes`, too.

    Class attributes:
        drives: What is learnable: "images", "labels" or both.
        stackable: Whether it may stand to the right of another one.
        lossless: Whether decoding gives back the images that were absorbed.
        defaults: Settings of a run that suit it, by name, such as `{"init": "random"}`. They win over the matcher's
            own, and give way to the data's, the recipe's and the user's; of a stack, the right ones win.
    """

    #: Class of the options.
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    drives: ClassVar[frozenset[str]] = frozenset({"images"})
    stackable: ClassVar[bool] = False
    lossless: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}

    item_class: Tensor

    def __init__(self, config: BaseConfig | None = None, inner: Parameterization | None = None) -> None:
        super().__init__()
        self.config: Any = config if config is not None else self.Config()
        self.inner = inner
        self.shape: tuple[int, int, int] = (0, 0, 0)
        self.num_classes = 0
        self.latent_names: tuple[str, ...] = ()
        self._costs: dict[tuple[tuple[int, int, int], int, int], int] = {}
        self.register_buffer("item_class", torch.empty(0, dtype=torch.long), persistent=False)

    # --- what a per-image parameterization implements --------------------------------------------

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Latents of images.

        Args:
            images: `(N, C, H, W)` in the dataset's value space.

        Returns:
            Tensors by the names they have in the file, each with first axis N.
        """
        raise NotImplementedError

    def decode(self, latents: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Images of latents; differentiable, without randomness.

        Args:
            latents: Tensors with first axis N, by name.
            size: `(H, W)` of an image.

        Returns:
            `(N, C, H, W)`.
        """
        raise NotImplementedError

    # --- size ------------------------------------------------------------------------------------

    def cost(self, spec: DataSpec, items: int) -> int:
        """Stored elements of a set with `items` items a class, shared ones and those of inner ones included."""
        key = (spec.shape, spec.num_classes, items)
        if key not in self._costs:  # a search for the largest number that fits asks many times
            probe = copy.deepcopy(self)
            item_class = torch.arange(spec.num_classes).repeat_interleave(items)
            with torch.device("meta"):
                probe.allocate(spec, item_class)
            self._costs[key] = probe.storage().floats
        return self._costs[key]

    def plan(self, spec: DataSpec, floats: int) -> int:
        """How many items a class fit into a budget; assumes that each further one costs the same.

        Args:
            spec: The data.
            floats: Budget in stored elements, for the whole set.

        Raises:
            BudgetError: When not even one fits; says the smallest budget that works.
        """
        one = self.cost(spec, 1)
        if floats < one:
            raise BudgetError(
                f"the budget of {floats} floats ({4 * floats} bytes) holds no item a class; "
                f"the smallest that works is {one} floats ({4 * one} bytes)"
            )
        return 1 + (floats - one) // max(1, self.cost(spec, 2) - one)

    def allocate(self, spec: DataSpec, item_class: Tensor) -> None:
        """Create the stored tensors, zero, for items of the given classes.

        It draws nothing: layers of `torch.nn` would initialise themselves from the global generator.

        Args:
            spec: The data.
            item_class: `(items,)` class of each item, ascending.
        """
        self.set_layout(spec, item_class)
        for name, latent in self.encode(torch.zeros(1, *spec.shape)).items():
            empty = torch.zeros(len(item_class), *latent.shape[1:], dtype=latent.dtype)
            # Not register_parameter: a latent may well be called like a method, such as "images".
            self._parameters[name] = nn.Parameter(empty)
            self.latent_names += (name,)

    def latents(self) -> dict[str, Tensor]:
        """The stored tensors that `encode` names, each with first axis items."""
        return {name: tensor for name in self.latent_names if (tensor := self._parameters[name]) is not None}

    def set_layout(self, spec: DataSpec, item_class: Tensor) -> None:
        """Remember the shape of an image and the class of each item."""
        self.shape = spec.shape
        self.num_classes = spec.num_classes
        self.item_class = item_class.to(torch.long)
        self.latent_names = ()

    def inner_classes(self, item_class: Tensor) -> Tensor:
        """Classes of the items of the inner one, given those of its own: the same, unless overridden.

        What `allocate` passes on; loading a file asks for it again, on the CPU.

        Args:
            item_class: `(items,)` class of each of its own items, ascending.

        Returns:
            `(inner items,)`, ascending, on the same device; a new tensor where it differs.
        """
        return item_class

    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Initialise from real images or noise.

        Args:
            images: `(views, C, H, W)`, one for each view in order of `view_class`, in the dataset's value space.
            generator: The only source of randomness, on the CPU, for what the images do not decide, such as a
                shared decoder; a run always gives one, None stands for one seeded with 0.
        """
        with torch.no_grad():
            stored = self.latents()
            for name, latent in self.encode(images).items():
                stored[name].copy_(latent)

    def initialise(self, ctx: Context) -> None:
        """Set starting values that need more of the run than images, such as the labels of a trained network.

        Once in the life of a run, after `absorb`; never when it is resumed.

        Args:
            ctx: The run.
        """
        if self.inner is not None:
            self.inner.initialise(ctx)

    def absorb_labels(self, labels: Tensor) -> None:
        """Start from soft labels, where labels are learned.

        Args:
            labels: `(views, K)` probabilities, one row for each view in order of `view_class`.

        Raises:
            UsageError: When its labels are not learned.
        """
        if self.inner is None:
            raise UsageError(
                f"{type(self).__name__} has fixed labels; expected learned ones, such as --labels soft (see: "
                "dcf list-plugins)"
            )
        self.inner.absorb_labels(labels)

    # --- decoding --------------------------------------------------------------------------------

    @property
    def view_class(self) -> Tensor:
        """`(views,)` class of every decodable training image."""
        return self.item_class

    def images(self, index: Tensor) -> Tensor:
        """Decode views; pure in (parameters, index).

        Args:
            index: `(N,)` view numbers.

        Returns:
            `(N, C, H, W)` in the dataset's value space.
        """
        picked = {name: latent[index] for name, latent in self.latents().items()}
        return self.decode(picked, (self.shape[1], self.shape[2]))

    def labels(self, index: Tensor) -> Tensor:
        """Labels of views: `(N,)` class indices, or `(N, K)` probabilities where they are learned."""
        return self.view_class[index]

    def batch(self, index: Tensor) -> Batch:
        """Images and labels of views."""
        return Batch(self.images(index), self.labels(index))

    @property
    def epoch_length(self) -> int:
        """Views that an epoch visits, at least 1: all, unless it draws which of several versions to show."""
        return len(self.view_class)

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Order in which one training epoch visits the views: `(epoch_length,)` indices, none of them twice.

        What an epoch leaves out, others visit: each view has the same chance. Networks that are trained side by side
        call it at once, from several threads.
        """
        return send(torch.randperm(len(self.view_class), generator=generator), self.item_class.device)

    def inner_epoch(self, generator: torch.Generator, batch: int) -> Tensor:
        """The same for the training inside a matcher's iteration; overridden where that differs from evaluation.

        Args:
            generator: CPU generator.
            batch: The order is cut into mini-batches of so many from its beginning; the last may be short. A
                parameterization may let all views of one have something in common.

        Returns:
            `(epoch_length,)` indices.
        """
        return self.epoch(generator)

    def item_rows(self, spec: DataSpec, items: Tensor) -> dict[str, Tensor]:
        """Which rows of the stored tensors belong to some items: what merging, slicing and appending move.

        The layout tells, so there is nothing to do unless items depend on each other in a way that it does not show;
        then this raises with the reason.

        Args:
            spec: What it was allocated for.
            items: `(n,)` item numbers.

        Returns:
            By name of the stored tensor, `(n r,)` row numbers: the r rows of the first item, then those of the second.

        Raises:
            UsageError: When a stored tensor is shared by items, such as a decoder.
        """
        return rows_of_items(self, spec, items)

    # --- learning --------------------------------------------------------------------------------

    def param_groups(self) -> list[ParamGroup]:
        """What is learned, with optimiser settings that differ from the run's."""
        inner = [] if self.inner is None else self.inner.param_groups()
        taken = {id(p) for group in inner for p in group.params}
        own = [p for p in self.parameters() if id(p) not in taken]
        return [*inner, ParamGroup("images", own)] if own or not inner else inner

    def begin_(self) -> None:
        """Bring the stored values into bounds that hold at the start of an outer iteration only.

        Called before every iteration; what `project_` does after every update need not be done here.
        """
        if self.inner is not None:
            self.inner.begin_()

    def project_(self) -> None:
        """Bring the stored values back into their bounds after an update."""
        if self.inner is not None:
            self.inner.project_()

    def aux(self) -> list[AuxiliaryObjective]:
        """Objectives of its own, learned beside what the matcher asks for; asked for once a run, after `allocate`."""
        return [] if self.inner is None else self.inner.aux()

    def storage(self) -> Storage:
        """What counts against the budget."""
        tensors = tuple(
            TensorStorage(
                name,
                tuple(t.shape),
                str(t.dtype).removeprefix("torch."),
                t.numel(),
                t.numel() * t.element_size(),
            )
            for name, t in self.state_dict().items()
        )
        c, h, w = self.shape
        return Storage(tensors, len(self.view_class), c * h * w)
