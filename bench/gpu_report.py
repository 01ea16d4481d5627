"""The part of bench/REPORT.md about a GPU: `times.json` of `gpu_run.sh` as a section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench import table
from bench.contestants import MODES

OURS = ("cuda", "triton")


def is_gpu(result: Mapping[str, Any]) -> bool:
    """Whether a result file is one of `bench.gpu_run`."""
    return "about" in result


def section(result: Mapping[str, Any], name: str) -> list[str]:
    """Kernel times per case, ratios to the fastest of ours, floors.

    Raises:
        SystemExit: the file is of a rehearsal without a GPU, whose times mean nothing.
    """
    about, rows = result["about"], result["rows"]
    if about["is_rehearsal"]:
        raise SystemExit(f"bench.report: {name} was rehearsed without a GPU; remove it")
    peaks = about["peaks"]
    page = [
        "",
        f"## {name}",
        "",
        f"{about['gpu']}, {about['multiprocessors']} multiprocessors, driver, clock and power "
        f"{about['driver']}, CUDA {about['cuda']}, cuDNN {about['cudnn']}, torch {about['torch']}, "
        f"triton {about['triton']}, commit {about['commit']}. Measured: copy "
        f"{peaks['copy_gbs']:.0f} GB/s, products of 4096 x 4096 at "
        f"{peaks['gemm_float32_tflops']:.0f} TFLOP/s (float32) and "
        f"{peaks['gemm_bfloat16_tflops']:.0f} TFLOP/s (bfloat16). Kernel time: medians over "
        "replays of a CUDA graph, contestants in turn; calls that cannot be captured, marked *, "
        "are timed as they are. The floor is the larger of arithmetic and bytes over these peaks; "
        "the serial chain of a sweep, one level after the other, comes on top.",
        "",
    ]
    lines = []
    for row in rows:
        if row["status"] != "ok":
            continue
        peers = [r for r in rows if r["case"] == row["case"] and r["status"] == "ok"]
        cells = [row["case"], row["dtype"], row["who"], str(row["levels"])]
        for mode in MODES:
            if mode not in row["us"]:
                cells += ["", "", ""]
                continue
            ours = [r["us"][mode] for r in peers if r["who"] in OURS and mode in r["us"]]
            mark = "" if row["is_graph"][mode] else "*"
            low, high = row["quartiles_us"][mode]
            cells.append(f"{row['us'][mode]:.1f}{mark} ({low:.1f} .. {high:.1f})")
            cells.append(f"{row['us'][mode] / min(ours):.2f}x" if ours else "")
            cells.append(f"{floor_us(row, mode, peaks):.1f}")
        lines.append(cells)
    header = ["case", "dtype", "who", "levels"]
    for mode in MODES:
        header += [f"{mode} us", "of our best", "floor us"]
    page.append(table.markdown(header, lines))
    absent = [f"- {r['case']}, {r['who']}: {r['reason']}" for r in rows if r["status"] == "absent"]
    wrong = [
        f"- **{r['case']}, {r['who']}: {r['status']}**"
        for r in rows
        if r["status"] not in ("ok", "absent")
    ]
    return [*page, "", "Not timed:", "", *wrong, *absent] if absent or wrong else page


def floor_us(row: Mapping[str, Any], mode: str, peaks: Mapping[str, float]) -> float:
    """The larger of arithmetic and bytes over the measured rates, in microseconds."""
    work = row["work"][mode]
    half = row["dtype"] in ("bfloat16", "float16")
    rate = peaks["gemm_bfloat16_tflops" if half else "gemm_float32_tflops"]
    return max(work["flops"] / rate / 1e6, work["num_bytes"] / peaks["copy_gbs"] / 1e3)
