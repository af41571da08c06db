"""Items that stand alone: which rows of what is stored belong to which item.

Merging, slicing and appending move items from set to set. That takes a parameterization of which every stored tensor is
a table with rows of single items; one with tensors that all items share, such as a common decoder, has no such rows.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dcf.errors import UsageError

if TYPE_CHECKING:
    from dcf.parameterization import Parameterization
    from dcf.types import DataSpec

__all__ = ["rows_of_items", "views_of_items"]


def rows_of_items(param: Parameterization, spec: DataSpec, items: Tensor) -> dict[str, Tensor]:
    """The rows of every stored tensor that belong to some items.

    Found from the layout alone: a tensor whose first axis grows in proportion to the items has so many rows for each,
    item by item, or those of its views where it has as many rows as there are views; one that does not grow is shared.

    Args:
        param: An allocated one.
        spec: What it was allocated for.
        items: `(n,)` item numbers.

    Returns:
        By name of the tensor, `(n r,)` row numbers: the r rows of the first item, then those of the second, ...

    Raises:
        UsageError: When a tensor is shared by items, so that none of them can be moved to another set.
    """
    few, many = (_shapes(param, spec, n) for n in (1, 2))
    shared = [name for name, shape in few.items() if not _grows(shape, many[name])]
    if shared:
        raise UsageError(
            f"the parameterization {type(param).__name__} stores tensors that all of its images share "
            f"({', '.join(shared)}): an image cannot be taken out of such a set, or put into another one"
        )
    views, rows = views_of_items(param, spec), dict[str, Tensor]()
    for name, tensor in param.state_dict().items():
        per_item, rest = divmod(len(tensor), len(param.item_class))
        if len(tensor) == len(param.view_class):
            rows[name] = torch.cat([views[i] for i in items.tolist()]) if len(items) else items
        elif rest == 0:
            rows[name] = (items[:, None] * per_item + torch.arange(per_item)).flatten()
        else:
            raise UsageError(
                f"the parameterization {type(param).__name__} stores {len(tensor)} rows of '{name}' for "
                f"{len(param.item_class)} items: it cannot be told whose they are"
            )
    return rows


def views_of_items(param: Parameterization, spec: DataSpec) -> list[Tensor]:
    """The view numbers of each item, ascending.

    Args:
        param: An allocated one.
        spec: What it was allocated for.
    """
    items = len(param.item_class)
    if len(param.view_class) == items:
        return list(torch.arange(items)[:, None])
    # Were each item a class of its own, the class of a view would be its item.
    named = replace(spec, classes=tuple(map(str, range(items))))
    owner = _laid_out(param, named, torch.arange(items)).view_class.cpu()
    if len(owner) != len(param.view_class):
        raise UsageError(
            f"the parameterization {type(param).__name__} decodes an image otherwise in a set of other images: none "
            "can be taken out of it, or put into another one"
        )
    order = torch.argsort(owner, stable=True)
    return list(torch.split(order, torch.bincount(owner, minlength=items).tolist()))


def _shapes(param: Parameterization, spec: DataSpec, items: int) -> dict[str, tuple[int, ...]]:
    made = _laid_out(param, spec, torch.arange(spec.num_classes).repeat_interleave(items))
    return {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}


def _grows(few: tuple[int, ...], many: tuple[int, ...]) -> bool:
    """Whether twice the items make twice the rows, of the same form."""
    return bool(few) and (2 * few[0], *few[1:]) == many


def _laid_out(param: Parameterization, spec: DataSpec, item_class: Tensor) -> Any:
    """A copy without values, for other items."""
    with torch.device("meta"):
        probe = copy.deepcopy(param).to("meta")
        probe.allocate(spec, item_class)
    return probe
