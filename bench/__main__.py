"""`python -m bench`: who is faster, by how much, and how far all are from the machine's limits."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import compare, measure, roofline, table, whole_model
from bench.contestants import MODULES, OPTIONAL_PEERS, PEERS, Backend, Contestant, InFloat32, Older
from bench.scaling import AXES
from strnn_kernels.backends import native
from strnn_kernels.testing import BENCHMARKS, Case
from strnn_kernels.topology import Topology

ROOT = Path(__file__).resolve().parent.parent
SCALING_PEERS = ("wavefront", "nn.RNN")
WHOLE_MODEL = "whole_model"
SCHEMA = 1
#: A load average above which another program is surely running.
MAX_LOAD = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints the tables, writes the JSON; 1 if any contestant gave wrong numbers."""
    options = parse(arguments)
    modes = measure.MODES if options.mode == "both" else (options.mode,)
    cases = [
        in_dtype(case, getattr(torch, dtype))
        for case in select_cases(options.cases)
        for dtype in options.dtypes
    ]
    contestants = select_contestants(options.backends, options.peers, options.cases)
    if options.older is not None:
        contestants.append(Older(options.older.resolve()))
    if {*options.dtypes} != {"float32"}:
        contestants.append(InFloat32())
    budget = options.seconds / (8 if options.quick else 1)
    about = machine()
    peaks = roofline.measure_peaks(options.threads)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": about,
        "commit": commit(),
        "older": options.older and commit(options.older),
        "peaks": peaks.as_json(),
        "host_us": [],
        "whole_model": [],
        "rows": [],
    }
    total = len(cases) * len(options.threads)
    with tqdm(total=total, unit="case", file=sys.stderr, disable=None) as bar:
        for threads in options.threads:
            for case in cases:
                result["rows"] += measure.measure_case(
                    case,
                    contestants,
                    modes=modes,
                    threads=threads,
                    budget=budget,
                    peaks=peaks,
                    note=bar.set_postfix_str,
                )
                save(result, options.json)  # what is measured stays, whatever comes
                bar.update()
    torch.set_num_threads(options.threads[0])
    result["host_us"] = host_time(
        [c for c in contestants if not c.is_peer or c.name == "nn.RNN"], peaks
    )
    if {"default", WHOLE_MODEL} & {*options.cases}:
        result["whole_model"] = whole_model.measure(
            options.threads[0], compiles=any(c.name == "wavefront compiled" for c in contestants)
        )
    show(result)
    if options.compare:
        old = json.loads(options.compare.read_text())
        rows, drift = compare.compare(old, result)
        print(
            f"\nAgainst {options.compare.name}; by its peers the machine is {drift:+.1%} slower.\n"
        )
        header = ["case", "who", "mode", "threads", "old ms", "new ms", "change", "verdict"]
        print(table.markdown(header, rows))
    save(result, options.json)
    return int(any(row["status"].startswith(("wrong", "failed")) for row in result["rows"]))


def save(result: dict[str, Any], path: Path | None) -> None:
    """Writes the JSON, where one is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    names = [case.name for case in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["default"],
        help=f"names ({' '.join(names)}), 'default' for all, axes ({' '.join(AXES)}), points of an "
        f"axis (T=64), 'scaling' for all axes, or '{WHOLE_MODEL}'",
    )
    parser.add_argument(
        "--backends", nargs="*", default=["cpu"], help="of strnn_kernels.backends()"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["default"],
        help=f"{', '.join(repr(p.name) for p in PEERS)}; 'default' leaves out "
        f"{', '.join(map(repr, OPTIONAL_PEERS))}; 'all'; nothing for none",
    )
    parser.add_argument(
        "--older",
        type=Path,
        help="one more contestant: a checkout with an older build (setup.py build_ext --inplace)",
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32"], choices=("float32", "bfloat16", "float16")
    )
    parser.add_argument("--mode", choices=(*measure.MODES, "both"), default="both")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=8.0, help="timing budget per case")
    parser.add_argument("--quick", action="store_true", help="an eighth of the budget")
    parser.add_argument("--json", type=Path, help="write all rows there")
    parser.add_argument("--compare", type=Path, help="an older JSON to judge against")
    return parser.parse_args(arguments)


def select_cases(names: list[str]) -> list[Case]:
    """Cases by name, axis or family, in the order asked for."""
    points = [case for cases in AXES.values() for case in cases]
    by_name = {case.name: [case] for case in (*BENCHMARKS, *points)}
    families = {
        "default": list(BENCHMARKS),
        "scaling": points,
    }
    families[WHOLE_MODEL] = []  # not of the table: see bench.whole_model
    known = by_name | {axis: list(cases) for axis, cases in AXES.items()} | families
    for name in names:
        if name not in known:
            raise SystemExit(f"bench: no case is named {name!r}; there are {', '.join(known)}")
    return [case for name in names for case in known[name]]


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    """The case; in another dtype than float32 the name says so."""
    if dtype == torch.float32:
        return case
    return replace(case, dtype=dtype, name=f"{case.name} {str(dtype).removeprefix('torch.')}")


def select_contestants(backends: list[str], peers: list[str], cases: list[str]) -> list[Contestant]:
    """Backends first, our modules with the CPU's, then peers."""
    by_name = {peer.name: peer for peer in PEERS}
    chosen: list[str] = []
    for name in peers:
        if name == "all":
            chosen += by_name
        elif name == "default":
            is_scaling = any(c == "scaling" or c in AXES for c in cases)
            chosen += (
                SCALING_PEERS if is_scaling else [n for n in by_name if n not in OPTIONAL_PEERS]
            )
        elif name in by_name:
            chosen.append(name)
        else:
            raise SystemExit(f"bench: no peer is named {name!r}; there are {list(by_name)}")
    return [
        *(Backend(name) for name in backends),
        *([MODULES] if "cpu" in backends else []),
        *(by_name[name] for name in dict.fromkeys(chosen)),
    ]


