"""`python -m bench.report`: bench/REPORT.md and its plots, from bench/results alone."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu_report, profile, table, whole_model
from bench.scaling import AXES
from bench.targets import RATIO

BENCH = Path(__file__).resolve().parent
AXIS_NAMES = {
    "B": "B, slices of the 62-node cap",
    "T": "T, time steps",
    "H": "H, hidden width",
    "side": "side of a square grid",
    "density": "share of non-zero projection weights",
}


def main(arguments: list[str] | None = None) -> None:
    """Reads all results, writes the plots and the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=BENCH / "results")
    parser.add_argument("--out", type=Path, default=BENCH / "REPORT.md")
    options = parser.parse_args(arguments)
    files = sorted(options.results.glob("*.json"))
    if not files:
        raise SystemExit(
            "bench.report: no results yet; run python -m bench --json bench/results/NAME.json"
        )
    plots = options.out.parent / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    page = [
        "# Benchmarks",
        "",
        "Made by `python -m bench.report` from the files in `results/`; do not edit. "
        "Contestants of a case alternate in one process on the same inputs, after their outputs "
        "and gradients have passed the check that the tests use; medians and quartiles. A training "
        "step is forward and backward to the gradients of x and of all parameters. `roofline.py` "
        "says what a floor is. The targets in brackets come from a prototype on another machine, "
        "with more arithmetic a core and slower PyTorch peers; where even a program at the floor "
        "would miss one here, the table says at which ratio that floor lies.",
    ]
    results = {file: json.loads(file.read_text()) for file in files}
    profiles = [result for result in results.values() if "profile" in result]
    for file, result in results.items():
        if gpu_report.is_gpu(result):
            page += gpu_report.section(result, file.stem)
        elif "profile" in result:
            page += profile.section(result, file.stem)
        else:
            page += section(result, file.stem, plots, profiles)
    options.out.write_text("\n".join(page) + "\n")
    print(f"{options.out.name}: {len(files)} result files")


def section(
    result: Mapping[str, Any], name: str, plots: Path, profiles: Sequence[Mapping[str, Any]]
) -> list[str]:
    """One result file: machine, tables, plots; `profiles` explain what it missed."""
    about, peaks, rows = result["machine"], result["peaks"], result["rows"]
    copies = "; ".join(
        f"{threads} thread(s): "
        + ", ".join(f"{r:.0f} GB/s to {int(s) >> 10} KiB" for s, r in rates.items())
        for threads, rates in peaks["copy_gbs"].items()
    )
    page = [
        "",
        f"## {name}",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['isa']}, "
        + (f"our kernels {about['kernels']}, " if "kernels" in about else "")
        + f"torch {about['torch']}, "
        f"Python {about['python']}, commit {result['commit']}. FMA peak of one core "
        f"{peaks['fma_gflops']:.0f} GFLOP/s ({peaks['fma_how']}); an sgemm of 1024 x 1024 reaches "
        f"{peaks['sgemm_gflops'] / peaks['fma_gflops']:.0%} of it. Copy, {copies}. "
        f"Load before the run: {about['load_before']}."
        + (f" The older build is of commit {result['older']}." if result.get("older") else ""),
    ]
    axes = [axis for axis in AXES if any(r["case"].startswith(axis + "=") for r in rows)]
    page += [line for axis in axes for line in scaling(rows, axis, name, plots)]
    named = [r for r in rows if "=" not in r["case"]]
    if named:
        page += ["", table.speed_table(named)]
    page += ["", *losses(result, profiles), "", *memory(rows)]
    if named:
        page += [
            "",
            table.time_table(named),
            "",
            f"![Ratios]({ratio_bars(named, plots / f'{name}-ratios.png')})",
            f"![Memory]({memory_bars(named, plots / f'{name}-memory.png')})",
        ]
    if result["host_us"]:
        lines = [[h["op"], h["contestant"], h["mode"], f"{h['us']:.1f}"] for h in result["host_us"]]
        page += ["", "Host time per call:", "", table.markdown(["op", "who", "mode", "us"], lines)]
    if result.get("whole_model"):
        cells = whole_model.lines(result["whole_model"])
        page += ["", table.markdown(whole_model.HEADER, cells)]
    missing = table.left_out(rows)
    return [*page, "", "Not timed:", "", missing] if missing else page


