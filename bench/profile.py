"""`python -m bench.profile`: where the time of the CPU kernels goes, part by part.

Samples one thread with perf (Linux) while it repeats a case, on a build with line tables made for
the purpose, and attributes each sample to the part of the kernel whose function is innermost in its
inline stack. A part is named after what it moves or computes. Beside it stands the loop in which
most samples of the products lie, by its instructions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import roofline, table
from bench.contestants import MODES, Backend
from bench.peers.wavefront import Wavefront
from strnn_kernels.testing import BENCHMARKS

ROOT = Path(__file__).resolve().parent.parent
SAMPLES_PER_SECOND = 3999
#: Part of a kernel -> its functions in csrc/cpu.
PARTS = {
    "products": ("add_product", "gemm_tile", "gemm_tiles", "gemm_rows", "gemm"),
    "projection": ("add_scaled", "project", "add_dprojection"),
    "reading inputs": ("load_input", "load_outputs"),
    "sums of predecessors": ("gather", "add_recurrent"),
    "activation, stores": ("finish",),
    "gradient of x": ("add_dx", "add_gradients"),
}
OTHER = "other"
#: Addresses among which the hot loop is looked for.
MOST_HIT = 300
#: Kinds of instructions of the hot loop, by the start of their names.
INSTRUCTIONS = {
    "FMA": r"vf(n)?m(add|sub)",
    "broadcast": r"v(p)?broadcast",
    "vector move": r"vmov",
}


def main(arguments: list[str] | None = None) -> None:
    """Builds, samples every case in both modes, prints a table, writes the JSON."""
    names = [case.name for case in BENCHMARKS]
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("cases", nargs="*", default=names, help=f"of {' '.join(names)}")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case and mode")
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--repeat", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.cases if name not in names]
    if unknown:
        raise SystemExit(f"bench.profile: no case is named {unknown[0]!r}; there are {names}")
    if options.repeat:
        print(*repeat(options.cases[0], options.repeat, options.seconds))
        return
    for tool in ("perf", "addr2line", "objdump"):
        if shutil.which(tool) is None:
            raise SystemExit(f"bench.profile: {tool} is not installed")
    from bench.__main__ import commit, machine

    result: dict[str, Any] = {"machine": machine(), "commit": commit(), "profile": []}
    result["fma_gflops"] = roofline.measure_peaks([1]).fma_gflops
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        runs = [(name, mode) for name in options.cases for mode in MODES]
        for name, mode in tqdm(runs, unit="run", disable=None):
            result["profile"].append(
                sample(library, name, mode, options.seconds, result["fma_gflops"])
            )
    print("\n".join(section(result, "profile")))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def build(folder: Path) -> Path:
    """A copy of the package in `folder`, its library compiled with line tables."""
    shutil.copytree(
        ROOT / "strnn_kernels", folder / "strnn_kernels", ignore=shutil.ignore_patterns("*.so")
    )
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    subprocess.run(
        [*command, "--build-lib", str(folder), "--build-temp", str(folder / "objects")],
        cwd=ROOT,
        env={**os.environ, "CFLAGS": "-g1", "STRNN_CUDA": "0"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return next((folder / "strnn_kernels").glob("_C.*so"))


def repeat(name: str, mode: str, seconds: float) -> tuple[int, float]:
    """Calls of a case within `seconds`, on one thread, and operations of a call's products."""
    torch.set_num_threads(1)
    case = next(case for case in BENCHMARKS if case.name == name)
    inputs = case.inputs(oracle=Wavefront())
    output = case.run(Wavefront(), inputs)
    runner = Backend("cpu").prepare(case, inputs, case.output_gradient(output))
    call = runner.forward if mode == "inference" else runner.step
    calls, start = 0, time.perf_counter()
    with runner.around(), torch.inference_mode(mode == "inference"):
        while time.perf_counter() - start < seconds:
            call()
            calls += 1
    return calls, roofline.work(case, inputs, mode).product_flops