def host_time(contestants: list[Contestant], peaks: roofline.Peaks) -> list[dict[str, Any]]:
    """Time of a call that has one number to compute: what the host spends per call."""
    one = {
        "spatial_rnn": Case("host", "spatial_rnn", lambda: Topology.grid(1, 1), B=1, C=1, H=1, K=1),
        "temporal_rnn": Case("host", "temporal_rnn", lambda: Topology.chain(1), B=1, C=1, H=1),
    }
    rows = []
    for op, case in one.items():
        found = measure.measure_case(
            case,
            contestants,
            modes=measure.MODES,
            threads=torch.get_num_threads(),
            budget=0.5,
            peaks=peaks,
        )
        rows += [
            {"op": op, "contestant": r["contestant"], "mode": r["mode"], "us": r["median_ms"] * 1e3}
            for r in found
            if r["status"] == "ok"
        ]
    return rows


def show(result: dict[str, Any]) -> None:
    """Prints the tables."""
    peaks, rows, about = result["peaks"], result["rows"], result["machine"]
    print(
        f"\n{about['cpu']}, {about['cores']} cores, {about['isa']}, torch {about['torch']}, "
        f"commit {result['commit']}"
    )
    if (about["load_before"] or 0) > MAX_LOAD:
        print(
            f"WARNING: load was {about['load_before']} before the run. Other programs take cores, "
            "cache and bandwidth, not from everybody alike: do not quote these ratios."
        )
    print(
        f"one core: FMA peak {peaks['fma_gflops']:.1f} GFLOP/s ({peaks['fma_how']}), "
        f"sgemm of 1024 {peaks['sgemm_gflops']:.1f} GFLOP/s"
    )
    for threads, rates in peaks["copy_gbs"].items():
        sizes = ", ".join(f"{rate:.1f} GB/s over {size >> 10} KiB" for size, rate in rates.items())
        print(f"copy, {threads} thread(s): {sizes}")
    print(f"\n{table.time_table(rows)}")
    if result["host_us"]:
        lines = [[h["op"], h["contestant"], h["mode"], f"{h['us']:.1f}"] for h in result["host_us"]]
        print(f"\nHost time per call\n\n{table.markdown(['op', 'who', 'mode', 'us'], lines)}")
    if result["whole_model"]:
        cells = whole_model.lines(result["whole_model"])
        print(f"\n{table.markdown(whole_model.HEADER, cells)}")
    missing = table.left_out(rows)
    if missing:
        print(f"\nNot timed\n\n{missing}")
    print(f"\n{table.speed_table(rows)}")


def machine() -> dict[str, Any]:
    """What the numbers depend on; no names of hosts or folders."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((s.split(":", 1)[1].strip() for s in lines if s.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "kernels": native.cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
    }


def commit(root: Path = ROOT) -> str:
    """Short hash of a checkout, with a plus sign if files differ from it."""

    def git(*command: str) -> str:
        done = subprocess.run(
            ["git", *command], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short", "HEAD")
    return (head + ("+" if git("status", "--porcelain") else "")) if head else "unknown"


if __name__ == "__main__":
    sys.exit(main())
