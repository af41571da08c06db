"""How much of the class information the class-wise and the contrastive loss keep under texture that all classes share.

    python examples/figures/contrast_signal.py --mnist data --background folder:path=cifar10-jpeg --out signal

writes `signal.json` and `signal.svg`. Nothing is condensed: 64 real images a class are compared with 10 others, once
with right classes and once with every class taken for the next, on 15 networks that were never trained.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
import torch

import dcf.data
from dcf.networks.convnet import ConvNetFactory
from dcf.networks.options import ConvNetConfig
from dcf_dcc.signal import class_signal

mpl.use("svg")
from matplotlib import pyplot as plt

SIGNALS = (1.0, 0.3, 0.1, 0.03)
BASE = "subset:base=(mnist:root={root}),classes=[0,1,2,3,4],per_class=1000,test_per_class=8"


def losses(spec, networks):
    """`(class-wise, contrastive)`, each with the loss of right classes and of swapped ones, averaged over networks."""
    real = dcf.data.load(spec)
    images = real.train.images(real.train.sample(74, torch.Generator().manual_seed(0)))
    found = []
    for seed in range(networks):
        net = ConvNetFactory(ConvNetConfig(width=32)).create(real.spec, seed)
        found.append(class_signal(net, images[:, :64], images[:, 64:]))
    return [
        {"correct": fmean(pair[k].correct for pair in found), "swapped": fmean(pair[k].swapped for pair in found)}
        for k in (0, 1)
    ]


def measure(args):
    rows = []
    for mode, seeds in (("fixed", range(args.backgrounds)), ("pool", range(1))):
        for seed in seeds:
            for signal in SIGNALS:
                base, tail = BASE.format(root=args.mnist), f"signal={signal},mode={mode},seed={seed}"
                apart, joint = losses(f"nuisance:base=({base}),background=({args.background}),{tail}", args.networks)
                rows.append({"mode": mode, "seed": seed, "signal": signal, "class_wise": apart, "contrastive": joint})
                print(rows[-1], flush=True)
    return rows


def shares(rows, mode, loss):
    """For each background, the share of the gap at full signal that is left at each signal."""
    gaps = {(r["seed"], r["signal"]): r[loss]["swapped"] - r[loss]["correct"] for r in rows if r["mode"] == mode}
    return [[gaps[seed, s] / gaps[seed, 1.0] for s in SIGNALS] for seed in sorted({seed for seed, _ in gaps})]


def draw(rows, path):
    mpl.rcParams["svg.hashsalt"] = "dcf"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    titles = {"fixed": "one background for all images", "pool": "a pool of 30 backgrounds"}
    for axis, (mode, title) in zip(axes, titles.items(), strict=True):
        for loss, colour in (("class_wise", "tab:blue"), ("contrastive", "tab:orange")):
            for number, line in enumerate(shares(rows, mode, loss)):
                label = loss.replace("_", "-") if number == 0 else None
                axis.plot(SIGNALS, [100 * v for v in line], "o-", color=colour, label=label, alpha=0.8)
        axis.set(xscale="log", title=title, xlabel="strength of the digit", ylim=(-12, 105))
        axis.set_xticks(SIGNALS, [str(s) for s in SIGNALS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("class information kept, percent")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", default="data")
    parser.add_argument("--background", default="cifar10")
    parser.add_argument("--backgrounds", type=int, default=4)
    parser.add_argument("--networks", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("signal"))
    args = parser.parse_args()
    table = args.out.with_suffix(".json")
    rows = json.loads(table.read_text()) if table.exists() else measure(args)
    table.write_text(json.dumps(rows, indent=1) + "\n")
    draw(rows, args.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
