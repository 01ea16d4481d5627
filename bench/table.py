"""Result rows as Markdown tables, which also read well in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.contestants import MODES
from bench.targets import RATIO, SHARE_OF_PEAK


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    body = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Ours against each peer: ratios, share of the FMA peak, distance from the floor."""
    found = {
        (r["case"], r["contestant"], r["mode"], r["threads"]): r
        for r in rows
        if r["status"] == "ok"
    }
    ours = dict.fromkeys(
        (r["case"], r["threads"], r["contestant"]) for r in rows if not r["is_peer"]
    )
    peers = dict.fromkeys(r["contestant"] for r in rows if r["is_peer"])
    lines = []
    for case, threads, backend in ours:
        mine = [found.get((case, backend, mode, threads)) for mode in MODES]
        if not any(mine):
            continue
        for peer in peers:
            theirs = [found.get((case, peer, mode, threads)) for mode in MODES]
            ratios = [
                _ratio(a, b, case, peer, mode)
                for a, b, mode in zip(mine, theirs, MODES, strict=True)
            ]
            if any(ratios):
                lines.append(
                    [
                        case,
                        backend,
                        str(threads),
                        peer,
                        *(ratio or "" for ratio in ratios),
                        ", ".join(
                            _share(m, case, mode) for m, mode in zip(mine, MODES, strict=True) if m
                        ),
                        ", ".join(f"{m['distance']:.1f}x" for m in mine if m),
                    ]
                )
    header = ["case", "backend", "threads", "peer", "inference ratio", "training ratio"]
    return markdown([*header, "share of FMA peak", "distance from floor"], lines)


def time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every measured row."""
    lines = [
        [
            r["case"],
            r["contestant"],
            r["mode"],
            str(r["threads"]),
            f"{r['median_ms']:.3g}",
            f"{r['q1_ms']:.3g} .. {r['q3_ms']:.3g}",
            str(r["samples"]),
            f"{r['gflops']:.1f}",
            f"{r['gbs']:.1f}",
            f"{r['share_of_fma_peak']:.0%}",
            f"{r['floor_ms']:.3g} {r['floor_kind']}",
            f"{r['distance']:.1f}x",
            "" if r["peak_mb"] is None else f"{r['peak_mb']:.1f}",
            f"{r['held_mb']:.1f}",
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    header = ["case", "who", "mode", "threads", "median ms", "quartiles", "n", "GFLOP/s", "GB/s"]
    header += ["of FMA peak", "floor ms", "distance", "peak MB", "MB to hold"]
    return markdown(header, lines)


def left_out(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who did not run, and why; wrong numbers are shouted."""
    lines = dict.fromkeys(
        (r["contestant"], r["case"], r["status"]) for r in rows if r["status"] != "ok"
    )
    grouped: dict[tuple[str, str], list[str]] = {}
    for contestant, case, status in lines:
        grouped.setdefault((contestant, status), []).append(case)
    return "\n".join(
        f"- {contestant} ({', '.join(cases)}): {status}"
        if status.startswith("absent")
        else f"- **{contestant} ({', '.join(cases)}): {status}**"
        for (contestant, status), cases in grouped.items()
    )


def _ratio(
    mine: Mapping[str, Any] | None,
    theirs: Mapping[str, Any] | None,
    case: str,
    peer: str,
    mode: str,
) -> str | None:
    if mine is None or theirs is None:
        return None
    ratio = theirs["median_ms"] / mine["median_ms"]
    target = RATIO.get((case, peer, mode))
    if target is None:
        return f"{ratio:.3g}x"
    if ratio >= target.least:
        verdict = "goal met" if ratio >= target.goal else "met"
    else:
        # The most that a program at the floor would show against this peer, on this machine.
        possible = theirs["median_ms"] / mine["floor_ms"]
        verdict = "MISSED" if possible >= target.least else f"MISSED, floor at {possible:.3g}x"
    return f"{ratio:.3g}x ({target}: {verdict})"


def _share(mine: Mapping[str, Any], case: str, mode: str) -> str:
    target = SHARE_OF_PEAK.get((case, mode)) if mine["threads"] == 1 else None
    share = f"{mine['share_of_fma_peak']:.0%}"
    return share if target is None else f"{share} ({target:.0%})"
