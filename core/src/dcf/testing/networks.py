"""Checks of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dcf.errors import UsageError
from dcf.matching import class_gradients
from dcf.networks.base import NetworkState
from dcf.testing.fakes import fake_spec
from dcf.testing.subject import Check, CheckSkipped, Subject, close, require, same
from dcf.types import DataSpec

__all__ = ["CHECKS", "exercise"]

_SIZES = ((3, 8, 8), (3, 32, 32), (3, 64, 64))


def create(subject: Subject, seed: int = 0, device: torch.device | str = "cpu") -> tuple[NetworkState, DataSpec]:
    """A fresh network, for the smallest of a few image sizes that it takes."""
    factory = subject.make()
    for shape in _SIZES:
        spec = fake_spec(shape=shape)
        try:
            return factory.create(spec, seed, "check", device=device), spec
        except UsageError as error:
            reason = error
    raise CheckSkipped(f"it takes none of the tested image sizes: {reason}")


def images_of(spec: DataSpec, n: int = 4) -> Tensor:
    """Random images."""
    return torch.randn(n, *spec.shape, generator=torch.Generator().manual_seed(0))


def exercise(subject: Subject, seed: int, device: torch.device) -> list[Tensor]:
    """Initial weights, and logits in training mode."""
    net, spec = create(subject, seed, device)
    with torch.no_grad():
        logits = net(images_of(spec).to(device))
    return [*(w.detach() for w in net.parameters()), logits]


def check_seed_decides_the_weights(subject: Subject) -> None:
    """The same seed gives the same weights, another one others."""
    first, second, other = (list(create(subject, seed)[0].params.values()) for seed in (0, 0, 1))
    require(same(first, second), "the same seed gives other weights")
    require(not same(first, other), "another seed gives the same weights")


def check_logits_and_embedding_fit(subject: Subject) -> None:
    """Logits are `(N, K)`, the embedding `(N, F)`, and the classifier maps one to the other."""
    net, spec = create(subject)
    net.eval()
    x = images_of(spec)
    with torch.no_grad():
        logits, embedding = net(x), net.embed(x)
        again = torch.func.functional_call(net.module.classifier, _classifier(net), (embedding,))
    require(tuple(logits.shape) == (4, spec.num_classes), f"expected (4, 2) logits, got {tuple(logits.shape)}")
    require(embedding.ndim == 2 and len(embedding) == 4, f"expected (4, F), got {tuple(embedding.shape)}")
    require(close([logits], [again]), "logits are not what the classifier makes of the embedding")


def check_blocks_can_be_matched(subject: Subject) -> None:
    """Each block gives one finite output an image, through which a gradient reaches the images."""
    net, spec = create(subject)
    net.freeze_batch_norms()
    x = images_of(spec).requires_grad_()
    blocks = net.blocks(x)
    require(len(blocks) > 0, "blocks() is empty")
    for block in blocks:
        require(len(block) == 4, f"expected 4 images in each block, got {tuple(block.shape)}")
        require(bool(torch.isfinite(block).all()), "a block gives NaN or infinite values")
        (grad,) = torch.autograd.grad(block.sum(), x, retain_graph=True, allow_unused=True)
        require(grad is not None, "no gradient reaches the images through a block")


def _classifier(net: NetworkState) -> dict[str, Tensor]:
    prefix = "classifier."
    return {k.removeprefix(prefix): v for k, v in net.params.items() if k.startswith(prefix)}


def check_network_is_functional(subject: Subject) -> None:
    """It is a function of the weights it is given: other weights act, and a forward pass changes none."""
    net, spec = create(subject)
    net.freeze_batch_norms()
    x = images_of(spec)
    before = [w.detach().clone() for w in net.parameters()]
    with torch.no_grad():
        first, second = net(x), net(x)
        shifted = net(x, {k: v + 0.1 for k, v in net.params.items()})
    require(same(first, second), "two forward passes give different logits")
    require(same(before, [w.detach() for w in net.parameters()]), "a forward pass changes weights")
    require(not close([first], [shifted]), "other weights give the same logits")


def check_every_weight_learns(subject: Subject) -> None:
    """A loss reaches every weight with a finite gradient."""
    net, spec = create(subject)
    loss = torch.nn.functional.cross_entropy(net(images_of(spec)), torch.tensor([0, 1, 0, 1]))
    for name, grad in zip(net.params, torch.autograd.grad(loss, net.parameters(), allow_unused=True), strict=True):
        require(grad is not None, f"no gradient reaches '{name}'")
        require(grad is None or bool(torch.isfinite(grad).all()), f"the gradient of '{name}' is NaN or infinite")


def check_vmap_equals_a_loop(subject: Subject) -> None:
    """Gradients of two classes in one call under `torch.vmap` are those of one class after the other."""
    net, images, labels = _two_classes(subject)
    loop = class_gradients(net, images, labels, strategy="loop")
    together = class_gradients(net, images, labels, strategy="vmap")
    require(close(together, loop, rtol=1e-3, atol=1e-4), "gradients under vmap differ from those of a loop")


def check_second_derivative(subject: Subject) -> None:
    """The gradient in the weights can be differentiated in the images: finite, and not zero."""
    net, images, labels = _two_classes(subject)
    images.requires_grad_()
    grads = class_gradients(net, images, labels, create_graph=True, strategy="loop")
    (second,) = torch.autograd.grad(torch.stack([g.square().sum() for g in grads]).sum(), images)
    require(bool(torch.isfinite(second).all()), "the second derivative is NaN or infinite")
    require(bool(second.abs().sum() > 0), "the second derivative is zero")


def _two_classes(subject: Subject) -> tuple[NetworkState, Tensor, Tensor]:
    """A network with frozen batch norms, `(2, 2, C, H, W)` images and their labels."""
    net, spec = create(subject)
    net.freeze_batch_norms()
    return net, images_of(spec).view(2, 2, *spec.shape), torch.tensor([[0, 0], [1, 1]])


CHECKS: Sequence[Check] = (
    check_seed_decides_the_weights,
    check_logits_and_embedding_fit,
    check_blocks_can_be_matched,
    check_network_is_functional,
    check_every_weight_learns,
    check_vmap_equals_a_loop,
    check_second_derivative,
)
