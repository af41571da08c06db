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
pytest.importorskip("dcf_haba")

CASES = Path(__file__).parent / "parity" / "cases"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write(path, kind, hyper, tensors, net=None, extra=None):
    """A case file; inputs in single precision, outputs in double, as the recorded ones."""
    meta = {"format": 1, "case": path.stem, "kind": kind, "dtype": "float64", "hyper": hyper, "net": net or {}}
    meta |= {"tolerance": {"rel": 1e-8, "floor": 1e-6}, **(extra or {})}
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
            # Not by a root of squares, whose derivative is NaN where a gradient is exactly zero.
            total = total + 1 - (a @ b) / (a.norm() * b.norm() + 1e-6)
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


# --- haba-decode ----------------------------------------------------------------------------------------------------

ORDER = ["scale", "shift", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]


def hallucinated(basis, named):
    """One image from one hallucinator: sums of shifted planes, with no convolution."""
    weight, back = named["encoder.weight"], named["decoder.weight"]
    k, (height, width) = weight.shape[-1], basis.shape[1:]
    inner = (height - k + 1, width - k + 1)
    styled = named["encoder.bias"][:, None, None].expand(-1, *inner)
    for dy in range(k):
        for dx in range(k):
            seen = basis[:, dy : dy + inner[0], dx : dx + inner[1]]
            styled = styled + torch.einsum("mc,chw->mhw", weight[:, :, dy, dx], seen)
    styled = styled * named["scale"][0] + named["shift"][0]
    image = named["decoder.bias"][:, None, None].expand(-1, height, width)
    for dy in range(k):
        for dx in range(k):
            part = torch.einsum("mo,mhw->ohw", back[:, :, dy, dx], styled)
            image = image + F.pad(part, (dx, k - 1 - dx, dy, k - 1 - dy))
    return image


@pytest.mark.parametrize(
    ("channels", "middle", "out", "k", "size", "styles", "order"),
    [
        (1, 3, 3, 3, (8, 8), 5, ORDER),
        (3, 5, 3, 1, (6, 6), 1, ORDER[::-1]),
        (1, 1, 1, 5, (7, 7), 3, ORDER),
        (2, 4, 2, 2, (5, 9), 2, ORDER[3:] + ORDER[:3]),
    ],
)
def test_hallucinators_of_any_size(channels, middle, out, k, size, styles, order, tmp_path):
    inner = (1, middle, size[0] - k + 1, size[1] - k + 1)
    shapes = {
        "scale": inner, "shift": inner, "encoder.weight": (middle, channels, k, k), "encoder.bias": (middle,),
        "decoder.weight": (middle, out, k, k), "decoder.bias": (out,),
    }  # fmt: skip
    tensors = {"basis": draw(4, channels, *size)}
    given = [
        {name: draw(*shape, seed=7 * s + i) for i, (name, shape) in enumerate(shapes.items())} for s in range(styles)
    ]
    leaves = [{name: t.double().requires_grad_() for name, t in one.items()} for one in given]
    basis = tensors["basis"].double().requires_grad_()
    images = torch.stack([torch.stack([hallucinated(b, one) for b in basis]) for one in leaves])
    tensors |= {"upstream": draw(*images.shape, seed=99), "out/images": images}
    learned = [basis, *(one[name] for one in leaves for name in order)]
    gradients = torch.autograd.grad(images, learned, tensors["upstream"].double())
    tensors["out/dbasis"] = gradients[0]
    for s in range(styles):
        for number, name in enumerate(order):
            tensors[f"style/{s:03d}/{number:03d}"] = given[s][name]
            tensors[f"out/dstyle/{s:03d}/{number:03d}"] = gradients[1 + s * len(order) + number]
    hyper = {"in_channel": channels, "mid_channel": middle, "out_channel": out, "kernel_size": k, "n_style": styles}
    path = write(tmp_path / "case.safetensors", "haba-decode", hyper, tensors, extra={"style_params": order})
    assert check(path).ok, check(path).line()


# --- haba-loss ------------------------------------------------------------------------------------------------------


def contrasted(embeddings, labels, temperature):
    """Anchor by anchor."""
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    classes, total = labels.tolist() * 2, 0.0
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        scores = {j: unit[i] @ unit[j] / temperature for j in others}
        bottom = torch.logsumexp(torch.stack(list(scores.values())), 0)
        alike = [scores[j] - bottom for j in others if classes[j] == classes[i]]
        total = total - torch.stack(alike).mean()
    return total / len(unit)


@pytest.mark.parametrize(
    ("n", "classes", "weights", "temperatures"),
    [
        (1, 2, (0.1, 0.1, 1.0, 0.1), (0.07, 0.07)),
        (5, 3, (2.0, 0.0, 0.5, 3.0), (0.5, 0.5)),
        (4, 1, (1, 1, 0, 1), (0.1, 0.07)),
    ],
)
def test_losses_of_hallucinators_with_any_weights(n, classes, weights, temperatures, tmp_path):
    club, likely, cls, contrast = weights
    hyper = {"lambda_adversarial": club, "lambda_likelihood": likely, "lambda_cls": cls, "lambda_contrast": contrast}
    hyper |= {"temperature": temperatures[0], "base_temperature": temperatures[1]}
    tensors = {
        "embeddings": draw(2 * n, 6),
        "logits": draw(2 * n, classes, seed=1),
        "labels": torch.arange(n) % classes,
    }
    embeddings, logits = (tensors[name].double().requires_grad_() for name in ("embeddings", "logits"))
    cosines = torch.stack(
        [embeddings[i] @ embeddings[n + i] / embeddings[i].norm() / embeddings[n + i].norm() for i in range(n)]
    )
    picked = torch.stack([logits[i].log_softmax(0)[tensors["labels"][i % n]] for i in range(2 * n)])
    found = {
        "adversarial": club * ((cosines + 1) / 2).mean(),
        "likelihood": likely * ((1 - cosines) / 2).mean(),
        "cls": -cls * picked.mean(),
        "contrast": contrast * temperatures[0] / temperatures[1]
        * contrasted(embeddings, tensors["labels"], temperatures[0]),
    }  # fmt: skip
    found["extractor"] = found["cls"] + found["likelihood"] + found["contrast"]
    (apart,) = torch.autograd.grad(found["adversarial"], embeddings, retain_graph=True)
    rest = torch.autograd.grad(found["extractor"], [embeddings, logits])
    tensors |= {f"out/{name}": value for name, value in found.items()}
    tensors |= {"out/d_adversarial_d_embeddings": apart}
    tensors |= {"out/d_extractor_d_embeddings": rest[0], "out/d_extractor_d_logits": rest[1]}
    verdict = check(write(tmp_path / "case.safetensors", "haba-loss", hyper, tensors))
    assert verdict.ok, verdict.line()
