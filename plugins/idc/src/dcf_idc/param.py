"""Images cut into tiles that are enlarged to images (Kim et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import dcf
from dcf_idc.formation import decode_tiles, grid_of, pack, shrink, tile_size, view_table
from dcf_idc.options import MultiFormationConfig

__all__ = ["MultiFormation"]


class MultiFormation(dcf.Parameterization):
    """Store canvases of pixels in [0, 1], and decode each to several images.

    `canvases (items, C, H, W)` is all that is stored: as much as so many plain images, and factor^2 times as many
    views. Values are plain pixels whatever the dataset's value space is; decoded images are brought into that space,
    after they are enlarged. So step sizes and bounds are those of pixels, as published.

    With a parameterization on its left, that one stores the canvases, as plain pixels likewise, and each image that it
    decodes is a canvas.
    """

    Config = MultiFormationConfig

    stackable: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {"init": "random"}

    #: Absent where a left one stores them.
    canvases: nn.Parameter

    def __init__(self, config: dcf.Config | None = None, inner: dcf.Parameterization | None = None) -> None:
        super().__init__(config, inner)
        self._space: dcf.ValueSpace | None = None
        self._table: Tensor | None = None
        if inner is None:
            return
        if "labels" in inner.drives:
            raise dcf.UsageError(
                "multiformation cuts each image of the parameterization on its left into several, and "
                f"{type(inner).__name__} learns one label for each: put it to the right of multiformation"
            )
        if self.config.clamp in ("iteration", "update"):
            raise dcf.UsageError(
                f"multiformation: clamp={self.config.clamp} cuts stored pixels to [0, 1], and {type(inner).__name__} "
                "stores something else; expected clamp=decode or clamp=none"
            )

    # --- size ------------------------------------------------------------------------------------

    def plan(self, spec: dcf.DataSpec, floats: int) -> int:
        """How many canvases a class fit into a budget: as many as plain images, or as the left one plans.

        Raises:
            BudgetError: When not even one fits.
        """
        if self.inner is not None:
            return self.inner.plan(_unit(spec), floats)
        return super().plan(spec, floats)

    def allocate(self, spec: dcf.DataSpec, item_class: Tensor) -> None:
        """Create the canvases, zero; with a left one, that creates its own."""
        self.set_layout(spec, item_class)
        self._space, self._table = spec.space, None
        if self.inner is not None:
            self.inner.allocate(_unit(spec), self.inner_classes(item_class))
            return
        self.register_parameter("canvases", nn.Parameter(torch.zeros(len(item_class), *spec.shape)))
        self.latent_names = ("canvases",)

    # --- views -----------------------------------------------------------------------------------

    @property
    def canvas_class(self) -> Tensor:
        """`(canvases,)` class of each."""
        return self.item_class if self.inner is None else self.inner.view_class

    @property
    def view_class(self) -> Tensor:
        """`(views,)` class of each image, tile by tile."""
        return self.canvas_class[self._views()[:, 0]]

    def _views(self) -> Tensor:
        """`(views, 4)`: canvas, factor, row and column of each image, on the device of the classes."""
        classes = self.canvas_class
        if self._table is None:
            self._table = self._tabulate(classes)
        self._table = self._table.to(classes.device)
        return self._table

    def _tabulate(self, classes: Tensor) -> Tensor:
        config = self.config
        settings = (config.factor, config.decode, config.bound, config.axes)
        if config.decode != "bound":
            return view_table(len(classes), *settings)
        found = []
        for c in torch.unique(classes).tolist():  # as published, the bound is that of a class
            own = torch.nonzero(classes == c).flatten().cpu()
            table = view_table(len(own), *settings)
            found.append(torch.cat([own[table[:, :1]], table[:, 1:]], dim=1))
        return torch.cat(found)

    # --- images ----------------------------------------------------------------------------------

    def images(self, index: Tensor) -> Tensor:
        """Tiles, enlarged to images.

        Args:
            index: `(N,)` view numbers.

        Returns:
            `(N, C, H, W)` in the dataset's value space.
        """
        table = self._views()[index]
        if self.config.decode == "single":
            return self._ready(self._tiles(table, self.config.factor))
        found: list[Tensor] = []
        order: list[Tensor] = []
        for k in range(1, self.config.factor + 1):
            order.append(torch.nonzero(table[:, 1] == k).flatten())
            found.append(self._tiles(table[order[-1]], k))
        return self._ready(torch.cat(found)[torch.cat(order).argsort()])

    def _tiles(self, rows: Tensor, factor: int) -> Tensor:
        """Pixels of the tiles in some rows of the table, which share a factor."""
        canvas, _, row, column = rows.unbind(1)
        stored = self.canvases[canvas] if self.inner is None else self.inner.images(canvas)
        return decode_tiles(stored, row, column, grid_of(factor, self.config.axes), (self.shape[1], self.shape[2]))

    def _ready(self, pixels: Tensor) -> Tensor:
        pixels = pixels.clamp(0, 1) if self.config.clamp == "decode" else pixels
        return pixels if self._space is None else self._space.encode(pixels)

    # --- starting values -------------------------------------------------------------------------

    @torch.no_grad()
    def absorb(self, images: Tensor, generator: torch.Generator | None = None) -> None:
        """Start from real images, shrunk and packed, or from noise, which ignores them.

        Each tile of the largest factor holds the image of its view. Images of views of smaller factors are not used
        where a canvas has larger ones: such views show several tiles at once.

        Args:
            images: `(views, C, H, W)` in the dataset's value space.
            generator: For noise, and for a left one.
        """
        draw = torch.Generator().manual_seed(0) if generator is None else generator
        start = self._noise(draw).to(images) if self.config.init == "noise" else self._packed(images)
        if self.inner is None:
            self.canvases.copy_(start)
        else:
            self.inner.absorb(start, draw)

    def _noise(self, generator: torch.Generator) -> Tensor:
        return (torch.randn(len(self.canvas_class), *self.shape, generator=generator) / 4 + 0.5).clamp(0, 1)

    def _packed(self, images: Tensor) -> Tensor:
        """`(canvases, C, H, W)` pixels: of each canvas, the images of its tiles of the largest factor."""
        size, table = (self.shape[1], self.shape[2]), self._views().to(images.device)
        pixels = images if self._space is None else self._space.decode(images)
        canvas, factor = table[:, 0], table[:, 1]
        largest = factor.new_zeros(len(self.canvas_class)).scatter_reduce(0, canvas, factor, "amax")
        start = images.new_empty(len(self.canvas_class), *self.shape)
        for k in torch.unique(largest).tolist():
            rows, columns = grid_of(k, self.config.axes)
            chosen = torch.nonzero((largest[canvas] == k) & (factor == k)).flatten()
            place = (canvas[chosen] * rows + table[chosen, 2]) * columns + table[chosen, 3]
            tiles = shrink(pixels[chosen[place.argsort()]], tile_size(size, (rows, columns)), self.config.shrink)
            start[largest == k] = pack(tiles.unflatten(0, (-1, rows, columns)), size)
        return start

    # --- learning --------------------------------------------------------------------------------

    def begin_(self) -> None:
        """Cut stored pixels to [0, 1], unless they are at another time or nowhere."""
        super().begin_()
        if self.inner is None and self.config.clamp in ("auto", "iteration"):
            self.canvases.clamp_(0, 1)

    def project_(self) -> None:
        """Cut stored pixels to [0, 1], where asked for after every update."""
        super().project_()
        if self.config.clamp == "update":
            self.canvases.clamp_(0, 1)


def _unit(spec: dcf.DataSpec) -> dcf.DataSpec:
    """The same data as plain pixels: what a left parameterization stores."""
    return replace(spec, space=dcf.ValueSpace.unit(spec.channels))
