"""Tangent kernels against brute force, and what the distance and the velocity promise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcf.networks.base import NetworkState
from dcf.networks.convnet import ConvNet
from dcf_dcc.kernels import epochs_of_kernels, kernel_distance, mean_velocity, probe, tangent_kernel, velocities


def network(norm="instance"):
    torch.manual_seed(0)
    return NetworkState(ConvNet((2, 8, 8), 3, width=4, depth=2, norm=norm).double())


def images():
    return torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobian(net, x):
    """`(n, K, P)`: one backward pass for each image and logit."""
    rows = []
    for image in x:
        logits = net(image[None])[0]
        each = [torch.autograd.grad(z, net.parameters(), retain_graph=True) for z in logits]
        rows.append(torch.stack([torch.cat([g.flatten() for g in one]) for one in each]))
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["sum", "trace"])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("batch", [2, 32])
def test_kernel_is_that_of_the_jacobian(mode, norm, batch):
    net, x = network(norm), images()
    found = tangent_kernel(net, x, mode, batch)
    net.eval()
    each = jacobian(net, x)
    expected = torch.einsum("ip,jp->ij", each.sum(1), each.sum(1))
    if mode == "trace":
        expected = torch.einsum("ikp,jkp->ij", each, each)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-9)


def test_kernel_of_single_precision_is_multiplied_in_double():
    net = network()
    expected = tangent_kernel(net, images())
    net.load({k: p.float() for k, p in net.params.items()})
    found = tangent_kernel(net, images().float())
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-4)


def test_kernel_is_taken_in_evaluation_mode_and_leaves_the_network_as_it_was():
    net = network("batch")
    buffers = {k: b.clone() for k, b in net.buffers.items()}
    first = tangent_kernel(net, images())
    assert all(module.training for module in net.module.modules())
    assert all(torch.equal(b, buffers[k]) for k, b in net.buffers.items())
    assert all(p.grad is None for p in net.parameters())
    alone = tangent_kernel(net, images()[:2])
    assert torch.allclose(first[:2, :2], alone)  # batch norms do not see the other images


def test_kernel_is_symmetric_and_positive():
    found = tangent_kernel(network(), images(), "trace")
    assert torch.allclose(found, found.T)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-9 * float(found.max())


# --- distance ---------------------------------------------------------------------------------------------------------


def gram(seed, n=4, rank=3):
    factor = torch.randn(n, rank, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.T


@settings(max_examples=50, deadline=None)
@given(a=st.integers(0, 10**6), b=st.integers(0, 10**6), scale=st.floats(1e-6, 1e6))
def test_distance_lies_between_zero_and_one_and_knows_no_scale(a, b, scale):
    first, second = gram(a), gram(b)
    found = kernel_distance(first, second)
    assert 0 <= found <= 1 + 1e-12
    assert kernel_distance(scale * first, second) == pytest.approx(found, abs=1e-9)
    assert kernel_distance(second, first) == pytest.approx(found, abs=1e-12)
    assert kernel_distance(first, scale * first) == pytest.approx(0, abs=1e-12)


def test_distance_of_kernels_that_share_nothing_is_one():
    first, second = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
    first[0, 0], second[2, 2] = 3.0, 0.1
    assert kernel_distance(first, second) == 1
    assert kernel_distance(first, torch.zeros(4, 4).double()) == 1


# --- velocity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "every", "until", "expected"),
    [
        (100, 1, 3, [0, 1, 2, 3]),
        (100, 2, 5, [0, 2, 4, 5]),
        (2, 1, 20, [0, 1, 2]),
        (2, 10, 20, [0, 2]),
        (1, 1, 1, [0, 1]),
    ],
)
def test_kernels_are_taken_from_the_start_to_the_last_epoch_of_interest(total, every, until, expected):
    assert epochs_of_kernels(total, every, until) == expected


def test_velocity_is_distance_over_time_and_its_mean_weights_epochs_alike():
    assert velocities([0.1, 0.4], [0, 1, 5]) == pytest.approx([0.1, 0.1])
    assert mean_velocity([0.1, 0.4], [0, 1, 5]) == pytest.approx(0.1)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(3, [1, 1, 1]), (7, [3, 2, 2]), (2, [1, 1, 0]), (100, [5, 4, 6])])
def test_probe_is_balanced_as_far_as_the_classes_allow(n, expected):
    labels = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2])
    chosen = probe(labels, 3, n, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[chosen], minlength=3).tolist() == expected
    assert len(set(chosen.tolist())) == len(chosen)


def test_probe_depends_on_the_generator_alone():
    labels = torch.arange(50) % 5
    first, again, other = (probe(labels, 5, 10, torch.Generator().manual_seed(s)).tolist() for s in (0, 0, 1))
    assert first == again != other
