"""Cases of other hyper-parameters than the recorded ones, whose outputs slow and independent loops give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.parity.compare import check
from torch.nn import functional as F

pytest.importorskip("dcf_idc")

CASES = Path(__file__).parent / "parity" / "cases"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(path, kind, hyper, tensors, net=None):
    """A case file; inputs in single precision, outputs in double, as the recorded ones."""
    meta = {"format": 1, "case": path.stem, "kind": kind, "dtype": "float64", "hyper": hyper, "net": net or {}}
    meta["tolerance"] = {"rel": 1e-8, "floor": 1e-6}
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, path, {"case": json.dumps(meta)})
    return path


# --- idc-decode -----------------------------------------------------------------------------------------------------


def enlarged(tile, size):
    """Bilinear enlargement to `size` x `size` as two products with matrices of weights."""
    return weights(tile.shape[-2], size) @ tile @ weights(tile.shape[-1], size).T


def weights(small, size):
    table = torch.zeros(size, small, dtype=torch.float64)
    for i in range(size):
        place = min(max((i + 0.5) * small / size - 0.5, 0.0), small - 1.0)
        left = min(int(place), max(small - 2, 0))
        table[i, left] += 1 - (place - left)
        table[i, min(left + 1, small - 1)] += place - left
    return table


def single(data, labels, f, size):
    height, width = data.shape[-2:]
    data = F.pad(data, (0, -width % f, 0, -height % f), value=0.5)
    h, w = data.shape[-2] // f, data.shape[-1] // f
    tiles = [data[..., r * h : (r + 1) * h, c * w : (c + 1) * w] for r in range(f) for c in range(f)]
    return [enlarged(x, size) for tile in tiles for x in tile], labels.tolist() * f**2


def decoded(data, labels, hyper):
    """Images and labels, by the words of the format: `single`, `multi` and `bound`."""
    f, size, kind = hyper["factor"], hyper["size"], hyper["decode_type"]
    if kind == "single":
        return single(data, labels, f, size)
    images, found = [], []
    if kind == "multi":
        parts = [(slice(None), k) for k in range(1, f + 1)]
    else:
        parts, first, done = [], 0, 0
        left, room = len(data), hyper["bound"] - len(data)
        for k in range(f, 0, -1):
            n = left if k == 1 else min(room // k**2, left)
            parts.append((slice(first, first + n), k))
            first, left, done = first + n, left - n, done + n * k**2
            room = hyper["bound"] - done - left
            if not left:
                break
    for chosen, k in parts:
        more, theirs = single(data[chosen], labels[chosen], k, size)
        images, found = images + more, found + theirs
    return images, found


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(
    ("factor", "kind", "bound"),
    [
        (1, "single", 128), (2, "single", 128), (3, "single", 128), (4, "single", 128),
        (1, "multi", 128), (3, "multi", 128),
        (1, "bound", 128), (2, "bound", 9), (3, "bound", 5), (3, "bound", 20), (3, "bound", 32), (3, "bound", 128),
    ],
)  # fmt: skip
def test_tiles_of_any_factor_bound_and_size(factor, kind, bound, size, tmp_path):
    hyper = {"factor": factor, "decode_type": kind, "bound": bound, "size": size, "pad_value": 0.5}
    data, labels = draw(5, 2, size, size), torch.tensor([3, 0, 1, 1, 2])
    leaf = data.double().requires_grad_()
    images, theirs = decoded(leaf, labels, hyper)
    images = torch.stack(images)
    upstream = draw(*images.shape, seed=1)
    (gradient,) = torch.autograd.grad(images, leaf, upstream.double())
    tensors = {"data": data, "labels": labels, "upstream": upstream, "out/images": images, "out/ddata": gradient}
    tensors["out/labels"] = torch.tensor(theirs)
    verdict = check(write(tmp_path / "case.safetensors", "idc-decode", hyper, tensors))
    assert verdict.ok, verdict.line()


def test_tiles_may_become_images_of_another_size(tmp_path):
    hyper = {"factor": 2, "decode_type": "single", "size": 8}
    data, labels = draw(2, 1, 6, 6), torch.tensor([0, 1])
    leaf = data.double().requires_grad_()
    images = torch.stack(single(leaf, labels, 2, 8)[0])
    upstream = draw(*images.shape, seed=1)
    (gradient,) = torch.autograd.grad(images, leaf, upstream.double())
    tensors = {"data": data, "labels": labels, "upstream": upstream, "out/images": images, "out/ddata": gradient}
    verdict = check(write(tmp_path / "case.safetensors", "idc-decode", hyper, tensors))
    assert verdict.ok, verdict.line()


# --- idc-match ------------------------------------------------------------------------------------------------------


def recorded(name):
    with safe_open(CASES / f"{name}.safetensors", "pt") as file:
        meta = json.loads(file.metadata()["case"])
        return meta["net"], {k: file.get_tensor(k) for k in file.keys() if not k.startswith("out/")}  # noqa: SIM118


def blocks_and_logits(weights, x):
    """The outputs of each block and the logits of the recorded network, by hand."""
    found = []
    for block in ("1", "2", "3"):
        x = F.conv2d(x, weights[f"conv{block}.weight"], weights[f"conv{block}.bias"], padding=1)
        mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * weights[f"norm{block}.weight"][:, None, None] + weights[f"norm{block}.bias"][:, None, None]
        x = x.clamp(min=0)
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        found.append(x)
    return found, x.flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"]


def distance(x, y, metric):
    total = 0.0
    for a, b in zip(x, y, strict=True):  # rows
        a, b = a.reshape(-1), b.reshape(-1)
        if metric == "mse":
            total = total + ((a - b) ** 2).sum()
        elif metric == "l1":
            total = total + (a - b).abs().sum()
        elif metric == "l1_mean":
            total = total + (a - b).abs().sum() / len(a)
        else:
            total = total + 1 - (a @ b) / ((a @ a).sqrt() * (b @ b).sqrt() + 1e-6)
    return total


def matched(hyper, weights, tensors, syn):
    """The loss of a case, one weight or block at a time."""
    real = tensors["real"].double()
    if hyper["match"] == "feat":
        last = hyper["idx_from"] if hyper["idx_to"] == -1 else hyper["idx_to"]
        theirs, ours = (blocks_and_logits(weights, x)[0] for x in (real, syn))
        picked = range(hyper["idx_from"], last + 1)
        return sum(distance(theirs[i].detach().mean(0), ours[i].mean(0), hyper["metric"]) for i in picked)
    losses = [
        F.cross_entropy(blocks_and_logits(weights, x)[1], tensors[y])
        for x, y in ((real, "real_labels"), (syn, "syn_labels"))
    ]
    total = 0.0
    for weight in weights.values():
        if (weight.ndim == 1 and not hyper["bias"]) or (weight.ndim == 2 and not hyper["fc"]):
            continue
        theirs, ours = (torch.autograd.grad(loss, weight, create_graph=True)[0] for loss in losses)
        total = total + distance(theirs.detach(), ours, hyper["metric"])
    return total


@pytest.mark.parametrize("metric", ["mse", "l1", "l1_mean", "cos"])
@pytest.mark.parametrize(
    "rest",
    [
        {"match": "grad", "bias": False, "fc": False}, {"match": "grad", "bias": True, "fc": False},
        {"match": "grad", "bias": False, "fc": True}, {"match": "grad", "bias": True, "fc": True},
        {"match": "feat", "idx_from": 0, "idx_to": -1}, {"match": "feat", "idx_from": 2, "idx_to": -1},
        {"match": "feat", "idx_from": 0, "idx_to": 2}, {"match": "feat", "idx_from": 1, "idx_to": 1},
    ],
    ids=lambda rest: "-".join(map(str, rest.values())),
)  # fmt: skip
def test_matching_with_any_metric_and_choice(metric, rest, tmp_path):
    hyper = {"bias": False, "fc": False, "idx_from": 0, "idx_to": -1, "eps": 1e-6, **rest, "metric": metric}
    net, tensors = recorded("idc-match_grad_mse")
    names = {name: tensors[f"net/{i:03d}"].double().requires_grad_() for i, name in enumerate(net["params"])}
    syn = tensors["syn"].double().requires_grad_()
    loss = matched(hyper, names, tensors, syn)
    (gradient,) = torch.autograd.grad(loss, syn)
    case = {**tensors, "out/loss": loss, "out/dsyn": gradient}
    verdict = check(write(tmp_path / "case.safetensors", "idc-match", hyper, case, net))
    assert verdict.ok, verdict.line()
