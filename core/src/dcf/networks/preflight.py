"""A try of the second derivative on two images, so that a run is refused before it starts rather than within."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from dcf.errors import UsageError
from dcf.networks.base import NetworkState
from dcf.seeding import generator
from dcf.types import DataSpec

__all__ = ["missing_second_derivative", "preflight_double_backward"]

_MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")
_ADVICE = (
    "choose another network, such as 'convnet' or 'resnet18', or a matcher that needs no double backward, "
    "such as one that compares embeddings"
)


def preflight_double_backward(state: NetworkState, spec: DataSpec) -> None:
    """Differentiate the squared norm of the weight gradient of two random images with respect to these images.

    Only whether this derivative exists is asked, not its value: batch norms over two images can blow up where those
    over a real batch do not.

    Args:
        state: The network; neither weights nor buffers change.
        spec: What the images look like.

    Raises:
        UsageError: Naming the operation that has no second derivative, or repeating torch's reason.
    """
    images = _images(state, spec)
    try:
        _second_order(state, images, spec.num_classes)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise UsageError(_explain(state, error)) from error


def _images(state: NetworkState, spec: DataSpec) -> Tensor:
    weight = next(iter(state.params.values()))
    images = torch.randn(2, *spec.shape, generator=generator(0, "preflight"))
    return images.to(weight.device, weight.dtype).requires_grad_()


def _second_order(state: NetworkState, images: Tensor, num_classes: int) -> None:
    buffers = {name: buffer.clone() for name, buffer in state.buffers.items()}
    logits = functional_call(state.module, ({**state.params}, buffers), (images,))
    labels = torch.arange(len(images), device=images.device) % num_classes
    loss = F.cross_entropy(logits, labels)
    grads = torch.autograd.grad(loss, state.parameters(), create_graph=True, materialize_grads=True)
    norm = torch.stack([g.square().sum() for g in grads]).sum()
    torch.autograd.grad(norm, images, materialize_grads=True)


def missing_second_derivative(message: str) -> str | None:
    """The operation that torch's `message` says cannot be differentiated again, by its plain name, or None.

    Example:
        >>> missing_second_derivative("derivative for aten::hardsigmoid_backward is not implemented")
        'hardsigmoid'
    """
    found = _MISSING.search(message)
    if found is None:
        return None
    operation = found.group(1).removesuffix("_backward").strip("_")
    return "fused attention" if "attention" in operation else operation


def _explain(state: NetworkState, error: Exception) -> str:
    network = state.module.label
    operation = missing_second_derivative(str(error))
    if operation is not None:
        return f"network '{network}' cannot be differentiated twice: '{operation}' has no second derivative; {_ADVICE}"
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return f"network '{network}' cannot be differentiated twice on these images: {reason}; {_ADVICE}"