def losses(result: Mapping[str, Any], profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per row on which a peer is ahead, or a target is missed, and what it would take."""
    rows, peaks = result["rows"], result["peaks"]
    sampled = {
        (row["case"], row["mode"]): row
        for found in profiles
        if found["machine"]["cpu"] == result["machine"]["cpu"]
        for row in found["profile"]
    }
    sgemm = peaks["sgemm_gflops"] / peaks["fma_gflops"]
    host = {(h["op"], h["contestant"], h["mode"]): h["us"] / 1e3 for h in result["host_us"]}
    found = {
        (r["case"], r["contestant"], r["mode"], r["threads"]): r
        for r in rows
        if r["status"] == "ok"
    }
    lines = []
    for (case, who, mode, threads), mine in found.items():
        if mine["is_peer"]:
            continue
        for (other, peer, kind, count), theirs in found.items():
            if (other, kind, count) != (case, mode, threads) or not theirs["is_peer"]:
                continue
            where = f"{case}, {mode}, {threads} thread(s)"
            ratio = theirs["median_ms"] / mine["median_ms"]
            target = RATIO.get((case, peer, mode))
            if ratio < 1:
                lines.append(f"- {where}: {peer} is {1 / ratio:.2f}x faster than {who}.")
            elif target and ratio < target.least:
                line = (
                    f"- {where}: {ratio:.2f}x {peer}; {target.least:g}x is asked for, which takes "
                    f"{target.least * theirs['share_of_fma_peak']:.0%} of the FMA peak. We are at "
                    f"{mine['share_of_fma_peak']:.0%}"
                )
                overhead = host.get((mine["op"], who, mode), 0.0)
                if overhead > 0.1 * mine["median_ms"]:
                    line += (
                        f", with {overhead / mine['median_ms']:.0%} of the time spent by the host "
                        f"before and after the kernel"
                    )
                if (case, mode) in sampled:
                    line += "; in the kernel, " + profile.reason(sampled[case, mode])
                lines.append(line + ".")
    return (
        [
            "Where we lose, or fall short, with the share of the FMA peak that the target would "
            f"take (above 100 % no program gets there; an sgemm of 1024 x 1024, all of it hot, "
            f"gets to {sgemm:.0%}):",
            "",
            *lines,
        ]
        if lines
        else ["No row is lost or short of its target."]
    )


def memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a call takes above what it must leave behind, at its worst."""
    page = []
    for mode, what in (
        ("inference", "the output"),
        ("training", "the output, the states and the gradients"),
    ):
        mine = [
            r
            for r in rows
            if r["status"] == "ok" and not r["is_peer"] and r["mode"] == mode and r["peak_mb"]
        ]
        if mine:
            worst = max(mine, key=lambda r: r["peak_mb"] - r["held_mb"])
            page.append(
                f"Memory, {mode}: at most {worst['peak_mb'] - worst['held_mb']:.1f} MB above what "
                f"must be left behind ({what}), in {worst['case']} with {worst['threads']} "
                f"thread(s): {worst['peak_mb']:.1f} MB for {worst['held_mb']:.1f} MB."
            )
    return page


def scaling(rows: Sequence[Mapping[str, Any]], axis: str, name: str, plots: Path) -> list[str]:
    """Time and memory on log axes with their floors, and each curve's slope at its large end."""
    plt = _pyplot()
    mine = [r for r in rows if r["case"].startswith(axis + "=") and r["status"] == "ok"]
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), sharex=True, sharey="row")
    page = ["", f"### Cost against {AXIS_NAMES[axis]}", ""]
    slopes = []
    for column, mode in enumerate(table.MODES):
        here = [r for r in mine if r["mode"] == mode]
        for panel, value, least, label in (
            (panels[0, column], "median_ms", "floor_ms", "ms"),
            (panels[1, column], "peak_mb", "held_mb", "peak MB"),
        ):
            for who, points in _curves(here, axis, value).items():
                panel.loglog(*zip(*points, strict=True), "o-", label=who)
                if value == "median_ms" and len(points) > 1:
                    (x0, y0), (x1, y1) = points[-2:]
                    slope = math.log(y1 / y0) / math.log(x1 / x0)
                    slopes.append([mode, who, f"{axis}^{slope:.2f}"])
            for who, points in _curves([r for r in here if not r["is_peer"]], axis, least).items():
                panel.loglog(*zip(*points, strict=True), "--", label=f"floor of {who}")
            panel.set(title=mode, xlabel=AXIS_NAMES[axis], ylabel=label)
            panel.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=7)
    target = plots / f"{name}-{axis}.png"
    _save(figure, target)
    page += [table.markdown(["mode", "who", "time grows, between the last two points, as"], slopes)]
    return [*page, "", f"![{axis}](plots/{target.name})"]


