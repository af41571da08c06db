"""Learned labels beside images that are stored in any way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

import dcf
from dcf.pixels import Pixels
from dcf_labels.options import Form, SoftLabelsConfig
from dcf_labels.plan import least_floats, most_items
from dcf_labels.simplex import distributions, encode, onehot, onto_simplex
from dcf_labels.teacher import predictions, teacher

__all__ = ["STEP_SIZES", "SoftLabels"]

log = logging.getLogger(__name__)

_BLANK: Final = ", all classes alike, from which no network learns; take init=onehot or init=teacher"
#: What `lr=auto` stands for, by optimiser and form.
STEP_SIZES: Final[Mapping[tuple[str, Form], float]] = {
    ("adam", "probabilities"): 1e-3,
    ("adam", "logits"): 1e-2,
    ("sgd", "probabilities"): 1e-3,
    ("sgd", "logits"): 1.0,
}


class SoftLabels(dcf.Parameterization):
    """Store a probability of every class for every image, `soft_labels (views, K)`, and learn those.

    Images are those of the parameterization on its left, or pixels where there is none, and are stored, decoded and
    learned as ever. Labels count against the budget like everything that is stored.
    """

    Config = SoftLabelsConfig

    stackable: ClassVar[bool] = True

    soft_labels: nn.Parameter

    def __init__(self, config: dcf.Config | None = None, inner: dcf.Parameterization | None = None) -> None:
        super().__init__(config, inner)
        if inner is None:
            self.plain = Pixels()
        # Instance attributes: both depend on what is stored to the left.
        learned = self.below.drives if self.config.learn_images else frozenset()
        self.drives = frozenset({"labels"}) | learned  # type: ignore[misc]
        # A budget of one plain image a class does not hold it and its label.
        enough = {"ipc": 2} if isinstance(self.below, Pixels) else {}
        self.defaults = {**self.below.defaults, **enough}  # type: ignore[misc]

    @property
    def below(self) -> dcf.Parameterization:
        """What stores the images."""
        return self.plain if self.inner is None else self.inner

    # --- size ------------------------------------------------------------------------------------

    def plan(self, spec: dcf.DataSpec, floats: int) -> int:
        """How many items a class fit into a budget with their labels, by the rule of what stores the images.

        Raises:
            BudgetError: When not even one fits.
        """
        items = self._items(spec, floats)
        if items:
            return items
        least = least_floats(lambda budget: self._items(spec, budget), self.below.cost(spec, 1))
        if least is None:  # what stores the images refuses them whatever the budget, and says why
            self.below.plan(spec, floats)
        raise dcf.BudgetError(
            f"the budget of {floats} floats ({4 * floats} bytes) holds no item a class with its soft label of "
            f"{spec.num_classes} floats; the smallest that works is {least} floats ({4 * (least or 0)} bytes)"
        )

    def _items(self, spec: dcf.DataSpec, floats: int) -> int:
        return most_items(
            lambda left: self.below.plan(spec, left),
            lambda items: self._label_floats(spec, items),
            floats,
            spec.num_classes**2,
        )

    def _label_floats(self, spec: dcf.DataSpec, items: int) -> int:
        """Floats of the labels of so many items a class: what it costs beyond what is stored to the left."""
        return self.cost(spec, items) - self.below.cost(spec, items)

    def allocate(self, spec: dcf.DataSpec, item_class: Tensor) -> None:
        """Create the labels, zero, beside what the left one creates."""
        self.set_layout(spec, item_class)
        self.below.allocate(spec, self.inner_classes(item_class))
        empty = torch.zeros(len(self.below.view_class), spec.num_classes)
        self.register_parameter("soft_labels", nn.Parameter(empty))

    # --- starting values -------------------------------------------------------------------------

    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Let the left one start from the images, and labels from `init`; a teacher comes later."""
        self.below.absorb(images, generator)
        if self.config.init == "uniform":
            self.absorb_labels(torch.ones_like(self.soft_labels))
        else:
            self.absorb_labels(onehot(self.view_class, self.num_classes, self.config.form))

    def initialise(self, ctx: dcf.Context) -> None:
        """Let the left one do its part, then ask the teacher, where labels start from one."""
        self.below.initialise(ctx)
        if self.config.init == "teacher":
            state = teacher(ctx, self.config.teacher_epochs)
            with torch.no_grad():
                images = self.images(torch.arange(len(self.view_class), device=self.view_class.device))
            self.absorb_labels(predictions(state, images))
        if "labels" not in ctx.teaches:
            log.warning(
                "soft-labels: this matcher teaches %s only, so the labels stay as they start (init=%s)%s",
                " and ".join(sorted(ctx.teaches)) or "nothing",
                self.config.init,
                _BLANK if self.config.init == "uniform" else "",
            )

    def absorb_labels(self, labels: Tensor) -> None:
        """Start from soft labels.

        Args:
            labels: `(views, K)` probabilities, one row for each view in order of `view_class`.

        Raises:
            UsageError: When there are not as many.
        """
        wanted, found = tuple(self.soft_labels.shape), tuple(labels.shape)
        if wanted != found:
            raise dcf.UsageError(f"soft-labels: expected labels of shape {wanted} to start from, got {found}")
        with torch.no_grad():
            self.soft_labels.copy_(encode(labels, self.config.form))

    # --- decoding --------------------------------------------------------------------------------

    @property
    def view_class(self) -> Tensor:
        """`(views,)` class of the image that a view started from; its label may have moved elsewhere."""
        return self.below.view_class

    def images(self, index: Tensor) -> Tensor:
        """The images of the left one; constants where they are not learned."""
        images = self.below.images(index)
        return images if self.config.learn_images else images.detach()

    def labels(self, index: Tensor) -> Tensor:
        """`(N, K)` probabilities, differentiable."""
        return distributions(self.soft_labels[index], self.config.form)

    @property
    def epoch_length(self) -> int:
        """As many as of the left one."""
        return self.below.epoch_length

    def epoch(self, generator: torch.Generator) -> Tensor:
        """The order of the left one."""
        return self.below.epoch(generator)

    def inner_epoch(self, generator: torch.Generator, batch: int) -> Tensor:
        """The order of the left one."""
        return self.below.inner_epoch(generator, batch)

    # --- learning --------------------------------------------------------------------------------

    def param_groups(self) -> list[dcf.ParamGroup]:
        """The groups of the images, where they are learned, and `labels`, with a step size of their own."""
        config = self.config
        lr = STEP_SIZES[config.optimizer, config.form] if config.lr == "auto" else config.lr
        own = dcf.ParamGroup("labels", [self.soft_labels], lr, config.momentum, config.optimizer, (0.9, 0.999))
        return [*(self.below.param_groups() if config.learn_images else []), own]

    def project_(self) -> None:
        """Bring images into their bounds and probabilities back onto the simplex; logits have no bounds."""
        if self.config.learn_images:
            self.below.project_()
        if self.config.form == "probabilities":
            with torch.no_grad():
                self.soft_labels.copy_(onto_simplex(self.soft_labels))

    def aux(self) -> list[dcf.AuxiliaryObjective]:
        """Objectives of the images, where these are learned."""
        found: list[Any] = self.below.aux() if self.config.learn_images else []
        return found
