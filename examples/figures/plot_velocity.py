"""Draw the curves of the evaluator `kernel-velocity`.

dcf evaluate RUN... --evaluator kernel-velocity:until=60,every=5 --baselines random --out dc.json
python examples/figures/plot_velocity.py "class-wise=dc.json" "contrastive=dcc.json" --out velocity.svg
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt


def add(axis, curve, label, **style):
    """One curve at the middle of each interval, with one standard deviation about it."""
    middle = [(a + b) / 2 for a, b in zip(curve["epochs"], curve["epochs"][1:], strict=False)]
    value, spread = curve["velocity"], curve["velocity_std"]
    axis.plot(middle, value, "o-", label=label, **style)
    low, high = ([v + sign * s for v, s in zip(value, spread, strict=True)] for sign in (-1, 1))
    axis.fill_between(middle, low, high, alpha=0.2, **style)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", nargs="+", help="LABEL=FILE.json")
    parser.add_argument("--out", type=Path, default=Path("velocity.svg"))
    args = parser.parse_args()
    mpl.rcParams["svg.hashsalt"] = "dcf"
    figure, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    random = None
    for text, colour in zip(args.report, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=False):
        label, _, path = text.rpartition("=")
        curves = json.loads(Path(path).read_text())["extra"]["curves"]
        add(axis, curves["sets"], label or path, color=colour)
        random = curves.get("random", random)
    if random is not None:
        add(axis, random, "random images", color="0.5")
    axis.set(xlabel="epoch", ylabel="kernel velocity, 1 / epoch")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