def sample(library: Path, name: str, mode: str, seconds: float, peak: float) -> dict[str, Any]:
    """One row: milliseconds of a call by part, and the hot loop."""
    folder = library.parent.parent
    path = os.pathsep.join((str(folder), str(ROOT)))
    record = f"perf record -q -e cpu-clock -F {SAMPLES_PER_SECOND} -o samples".split()
    again = ["-P", "-m", "bench.profile", name, "--repeat", mode, "--seconds", str(seconds)]
    done = subprocess.run(
        [*record, sys.executable, *again],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench.profile: perf failed on {name}\n{done.stderr[-2000:]}")
    calls, flops = map(float, done.stdout.split()[-2:])
    milliseconds = 1e3 / SAMPLES_PER_SECOND / calls
    counts = addresses(folder / "samples", library)
    parts: Counter[str] = Counter()
    of_products: dict[int, int] = {}
    for stack, (hit, count) in zip(
        inline_stacks(library, list(counts)), counts.items(), strict=True
    ):
        parts[part_of(stack)] += count
        if part_of(stack) == "products":
            of_products[hit] = count
    in_products = parts["products"] * milliseconds
    return {
        "case": name,
        "mode": mode,
        "kernel_ms": sum(counts.values()) * milliseconds,
        "parts_ms": {part: parts[part] * milliseconds for part in (*PARTS, OTHER)},
        "products_share_of_peak": flops / (in_products * 1e-3) / (peak * 1e9),
        "loop": hot_loop(library, of_products),
    }


def addresses(samples: Path, library: Path) -> Counter[int]:
    """Address in the library -> samples there."""
    script = subprocess.run(
        ["perf", "script", "-i", str(samples), "-F", "ip,dso", "--show-mmap-events"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    start = 0
    counts: Counter[int] = Counter()
    for line in script.splitlines():
        if library.name not in line:
            continue
        mapped = re.search(r"\[(0x[0-9a-f]+)\(0x[0-9a-f]+\) @ (0x[0-9a-f]+|0) .*r-xp", line)
        found = re.match(r"\s*([0-9a-f]+) \(", line)
        if mapped:
            start = int(mapped[1], 16) - int(mapped[2], 16)
        elif found:
            counts[int(found[1], 16) - start + _text_shift(library)] += 1
    return counts


def _text_shift(library: Path) -> int:
    """What an offset in the file lacks to be an address, in the segment of the code."""
    lines = subprocess.run(
        ["readelf", "-lW", str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    fields = next(line.split() for line in lines if "LOAD" in line and " R E " in line)
    return int(fields[2], 16) - int(fields[1], 16)


def inline_stacks(library: Path, found: list[int]) -> list[list[str]]:
    """Names of the functions inlined at each address, innermost first."""
    lines = subprocess.run(
        ["addr2line", "-a", "-f", "-i", "-C", "-e", str(library)],
        input="\n".join(map(hex, found)),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    stacks: list[list[str]] = []
    is_name = False
    for line in lines:
        if line.startswith("0x"):
            stacks.append([])
            is_name = True
        else:
            if is_name:
                stacks[-1].append(short_name(line))
            is_name = not is_name
    return stacks


def short_name(signature: str) -> str:
    """`a::B<c>::f<d>(e) const` -> `f`."""
    plain = None
    while plain != signature:
        plain, signature = signature, re.sub(r"<[^<>]*>|\(anonymous namespace\)", "", signature)
    return signature.split("(")[0].split("::")[-1].split(" ")[-1]


def part_of(stack: list[str]) -> str:
    """The part of the innermost function that belongs to one."""
    for name in stack:
        for part, functions in PARTS.items():
            if name in functions:
                return part
    return OTHER


@lru_cache(maxsize=1)
def disassembly(library: Path) -> list[tuple[int, str, str]]:
    """(address, instruction, its operands up to the first blank)."""
    code = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\t(\S+) *(\S*)", code, re.MULTILINE)
    return [(int(address, 16), name, operands) for address, name, operands in lines]


def hot_loop(library: Path, counts: Mapping[int, int]) -> dict[str, int]:
    """Instructions, by kind, of the innermost loop that has most of the samples."""
    lines = disassembly(library)
    loops = [
        (int(target, 16), address)
        for address, name, target in lines
        if name.startswith("j") and re.fullmatch("[0-9a-f]+", target) and int(target, 16) < address
    ]
    samples: Counter[tuple[int, int]] = Counter()
    for hit in sorted(counts, key=lambda hit: -counts[hit])[:MOST_HIT]:
        around = [loop for loop in loops if loop[0] <= hit <= loop[1]]
        if around:
            samples[min(around, key=lambda loop: loop[1] - loop[0])] += counts[hit]
    if not samples:
        return {}
    start, end = max(samples, key=lambda loop: samples[loop])
    names = [name for address, name, _ in lines if start <= address <= end]
    kinds = {
        kind: sum(bool(re.match(pattern, name)) for name in names)
        for kind, pattern in INSTRUCTIONS.items()
    }
    return {"instructions": len(names), **kinds}


def reason(row: Mapping[str, Any]) -> str:
    """Where the time of a case goes, in half a sentence."""
    shares = {part: ms / row["kernel_ms"] for part, ms in row["parts_ms"].items()}
    products = shares.pop("products")
    rest = sorted(shares, key=lambda part: -shares[part])[:2]
    return (
        f"products take {products:.0%} of the time, at {row['products_share_of_peak']:.0%} of the "
        f"FMA peak; then come " + " and ".join(f"{part} ({shares[part]:.0%})" for part in rest)
    )


def section(result: Mapping[str, Any], name: str) -> list[str]:
    """The page of a result file."""
    header = ["case", "mode", "kernel ms", *PARTS, OTHER, "products at, of FMA peak", "their loop"]
    lines = []
    for row in result["profile"]:
        shares = [f"{ms / row['kernel_ms']:.0%}" for ms in row["parts_ms"].values()]
        loop = ", ".join(f"{count} {kind}" for kind, count in row["loop"].items())
        speed = f"{row['products_share_of_peak']:.0%}"
        lines.append([row["case"], row["mode"], f"{row['kernel_ms']:.3g}", *shares, speed, loop])
    about = result["machine"]
    return [
        "",
        f"## {name}",
        "",
        f"Where the kernels' time goes, sampled on one thread: {about['cpu']}, {about['isa']}, "
        f"commit {result['commit']}, FMA peak {result['fma_gflops']:.0f} GFLOP/s. Shares of kernel "
        f"time; what Python and the dispatcher take comes on top. The speed of the products counts "
        f"operations that are needed, not the lanes that H = 30 or C = 5 leave empty.",
        "",
        table.markdown(header, lines),
    ]


if __name__ == "__main__":
    main()
