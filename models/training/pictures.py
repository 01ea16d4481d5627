"""The pictures of a report, each a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

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
    """The two traces of the first videos: annotated and predicted, gaps where not valid."""
    videos = videos[:most]
    figure = Figure(figsize=(10, 2.2 * len(videos)), layout="constrained")
    axes = figure.subplots(len(videos), 2, squeeze=False, sharey=True)
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


def attention(frames: NDArray, maps: NDArray, weights: NDArray, most: int = 8) -> Figure:
    """Frames (T, rows, cols) with their weights, and the attention of R heads (T, R, r, c)."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))
    heads = maps.shape[1]
    size = (1.5 * len(chosen), 1.5 * (heads + 1) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(heads + 1, len(chosen), squeeze=False)
    for column, t in zip(axes.T, chosen, strict=True):
        column[0].imshow(frames[t], cmap="gray")
        column[0].set_title(f"{weights[t]:.2f}")
        for axis, head in zip(column[1:], maps[t], strict=True):
            axis.imshow(head, cmap="Reds", vmin=0, vmax=maps.max())
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle("weight of each frame; below it, where each head looks")
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
