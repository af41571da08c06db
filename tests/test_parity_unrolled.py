"""Cases of differentiated trainings with other hyper-parameters than the recorded ones, against plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from tests.parity.compare import check
from torch.nn import functional as F

pytest.importorskip("dcf_idc")
pytest.importorskip("dcf_haba")
pytest.importorskip("dcf_mtt")
pytest.importorskip("dcf_bptt")
pytest.importorskip("dcf_memory")

from tests.test_parity_variants import blocks_and_logits, draw, enlarged, recorded, write


def whole(seed, *shape):
    return torch.randint(shape[0], shape[1:], generator=torch.Generator().manual_seed(seed))


def named(net, tensors, prefix):
    """The recorded weights by name, in double precision, as leaves."""
    return {name: tensors[f"{prefix}/{i:03d}"].double().requires_grad_() for i, name in enumerate(net["params"])}


def logits(x, weights):
    return blocks_and_logits(weights, x)[1]


def trained(weights, x, y, steps, lrs, momentum=0.0, apart=False, network=logits):
    """Weights after plain SGD with the graph of all steps; `apart` cuts it between them, as TESLA does."""
    weights, velocity = dict(weights), dict.fromkeys(weights, 0.0)
    for step, lr in zip(steps, lrs, strict=True):
        at = {name: w.detach().requires_grad_() for name, w in weights.items()} if apart else weights
        chances = network(x[step], at).log_softmax(1)
        loss = -(chances * y[step]).sum() / len(step)
        slopes = torch.autograd.grad(loss, list(at.values()), create_graph=True)
        velocity = {name: momentum * velocity[name] + slope for name, slope in zip(weights, slopes, strict=True)}
        weights = {name: w - lr * velocity[name] for name, w in weights.items()}
    return weights


def verdict(path, kind, hyper, case, net=None):
    found = check(write(path / "case.safetensors", kind, hyper, case, net))
    assert found.ok, found.line()


# --- mtt-loss -------------------------------------------------------------------------------------------------------


def chunks(images, size, steps):
    """Permutations and the images of each step: the last chunk of each is taken first."""
    orders, found = [], []
    while len(found) < steps:
        order = torch.randperm(images, generator=torch.Generator().manual_seed(len(orders)))
        parts = [order[i : i + size].clone() for i in range(0, images, size)]
        orders.append(order)
        while parts and len(found) < steps:
            found.append(parts.pop())
    return orders, found


@pytest.mark.parametrize(("method", "factor"), [("mtt", 1.0), ("tesla", 1.0), ("tesla", 0.5)])
@pytest.mark.parametrize(
    ("steps", "size", "lr", "soft"), [(1, 9, 0.3, False), (2, 9, 0.01, True), (7, 2, 0.1, True), (5, 8, 0.2, False)]
)
def test_trajectories_of_any_length_and_batch(method, factor, steps, size, lr, soft, tmp_path):
    net, tensors = recorded("mtt-loss_minibatch")
    start, target = named(net, tensors, "start"), named(net, tensors, "target")
    tensors = {k: t for k, t in tensors.items() if not k.startswith(("batch/", "perm/"))}
    orders, found = chunks(9, size, steps)
    labels = draw(9, 3, seed=3).softmax(1) if soft else tensors["labels"]
    y = labels.double() if soft else F.one_hot(labels, 3).double()
    syn, rate = tensors["syn"].double().requires_grad_(), torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    ended = trained(start, syn, y, found, [rate] * steps, apart=method == "tesla")
    gaps = [sum(((a[k] - target[k]) ** 2).sum() for k in target) for a in (ended, start)]
    loss = gaps[0] / gaps[1].detach()
    dsyn, dlr = torch.autograd.grad(loss, [syn, rate])
    hyper = {"steps": steps, "batch_syn": size, "ipc": 3, "num_classes": 3, "dsa": False, "soft_labels": soft}
    hyper |= {"method": method, "image_gradient_factor": factor}
    out = {
        "student": torch.cat([w.reshape(-1) for w in ended.values()]),
        "loss": loss,
        "dsyn": factor * dsyn,
        "dlr": dlr,
    }
    case = {**tensors, "labels": labels, "lr": rate, **{f"out/{k}": t for k, t in out.items()}}
    case |= {f"perm/{i:03d}": order for i, order in enumerate(orders)}
    case |= {f"batch/{i:03d}": batch for i, batch in enumerate(found)}
    verdict(tmp_path, "mtt-loss", hyper, case, net)


# --- rtp-decode, rtp-bptt -------------------------------------------------------------------------------------------


def recalled(addresses, bases, side):
    """Mixtures of bases, one image at a time, each enlarged afterwards."""
    found = []
    for row in addresses:
        mixed = sum(weight * basis for weight, basis in zip(row, bases, strict=True))
        found.append(enlarged(mixed, side))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("count", "classes", "ipc", "channels", "small", "down"),
    [(1, 2, 1, 1, 4, 1), (5, 3, 2, 3, 4, 2), (3, 1, 4, 1, 3, 4), (2, 2, 3, 2, 2, 3), (4, 2, 2, 1, 1, 8)],
)
def test_memory_of_any_shape(count, classes, ipc, channels, small, down, tmp_path):
    bases, addresses = draw(count, channels, small, small), draw(classes, ipc, count, seed=1)
    upstream = draw(classes * ipc, channels, small * down, small * down, seed=2)
    b, a = bases.double().requires_grad_(), addresses.double().requires_grad_()
    images = recalled(a.flatten(0, 1), b, small * down)
    db, da = torch.autograd.grad((images * upstream).sum(), [b, a])
    hyper = {"n_basis": count, "ipc": ipc, "num_classes": classes, "downsample_scale": down, "size": small * down}
    labels = torch.tensor([c for c in range(classes) for _ in range(ipc)])
    case = {"bases": bases, "addresses": addresses, "upstream": upstream, "out/images": images, "out/labels": labels}
    verdict(tmp_path, "rtp-decode", hyper, {**case, "out/dbases": db, "out/daddresses": da})


@pytest.mark.parametrize(
    ("steps", "momentum", "lr", "count", "ipc", "down"),
    [(1, 0.9, 0.05, 4, 2, 1), (3, 0.0, 0.2, 2, 3, 2), (6, 0.5, 0.1, 5, 1, 4), (4, 0.99, 0.02, 1, 2, 2)],
)
def test_training_on_any_memory_with_any_momentum(steps, momentum, lr, count, ipc, down, tmp_path):
    net, tensors = recorded("rtp-bptt_a")
    weights = named(net, tensors, "net")
    bases, addresses = draw(count, 3, 16 // down, 16 // down), draw(3 * ipc, count, seed=1)
    b, a = bases.double().requires_grad_(), addresses.double().requires_grad_()
    batches = [whole(i, 3 * ipc, 4) for i in range(steps)]  # some images twice in a step
    y = F.one_hot(torch.arange(3 * ipc) // ipc, 3).double()
    ended = trained(weights, recalled(a, b, 16), y, batches, [lr] * steps, momentum)
    chances = logits(tensors["real"].double(), ended).log_softmax(1)
    loss = -chances[torch.arange(9), tensors["real_labels"]].mean()
    db, da, *dnet = torch.autograd.grad(loss, [b, a, *weights.values()])
    case = {k: t for k, t in tensors.items() if not k.startswith("batch/")} | {"bases": bases, "addresses": addresses}
    case |= {"out/loss": loss, "out/dbases": db, "out/daddresses": da}
    case |= {f"batch/{i:03d}": batch for i, batch in enumerate(batches)}
    case |= {f"out/dnet/{i:03d}": slope for i, slope in enumerate(dnet)}
    hyper = {"inner_steps": steps, "lr": lr, "momentum": momentum, "n_basis": count, "ipc": ipc, "num_classes": 3}
    verdict(tmp_path, "rtp-bptt", {**hyper, "n_per_class": 1, "downsample_scale": down}, case, net)


# --- dd-step --------------------------------------------------------------------------------------------------------


def lenet(x, w):
    for conv, pad in (("conv1", 2), ("conv2", 0)):
        x = F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=pad).clamp(min=0)
        rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
        x = torch.maximum(rows[..., ::2], rows[..., 1::2])
    x = x.flatten(1)
    for layer in ("fc1", "fc2"):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clamp(min=0)
    return x @ w["fc3.weight"].T + w["fc3.bias"]


@pytest.mark.parametrize(("steps", "epochs", "lowest"), [(1, 1, -2.0), (2, 3, -4.0), (4, 2, -30.0)])
def test_programs_of_any_length(steps, epochs, lowest, tmp_path):
    net, tensors = recorded("dd-step_a")
    weights = named(net, tensors, "net")
    raw = torch.linspace(lowest, -1.5, steps * epochs, dtype=torch.float64).requires_grad_()
    lrs = torch.log(1 + raw.exp()) if lowest > -20 else torch.log1p(raw.exp())
    syn = [draw(3, 1, 28, 28, seed=i) for i in range(steps)]
    images = [x.double().requires_grad_() for x in syn]
    y = F.one_hot(tensors["labels"], 3).double().repeat(steps, 1)
    places = [torch.arange(3 * (s % steps), 3 * (s % steps) + 3) for s in range(steps * epochs)]
    ended = trained(weights, torch.cat(images), y, places, lrs, network=lenet)
    chances = lenet(tensors["real"].double(), ended).log_softmax(1)
    loss = -chances[torch.arange(8), tensors["real_labels"]].mean()
    d_raw, d_lrs, *dsyn = torch.autograd.grad(loss, [raw, lrs, *images])
    flat = torch.cat([w.detach().reshape(-1) for w in ended.values()])
    case = {k: t for k, t in tensors.items() if not k.startswith("syn/")} | {"raw_lrs": raw}
    case |= {f"syn/{i:03d}": x for i, x in enumerate(syn)} | {f"out/dsyn/{i:03d}": g for i, g in enumerate(dsyn)}
    case |= {"out/loss": loss, "out/d_raw_lrs": d_raw, "out/d_lrs": d_lrs}
    case |= {"out/final_params_norm": flat.square().sum().sqrt(), "out/final_params_sum": flat.sum()}
    hyper = {"distill_steps": steps, "distill_epochs": epochs, "images_per_class_per_step": 1, "num_classes": 3}
    verdict(tmp_path, "dd-step", hyper, case, net)


# --- zca ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "shape", "eps", "still"), [(2, (1, 3, 3), 0.1, 0), (7, (3, 4, 2), 0.1, 3), (200, (2, 3, 3), 1e-3, 0)]
)
def test_whitening_of_any_images(n, shape, eps, still, tmp_path):
    images, test = (torch.rand(k, *shape, generator=torch.Generator().manual_seed(k)) for k in (n, 5))
    images.flatten(1)[:, :still] = 0.5  # pixels that never change
    rows = images.double().flatten(1)
    mean = sum(rows) / n
    spread = sum(torch.outer(row - mean, row - mean) for row in rows) / (n - 1)
    # Newton's iteration for the root and its inverse, in place of the eigenvalues.
    wanted = spread + eps * torch.eye(math.prod(shape), dtype=torch.float64)
    scale = wanted.norm()
    root, inverse = wanted / scale, torch.eye(len(wanted), dtype=torch.float64)
    for _ in range(60):
        half = (3 * torch.eye(len(wanted), dtype=torch.float64) - inverse @ root) / 2
        root, inverse = root @ half, half @ inverse
    root, inverse = root * scale.sqrt(), inverse / scale.sqrt()
    white = ((rows - mean) @ inverse).view(images.shape)
    out = {"mean": mean, "matrix": inverse, "inverse_matrix": root, "images": white, "restored": images.double()}
    out["test_images"] = ((test.double().flatten(1) - mean) @ inverse).view(test.shape)
    case = {"images": images, "test_images": test, **{f"out/{k}": t for k, t in out.items()}}
    verdict(tmp_path, "zca", {"eps": eps, "unbiased": True}, case)
