"""The pictures of the site, drawn at each build; run as a script, README's, which is committed.

Topologies and programs are drawn from the package, ratios from the JSON under bench/results.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

from strnn_kernels import Topology

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results/cpu-zen4-2core.json"
INK, PAPER, NOW, BEFORE = "0.25", "white", "#d1495b", "#9dc3e6"
FROM = ("from the top left", "from the top right", "from the bottom left", "from the bottom right")
CASES = {
    "S1": "62 electrodes, 30 wide",
    "S2": "32 x 32 grid, 64 wide",
    "S3": "16 x 16 grid, 128 wide",
    "T1": "9 steps, 30 wide",
    "T2": "128 steps, 128 wide",
    "T3": "512 steps, 256 wide",
    "T4": "128 steps, lengths differ",
    "G1": "GRU, 9 steps, 30 wide",
    "G2": "GRU, 128 steps, 128 wide",
    "L1": "LSTM, 9 steps, 30 wide",
    "L2": "LSTM, 128 steps, 128 wide",
}
PEERS = {
    "PyTorch, level by level": (("wavefront",), "#4c78a8"),
    "torch.nn": (("nn.RNN", "nn.GRU", "nn.LSTM"), "#f58518"),
    "ONNX Runtime": (("onnx runtime",), "#b279a2"),
    "JAX scan": (("jax scan",), "#54a24b"),
}
#: Longer bars end here; the number stands beside them.
LONGEST = 11


def main(out: Path) -> None:
    """Draws those of the site into the folder."""
    rcParams.update({"svg.hashsalt": "strnn", "font.size": 9, "text.color": INK})
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "directions": directions(),
        "levels": levels(),
        "sweep": sweep(),
        "program": program(),
        "cap": cap(),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.svg", metadata={"Date": None})


def ratios() -> Figure:
    """How many times as long as ours others take, for each case, from the committed results."""
    rows = [r for r in json.loads(RESULTS.read_text())["rows"] if r["threads"] == 1]
    times = {
        (r["case"], r["contestant"], r["mode"]): r["median_ms"] for r in rows if r["status"] == "ok"
    }
    cases = list(CASES)
    figure = Figure(figsize=(7.6, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, mode in zip(panels, ("training", "inference"), strict=True):
        for k, (label, (peers, color)) in enumerate(PEERS.items()):
            found = {
                row: times[case, peer, mode] / times[case, "cpu", mode]
                for row, case in enumerate(cases)
                for peer in peers
                if (case, peer, mode) in times
            }
            at = np.array(list(found)) + 0.2 * (k - 1.5)
            lengths = [min(ratio, LONGEST) for ratio in found.values()]
            bars = panel.barh(at, lengths, 0.19, color=color, label=label)
            labels = [f"{ratio:.1f}" for ratio in found.values()]
            panel.bar_label(bars, labels, fontsize=6, padding=2)
        panel.axvline(1, color=INK, linewidth=0.8)
        panel.set(
            xlim=(0, LONGEST + 1), title="training step" if mode == "training" else "inference"
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(cases)), list(CASES.values()))
    panels[0].invert_yaxis()
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("times as long as strnn-kernels takes (one Zen 4 core)", fontsize=9)
    return figure


def directions() -> Figure:
    """The four directions of a corner grid, as the package draws any topology."""
    figure = Figure(figsize=(8, 2.3), layout="constrained")
    panels = figure.subplots(1, 4)
    Topology.grid(3, 4).draw(ax=panels)
    for panel, title in zip(panels, FROM, strict=True):
        panel.set_title(title, fontsize=10)
        panel.margins(0.2)
    return figure


def levels() -> Figure:
    """A grid, a cap of electrodes, a chain and any other graph, coloured by level."""
    figure = Figure(figsize=(8.5, 2.6), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = ("grid(5, 6): 10 levels", 'montage("seed-62"): 13', "chain(6): 6", "dag(...): 4")
    graph = Topology.dag([[[], [], [0], [0, 1], [1], [2, 3], [3, 4], [5, 6]]])
    places = np.array([[0, 1], [0, 3], [1, 0], [1, 2], [1, 4], [2, 1], [2, 3], [3, 2]])
    chain = np.array([[0, t] for t in range(6)])
    cap_ = Topology.montage("seed-62")
    for panel, title, topology, where in zip(
        panels,
        titles,
        (Topology.grid(5, 6), cap_, Topology.chain(6), graph),
        (Topology.grid(5, 6).positions, cap_.positions, chain, places),
        strict=True,
    ):
        level = topology.level[0]
        for n in range(topology.num_nodes):
            for p in topology.predecessors(0, n):
                (y0, x0), (y1, x1) = where[p], where[n]
                panel.plot([x0, x1], [y0, y1], color="0.8", linewidth=0.7, zorder=0)
        _nodes(panel, where, level / max(1, level.max()), level)
        panel.set_title(title, fontsize=10)
    return figure


def sweep() -> Figure:
    """One direction over the cap, level by level: done, now, to come."""
    cap_ = Topology.montage("seed-62")
    level = cap_.level[0]
    shown = (0, 2, 4, 6, 8, 10, 12)
    figure = Figure(figsize=(8, 1.5), layout="constrained")
    for panel, now in zip(figure.subplots(1, len(shown)), shown, strict=True):
        colors = np.where(level == now, NOW, np.where(level < now, BEFORE, PAPER))
        y, x = cap_.positions.T
        panel.scatter(x, y, s=16, c=colors, edgecolors=INK, linewidths=0.5)
        panel.set_title(f"level {now}", fontsize=9)
        _bare(panel)
    return figure


def program() -> Figure:
    """The table of a 3 x 3 grid: node, slot and the predecessors' slots of each visit."""
    found = Topology.grid(3, 3).program("levels")
    ptr = found.pred_ptr[0]
    rows = {
        "visit": range(9),
        "node": found.node[0],
        "kept in slot": found.slot[0],
        "reads slots": [" ".join(map(str, found.pred_slot[a:b])) or "-" for a, b in pairwise(ptr)],
        "used": found.num_succ[0],
    }
    figure = Figure(figsize=(8, 1.9), layout="constrained")
    panel = figure.subplots()
    group = np.searchsorted(found.group_ptr[0], np.arange(9), side="right") - 1
    for r, (name, values) in enumerate(rows.items()):
        panel.text(-0.7, r, name, ha="right", va="center", fontsize=10)
        for i, value in enumerate(values):
            shade = BEFORE if group[i] % 2 else PAPER
            panel.add_patch(_box(i, r, shade))
            panel.text(i, r, str(value), ha="center", va="center", fontsize=10)
    panel.set(xlim=(-2.4, 8.6), ylim=(len(rows) - 0.4, -0.6))
    panel.axis("off")
    return figure


def cap() -> Figure:
    """The electrodes of SEED as the sweep from the top left sees them."""
    figure = Figure(figsize=(6, 5.6), layout="constrained")
    Topology.montage("seed-62").draw(ax=figure.subplots(), direction=0)
    figure.axes[0].set_title("")
    return figure


def _nodes(panel, where, shade, labels) -> None:
    y, x = np.asarray(where).T
    panel.scatter(x, y, s=80, c=shade, cmap="Blues", vmin=-0.2, vmax=1.6, edgecolors=INK)
    for column, row, text in zip(x, y, labels, strict=True):
        panel.text(column, row, text, ha="center", va="center", fontsize=6)
    _bare(panel)


def _bare(panel) -> None:
    panel.set_aspect("equal")
    panel.margins(0.15)
    panel.set_ylim(panel.get_ylim()[1] + 0.4, panel.get_ylim()[0] - 0.4)
    panel.axis("off")


def _box(column, row, color):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor=INK, linewidth=0.6)


if __name__ == "__main__":
    ratios().savefig(ROOT / "docs/ratios.png", dpi=140, metadata={"Software": None})
