"""The pictures of a report, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from strnn_models.systems.categorical_dimensional import CategoryMap

import strnn_kernels as sk

SPACE = ("from top-left", "from top-right", "from bottom-left", "from bottom-right")


def learning_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Losses, the validation score and the share of zeros over the epochs."""
    panels = {
        "loss": ("train_loss", "valid_loss"),
        "score": ("valid_accuracy", "valid_f1", "valid_ccc"),
        "share of zeros": ("zeros_spatial", "zeros_temporal"),
    }
    panels = {k: [n for n in v if n in history[-1]] for k, v in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            axis.plot(epochs, [row[name] for row in history], label=name, marker=".")
        axis.set(xlabel="epoch", title=title)
        axis.legend()
    return figure


def confusion(matrix: NDArray, classes: Sequence[str]) -> Figure:
    """Counts of true class (row) and predicted class (column), coloured by share of the row."""
    size = max(3.5, 0.55 * len(classes) + 2)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axis = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, col in np.ndindex(matrix.shape):
        colour = "white" if share[row, col] > 0.5 else "black"
        axis.text(col, row, str(matrix[row, col]), ha="center", va="center", color=colour)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, label="share of the true class")
    return figure


def traces(
    videos: Sequence[dict[str, torch.Tensor]], names: Sequence[str], most: int = 4
) -> Figure:
    """The traces of the first videos: annotated and predicted, gaps where not valid."""
    videos = videos[:most]
    size = (max(10, 3 * len(names)), 2.2 * len(videos))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(videos), len(names), squeeze=False, sharey=True)
    for row, video in zip(axes, videos, strict=True):
        hidden = ~video["valid"][:, None]
        for k, name in enumerate(names):
            for key, label in (("y", "annotated"), ("predicted", "predicted")):
                values = video[key].masked_fill(hidden, torch.nan)[:, k]
                row[k].plot(values.numpy(), label=label)
            row[k].set(title=name, ylim=(-1.05, 1.05))
    axes[-1, 0].set_xlabel("frame")
    axes[0, 0].legend()
    return figure


def nodes(values: NDArray, titles: Sequence[str], topology: sk.Topology) -> tuple[Figure, str]:
    """Maps of values (panels, N): over the head where MNE knows the electrodes, else over the grid.

    Returns:
        The figure, and how it was drawn, for the caption.
    """
    figure = Figure(figsize=(3.1 * len(values), 3.3), layout="constrained")
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    info = _head(topology)
    for axis, row, title in zip(axes, values, titles, strict=True):
        if info is None:
            _draw_grid(axis, row, topology)
        else:
            _draw_head(axis, row, info)
        axis.set_title(title)
    return figure, "grid of cells" if info is None else "mne.viz.plot_topomap"


def temporal(weights: NDArray) -> Figure:
    """|Q| over time, (2, K, T): one panel for each direction, a row for each projection."""
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axes = figure.subplots(1, len(weights), squeeze=False)[0]
    for axis, direction, title in zip(axes, weights, ("forward", "backward"), strict=False):
        image = axis.imshow(direction, cmap="Reds", vmin=0, vmax=max(weights.max(), 1e-12))
        axis.set(title=title, xlabel="time step", ylabel="projection")
    figure.colorbar(image, ax=axes, label="|Q|")
    return figure


def frames(
    shown: NDArray, maps: dict[str, NDArray], titles: Sequence[str], most: int = 8
) -> Figure:
    """Frames (T, rows, cols) with titles; below them named rows of maps (T, r, c), each scaled."""
    chosen = np.unique(np.linspace(0, len(shown) - 1, most).round().astype(int))
    num_rows = len(maps) + 1
    figure = Figure(figsize=(1.5 * len(chosen) + 0.4, 1.5 * num_rows + 0.3), layout="constrained")
    axes = figure.subplots(num_rows, len(chosen), squeeze=False)
    for axis, t in zip(axes[0], chosen, strict=True):
        axis.imshow(shown[t], cmap="gray")
        axis.set_title(titles[t])
    for row, (name, values) in zip(axes[1:], maps.items(), strict=True):
        row[0].set_ylabel(name)
        for axis, t in zip(row, chosen, strict=True):
            axis.imshow(values[t], cmap="Reds", vmin=0, vmax=max(values.max(), 1e-12))
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure


def reading(probabilities: NDArray, classes: Sequence[str]) -> Figure:
    """Probabilities (T, K) of the classes along a clip."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    for name, values in zip(classes, probabilities.T, strict=True):
        axis.plot(values, marker=".", label=name)
    axis.set(xlabel="step", ylabel="probability", ylim=(-0.05, 1.05))
    axis.legend()
    return figure


def category_map(
    maps: dict[str, CategoryMap], classes: Sequence[str], traces: Sequence[str]
) -> Figure:
    """Panels of categories in the plane of two traces: centres, and ellipses of one deviation."""
    figure = Figure(figsize=(4.6 * len(maps), 4.6), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False, sharex=True, sharey=True)[0]
    circle = np.stack([np.cos(turn := np.linspace(0, 2 * np.pi, 100)), np.sin(turn)])
    for axis, (title, found) in zip(axes, maps.items(), strict=True):
        axis.plot(*circle, color="lightgrey", linewidth=1)
        rows = zip(classes, found.centres.numpy(), found.spreads.numpy(), strict=True)
        for k, (name, centre, spread) in enumerate(rows):
            if not np.isfinite(centre).all():
                continue
            lengths, directions = np.linalg.eigh(spread)
            ellipse = directions @ (np.sqrt(np.maximum(lengths, 0))[:, None] * circle)
            axis.plot(*(centre[:, None] + ellipse), color=f"C{k % 10}")
            axis.annotate(name, centre, ha="center", va="center", color=f"C{k % 10}", weight="bold")
        axis.set(title=title, xlabel=traces[0], ylabel=traces[1], aspect="equal")
        axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    return figure


def _head(topology: sk.Topology) -> Any:
    """What MNE needs to draw these electrodes; None without MNE or for other nodes."""
    if topology.names is None:
        return None
    from strnn_models.data.montages import mne_info

    try:
        return mne_info(topology.names)
    except (ImportError, ValueError):
        return None


def _draw_head(axis: Any, values: NDArray, info: Any) -> None:
    from mne.viz import plot_topomap

    top = max(float(values.max()), 1e-12)
    plot_topomap(values, info, axes=axis, show=False, cmap="Reds", vlim=(0, top), contours=0)


def _draw_grid(axis: Any, values: NDArray, topology: sk.Topology) -> None:
    rows, cols = topology.positions.max(axis=0) + 1
    grid = np.full((rows, cols), np.nan)
    grid[tuple(topology.positions.T)] = values
    axis.imshow(grid, cmap="Reds", vmin=0)
    axis.set_axis_off()
    for name, (row, col) in zip(topology.names or (), topology.positions, strict=False):
        axis.text(col, row, name, ha="center", va="center", fontsize=5)
