"""The pictures of the demo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

FROM = ("top left", "top right", "bottom left", "bottom right")


def draw(
    out: Path, clips: dict, single: dict, timing: dict, G: np.ndarray, Q: np.ndarray
) -> list[Path]:
    """Draws all pictures into the folder `out` and returns their paths.

    Args:
        out: an existing folder.
        clips: what `demo.learn_clips` reports.
        single: what `demo.learn_digits` reports.
        timing: what `demo.time_step` reports.
        G: absolute spatial projection, (4, K, 64).
        Q: absolute temporal projection, (2, K, T).
    """
    figures = {
        "learning_curve": learning_curve(clips),
        "confusion": confusion(clips, single),
        "projections": projections(clips, G, Q),
        "training_step": training_step(timing),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths


def learning_curve(clips: dict) -> Figure:
    """Held-out score, loss and sparsity for each epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    (left, right) = figure.subplots(1, 2)
    history = clips["history"]
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [h["score"] for h in history], "o-", label="STRNN, held-out score")
    styles = ("-", "--", ":")
    for (name, score), style in zip(clips["baselines"].items(), styles, strict=True):
        left.axhline(score, color="gray", linestyle=style, label=name)
    left.set(title="Which digit follows the zero?", xlabel="epoch", ylabel="score", ylim=(0, 1))
    left.legend(loc="center right")
    right.plot(epochs, [h["loss"] for h in history], "k", label="training loss")
    right.plot(epochs, [h["spatial"] for h in history], label="share of zeros in G (space)")
    right.plot(epochs, [h["temporal"] for h in history], label="share of zeros in Q (time)")
    right.set(title="Loss and sparsity", xlabel="epoch")
    right.legend()
    return figure


def confusion(clips: dict, single: dict) -> Figure:
    """Confusion matrices of both tasks."""
    figure = Figure(figsize=(10, 5.3), layout="constrained")
    panels = figure.subplots(1, 2)
    tasks = (("The digit after the zero, held-out clips", clips, 1),)
    tasks += (("Single digits, the test parts of five folds", single, 0),)
    for panel, (title, task, first) in zip(panels, tasks, strict=True):
        counts = np.array(task["confusion"])
        names = range(first, first + len(counts))
        panel.imshow(counts, cmap="Blues")
        for (i, j), count in np.ndenumerate(counts):
            if count:
                color = "white" if count > counts.max() / 2 else "black"
                panel.text(j, i, count, ha="center", va="center", color=color, fontsize=8)
        panel.set(title=f"{title}: {task['score']:.3f}", xlabel="predicted", ylabel="true")
        panel.set(xticks=range(len(counts)), xticklabels=names)
        panel.set(yticks=range(len(counts)), yticklabels=names)
    return figure


def projections(clips: dict, G: np.ndarray, Q: np.ndarray) -> Figure:
    """Which cells and which moments the sparse projections kept; a clip above the moments."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    space, clip, moments = figure.subfigures(3, 1, height_ratios=(3, 1.3, 2.6))
    space.suptitle(
        "Cells that G kept: sum of |G| over its rows, for each direction; crossed: all zero"
    )
    maps = G.sum(1).reshape(len(G), 8, 8)
    panels = space.subplots(1, len(G))
    for name, weight, panel in zip(FROM, maps, panels, strict=True):
        image = panel.imshow(weight, cmap="viridis", vmin=0, vmax=max(maps.max(), 1e-9))
        rows, cols = np.nonzero(weight == 0)
        panel.plot(cols, rows, "x", color="white", markersize=3, linestyle="none")
        panel.set(title=f"from {name}", xticks=[], yticks=[])
    space.colorbar(image, ax=panels, shrink=0.8)

    clip.suptitle(f"A held-out clip; the digit after its zero is {clips['example_label']}")
    for picture, panel in zip(clips["example"], clip.subplots(1, Q.shape[2]), strict=True):
        panel.imshow(picture, cmap="gray_r")
        panel.set(xticks=[], yticks=[])

    moments.suptitle("Moments that Q kept: sum of |Q| over its rows")
    panel = moments.subplots()
    at = np.arange(1, Q.shape[2] + 1)
    for d, name in enumerate(("forward in time", "backward in time")):
        panel.bar(at + 0.4 * d - 0.2, Q[d].sum(0), width=0.4, label=name)
    panel.set(xlabel="moment", xticks=at, ylabel="sum of |Q|")
    panel.legend()
    return figure


def training_step(timing: dict) -> Figure:
    """Time of one training step, fused and with the reference loops."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    panel = figure.subplots()
    kinds = ("reference", "fused")
    bars = panel.barh(kinds, [timing[kind] * 1e3 for kind in kinds], color=("gray", "C0"))
    panel.bar_label(bars, fmt="%.1f ms", padding=3)
    panel.set(xlabel="milliseconds", title="One training step")
    panel.margins(x=0.25)
    return figure
