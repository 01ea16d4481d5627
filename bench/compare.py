"""Old results against new ones: which rows changed by more than the noise of both runs.

The peers did not change, so the median of their new/old ratios says how much faster or slower the
machine itself is today; rows are judged after that is divided out. A row has changed when it moved
by more than 5 % and by more than the spread of both runs together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

LEAST_CHANGE = 0.05
KEY = ("case", "contestant", "mode", "threads", "dtype")


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[list[list[str]], float]:
    """Table rows (case, who, mode, threads, old ms, new ms, change, verdict), and the drift."""
    before = {_key(row): row for row in old["rows"] if row["status"] == "ok"}
    pairs = [
        (before[_key(row)], row)
        for row in new["rows"]
        if row["status"] == "ok" and _key(row) in before
    ]
    drifts = [math.log(b["median_ms"] / a["median_ms"]) for a, b in pairs if b["is_peer"]]
    drift = median(drifts) if drifts else 0.0
    table = []
    for a, b in pairs:
        change = math.log(b["median_ms"] / a["median_ms"]) - drift
        noise = math.hypot(_spread(a), _spread(b))
        verdict = "same"
        if abs(change) > max(LEAST_CHANGE, noise):
            verdict = "SLOWER" if change > 0 else "faster"
        table.append(
            [
                *(str(b[name]) for name in KEY[:4]),
                f"{a['median_ms']:.3g}",
                f"{b['median_ms']:.3g}",
                f"{math.expm1(change):+.1%} ± {noise:.1%}",
                verdict,
            ]
        )
    return table, math.expm1(drift)


def _spread(row: Mapping[str, Any]) -> float:
    """Interquartile range as a share of the median."""
    return (row["q3_ms"] - row["q1_ms"]) / row["median_ms"]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)