def _curves(
    rows: Sequence[Mapping[str, Any]], axis: str, value: str
) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    threads = len({r["threads"] for r in rows}) > 1
    for r in rows:
        who = f"{r['contestant']}, {r['threads']} thread(s)" if threads else r["contestant"]
        if r[value]:
            at = float(r["case"].removeprefix(axis + "="))
            curves.setdefault(who, []).append((at, r[value]))
    return {who: sorted(points) for who, points in curves.items()}


def ratio_bars(rows: Sequence[Mapping[str, Any]], target: Path) -> str:
    """Peer time over ours, per case and mode, at the first number of threads."""
    return _bars(
        rows,
        target,
        "times as long as ours (log)",
        lambda mine, theirs: None if theirs is mine else theirs["median_ms"] / mine["median_ms"],
    )


def memory_bars(rows: Sequence[Mapping[str, Any]], target: Path) -> str:
    """Peak growth of memory during one call."""
    return _bars(rows, target, "peak MB in one call (log)", lambda mine, theirs: theirs["peak_mb"])


def _bars(rows: Sequence[Mapping[str, Any]], target: Path, label: str, value: Any) -> str:
    plt = _pyplot()
    timed = [r for r in rows if r["status"] == "ok"]
    threads = min((r["threads"] for r in timed), default=1)
    timed = [r for r in timed if r["threads"] == threads]
    cases = list(dict.fromkeys(r["case"] for r in timed))
    figure, panels = plt.subplots(2, 1, figsize=(10, 7), sharex=True)
    for panel, mode in zip(panels, table.MODES, strict=True):
        heights: dict[str, dict[str, float]] = {}
        for case in cases:
            here = [r for r in timed if r["case"] == case and r["mode"] == mode]
            ours = next((r for r in here if not r["is_peer"]), None)
            for r in here:
                height = value(ours, r) if ours is not None else None
                if height:
                    heights.setdefault(r["contestant"], {})[case] = height
        width = 0.8 / max(1, len(heights))
        for k, (who, by_case) in enumerate(heights.items()):
            at = (
                np.array([cases.index(case) for case in by_case])
                + (k - (len(heights) - 1) / 2) * width
            )
            bars = panel.bar(at, list(by_case.values()), width, label=who)
            panel.bar_label(bars, fmt="%.3g", fontsize=6)
        panel.set(title=f"{mode}, {threads} thread(s)", ylabel=label, yscale="log")
        panel.set_xticks(range(len(cases)), cases)
        panel.axhline(1, color="k", linewidth=0.5)
        if heights:
            panel.legend(fontsize=7)
    _save(figure, target)
    return f"plots/{target.name}"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, target: Path) -> None:
    figure.tight_layout()
    figure.savefig(target, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)


if __name__ == "__main__":
    main()
