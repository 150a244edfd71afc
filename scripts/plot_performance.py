#!/usr/bin/env python3
"""Draws the pictures of docs/performance.md from files of measurements, as PNG.

  scripts/plot_performance.py docs/measurements/h200.json docs/plots

The file holds what hadal-model-bench --json printed, one object for each type of weights, the peers'
rates and the floors, with the card they were taken on. Needs matplotlib (pip install matplotlib)."""

import argparse
import json
import os
import sys

try:
    import matplotlib
except ImportError:
    sys.exit("plot_performance: matplotlib is missing; pip install matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

OURS, PEER, FLOOR = "#1f5fa8", "#9a9a9a", "#c0392b"


def rate_chart(data, weights, path):
    """Tokens a second over the batch, ours and the peer's, and what reading the weights allows."""
    ours, others = data["ours"][weights], data["others"].get(weights, {})
    batches = sorted(ours["decode"], key=int)
    figure, axes = plt.subplots(figsize=(6.4, 4))
    draw = lambda label, rates, **style: axes.plot(
        [int(b) for b in batches if b in rates], [rates[b] for b in batches if b in rates], label=label,
        marker="o", **style)
    draw("floor: bytes over read rate", data["floors"][weights], color=FLOOR, linestyle="--")
    draw("Hadal", ours["decode"], color=OURS, linewidth=2.2)
    for name, rates in others.items():
        draw(name, rates["decode"], color=PEER)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([int(b) for b in batches], batches)
    axes.set_xlabel("sequences decoded together, 512 tokens of context")
    axes.set_ylabel("tokens a second")
    axes.set_title(f"{data['model']}, {weights}, {data['card']}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save(figure, path)


def stage_chart(lines, title, path):
    """Where a layer's time goes in each step, in percent of it, from measure_stages.py."""
    names, shares = [], {}
    for line in lines:
        if line["step"] not in names:
            names.append(line["step"])
        if line["stage"] != "a layer":
            shares.setdefault(line["stage"], {})[line["step"]] = line["us"]
    totals = {name: sum(stage.get(name, 0) for stage in shares.values()) for name in names}
    figure, axes = plt.subplots(figsize=(7.2, 0.5 * len(names) + 1.8))
    left = [0.0] * len(names)
    for (stage, times), color in zip(shares.items(), plt.get_cmap("tab20").colors):
        widths = [100 * times.get(name, 0) / totals[name] for name in names]
        axes.barh(names, widths, left=left, label=stage, color=color)
        left = [a + b for a, b in zip(left, widths)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of a layer of experts, kernels alone")
    axes.set_title(title, fontsize=10)
    axes.legend(ncols=4, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    save(figure, path)


def save(figure, path):
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    print(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("measurements", help="JSON: card, model, ours, others, floors")
    parser.add_argument("folder", help="where the pictures go")
    parser.add_argument("--stages", help="JSON lines of measure_stages.py")
    args = parser.parse_args()
    os.makedirs(args.folder, exist_ok=True)
    with open(args.measurements) as file:
        data = json.load(file)
    for weights in data["ours"]:
        rate_chart(data, weights, os.path.join(args.folder, f"decode-{weights}.png"))
    if args.stages:
        with open(args.stages) as file:
            lines = [json.loads(line) for line in file]
        stage_chart(lines, f"{data['model']}, {data['card']}", os.path.join(args.folder, "stages.png"))


if __name__ == "__main__":
    main()
