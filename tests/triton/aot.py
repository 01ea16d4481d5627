"""Compiles every kernel variant ahead of time, with no GPU, and counts what each one uses.

The variants are what the ops launch: each call below runs on tensors without data, with the kernels
replaced by recorders, and every launch recorded is compiled as it stands. Run as
``python aot.py 80 gfx942`` (prints JSON) or ``python aot.py --write`` (rewrites budget.json, of all
architectures or of those named).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from strnn_kernels.backends.triton import (
    gated_sweep,
    launch,
    sparse_projection,
    sweep,
    sweep_weights,
)
from strnn_kernels.notation import CELLS, bias_rows, gates, saved
from strnn_kernels.testing import (
    CONFORMANCE,
    Case,
    sweep_arguments,
    sweep_backward_arguments,
)
from strnn_kernels.topology import Topology

#: Of NVIDIA, by number, and of AMD, by name.
ARCHITECTURES = ("80", "90", "100", "gfx90a", "gfx942", "gfx950", "gfx1100")
#: What is compiled for AMD: a kernel of each kind, and of gated cells a graph and a chain in both
#: passes.
AMD_VARIANTS = (
    "seed fwd relu", "seed bwd bf16", "image 64 fwd bf16", "chain 128 fwd mask bf16",
    "chain 256 bwd bf16", "projection bwd bf16", "seed fwd gru", "image 64 bwd lstm bf16",
    "chain 128 bwd gru", "chain 128 fwd lstm f16",
)  # fmt: skip
#: Counts of a variant that may not grow.
COUNTS = ("registers", "stack", "spills", "shared")
BUDGET = Path(__file__).with_name("budget.json")
#: Bytes of shared memory that a program may ask for.
SHARED_LIMIT = {
    "80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024, "gfx90a": 64 * 1024,
    "gfx942": 64 * 1024, "gfx950": 160 * 1024, "gfx1100": 64 * 1024,
}  # fmt: skip
KERNELS = (
    (sweep, "sweep_kernel"),
    (sweep, "sweep_wide_kernel"),
    (sweep_weights, "sweep_weights_kernel"),
    (sparse_projection, "project_kernel"),
    (sparse_projection, "project_weights_kernel"),
)
_OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
_TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip


@dataclass
class Recorder:
    """Stands in for a kernel and keeps its launches."""

    kernel: Callable
    launches: list

    def __getitem__(self, grid):
        """The kernel with a grid, ready to be called."""
        return lambda *args, **options: self.launches.append((self.kernel, args, options))


@contextmanager
def recorded(launches: list) -> Iterator[None]:
    """Inside, launches go to the list; the device has the multiprocessors of an H200."""
    kept = [(module, name, getattr(module, name)) for module, name in KERNELS]
    count = launch.num_multiprocessors
    launch.num_multiprocessors = lambda device: 132
    for module, name, kernel in kept:
        setattr(module, name, Recorder(kernel, launches))
    try:
        yield
    finally:
        launch.num_multiprocessors = count
        for module, name, kernel in kept:
            setattr(module, name, kernel)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def call(
    op: str, topology: Topology, B: int, H: int, dtype: torch.dtype, *, C: int = 0, K: int = 0,
    keep_h: bool = True, has_mask: bool = False, has_h0: bool = False, has_entry: bool = False,
    has_ds: bool = False, has_c0: bool = False, keep_c: bool = False, cell: int = 2,
    mean: bool = False, precision: str = "ieee",
) -> None:  # fmt: skip
    """One raw op of the schema on tensors without data."""
    allow_tf32 = precision != "ieee"
    if allow_tf32:
        os.environ["STRNN_TRITON_TF32"] = precision
    N, D = topology.num_nodes, topology.num_directions
    forth, back = topology.program("levels"), topology.reversed().program("levels")
    program = empty(forth.table("cpu").numel(), dtype=torch.int32)
    sizes = [forth.num_groups, forth.num_slots, back.num_groups, back.num_slots]
    t = partial(empty, dtype=dtype)
    G = gates(cell)
    states, w = t(B, N, D, H), t(D, G * H, H)
    x, w_ih, bias = states, None, None
    if C:
        x, w_ih, bias = t(B, N, C), t(D, G * H, C), t(D, bias_rows(cell) * H)
    known = t(B, N, D, saved(cell) * H) if G > 1 else None
    mask = empty(B, N, dtype=torch.bool) if has_mask else None
    h0, c0 = (t(B, D, H) if has else None for has in (has_h0, has_c0))
    entry = empty(B, D, dtype=torch.int64) if has_entry else None
    projection = t(D, K, N) if K else None
    inputs = {
        "w_ih": w_ih, "bias": bias, "mask": mask, "h0": h0, "c0": c0, "entry": entry,
        "projection": projection, "allow_tf32": allow_tf32, "mean": mean,
    }  # fmt: skip
    tables = (program, program, sizes)
    ds = t(B, D, K, H) if has_ds else None
    dh = None if has_ds else states
    calls = {
        "sweep_fwd": lambda: sweep.sweep_fwd(
            *sweep_arguments(
                x, w, tables, cell, keep_h=keep_h, keep_c=keep_c, save=keep_h, **inputs
            )
        ),
        "sweep_bwd": lambda: sweep.sweep_bwd(
            *sweep_backward_arguments(
                x,
                states,
                w,
                tables,
                cell,
                dh=dh,
                ds=ds,
                dc=states if keep_c else None,
                saved=known,
                **inputs,
            )
        ),
        "gated_sweep_fwd": lambda: gated_sweep.gated_sweep_fwd(
            states, states, w, program, program, sizes, allow_tf32
        ),
        "gated_sweep_bwd": lambda: gated_sweep.gated_sweep_bwd(
            states, states, states, states, w, program, program, sizes, allow_tf32
        ),
        "sparse_projection_fwd": lambda: sparse_projection.sparse_projection_fwd(
            states, projection
        ),
        "sparse_projection_bwd": lambda: sparse_projection.sparse_projection_bwd(
            t(B, D, K, H), states, projection
        ),
    }
    calls[op]()


def variants() -> dict[str, Callable]:
    """Calls by name."""
    cap, image = Topology.montage("seed-62"), Topology.grid(32, 32)
    chain = Topology.chain(512)
    f32, f64, bf16, f16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
    fwd, bwd = partial(call, "sweep_fwd"), partial(call, "sweep_bwd")
    gru, lstm = CELLS.index("gru"), CELLS.index("lstm")
    return {
        "seed fwd relu": partial(fwd, cap, 288, 30, f32, C=5, cell=1),
        "seed bwd relu": partial(bwd, cap, 288, 30, f32, C=5, cell=1),
        "seed fwd K": partial(fwd, cap, 288, 30, f32, C=5, K=10, keep_h=False),
        "seed bwd K mask": partial(bwd, cap, 288, 30, f32, C=5, K=10, has_ds=True, has_mask=True),
        "seed fwd K bf16": partial(fwd, cap, 288, 30, bf16, C=5, K=10, keep_h=False),
        "seed fwd f16": partial(fwd, cap, 288, 30, f16, C=5),
        "seed bwd bf16": partial(bwd, cap, 288, 30, bf16, C=5),
        "seed bwd f64": partial(bwd, cap, 288, 30, f64),
        "image 64 fwd": partial(fwd, image, 16, 64, f32, C=64),
        "image 64 bwd": partial(bwd, image, 16, 64, f32, C=64),
        "image 64 fwd bf16": partial(fwd, image, 16, 64, bf16, C=64),
        "image 64 bwd bf16": partial(bwd, image, 16, 64, bf16, C=64),
        "image 128 fwd": partial(fwd, image, 16, 128, f32, C=128),
        "image 128 bwd": partial(bwd, image, 16, 128, f32, C=128),
        "image 128 fwd bf16": partial(fwd, image, 64, 128, bf16, C=128),
        "image 128 bwd bf16": partial(bwd, image, 64, 128, bf16, C=128),
        "chain 30 fwd mask": partial(fwd, chain, 32, 30, f32, C=30, has_mask=True),
        "chain 30 bwd mask": partial(bwd, chain, 32, 30, f32, C=30, has_mask=True),
        "chain 30 fwd wide batch": partial(fwd, chain, 4608, 30, f32, C=30),
        "chain 64 fwd": partial(fwd, chain, 32, 64, f32, C=64),
        "chain 128 fwd": partial(fwd, chain, 64, 128, f32, C=128),
        "chain 128 bwd": partial(bwd, chain, 64, 128, f32, C=128),
        "chain 128 fwd bf16": partial(fwd, chain, 64, 128, bf16, C=128),
        "chain 128 bwd bf16": partial(bwd, chain, 64, 128, bf16, C=128),
        "chain 128 fwd mask bf16": partial(fwd, chain, 64, 128, bf16, C=128, has_mask=True),
        "chain 256 fwd": partial(fwd, chain, 64, 256, f32, C=256),
        "chain 192 bwd": partial(bwd, chain, 64, 192, f32, C=192),
        "chain 1024 fwd": partial(fwd, Topology.chain(2), 64, 1024, f32, C=256),
        "chain 1024 fwd bf16": partial(fwd, Topology.chain(2), 64, 1024, bf16, C=256),
        "chain 256 bwd bf16": partial(bwd, chain, 64, 256, bf16, C=128),
        "gated 30 bwd": partial(call, "gated_sweep_bwd", cap, 288, 30, f32),
        "projection bwd bf16": partial(call, "sparse_projection_bwd", cap, 288, 30, bf16, K=10),
        "chain 128 fwd tf32": partial(fwd, chain, 64, 128, f32, C=128, precision="tf32"),
        "chain 128 bwd tf32": partial(bwd, chain, 64, 128, f32, C=128, precision="tf32"),
        "seed fwd tf32x3": partial(fwd, cap, 288, 30, f32, C=5, precision="tf32x3"),
        "seed fwd gru": partial(fwd, cap, 288, 30, f32, C=5, cell=gru, mean=True),
        "seed bwd lstm K mask": partial(
            bwd, cap, 288, 30, f32, C=5, K=10, has_ds=True, has_mask=True, cell=lstm, mean=True
        ),
        "seed fwd lstm bf16": partial(fwd, cap, 288, 30, bf16, C=5, cell=lstm, mean=True),
        "image 64 bwd lstm bf16": partial(bwd, image, 16, 64, bf16, C=64, cell=lstm, mean=True),
        "chain 30 fwd lstm": partial(fwd, chain, 8, 30, f32, C=30, cell=lstm),
        "chain 128 bwd gru": partial(bwd, chain, 32, 128, f32, C=128, cell=gru),
        "chain 128 fwd lstm f16": partial(fwd, chain, 64, 128, f16, C=128, cell=lstm),
    }


def calls_of(case: Case, dtype: torch.dtype, precision: str) -> Iterator[Callable]:
    """What a case of the shared table asks of the raw ops."""
    op = case.op if case.op in ("gated_sweep", "sparse_projection") else "sweep"
    sizes = {"B": case.B, "H": case.H, "C": case.C, "K": case.K}
    options = {
        "has_mask": case.has_mask or case.has_lengths, "has_h0": case.has_h0,
        "has_entry": case.has_h0 and case.has_lengths,
        "has_c0": case.has_c0, "keep_c": case.returns_carry, "cell": case.code,
        "mean": case.mean,
        "precision": precision,
    }  # fmt: skip
    make = partial(call, topology=case.topology, dtype=dtype, **sizes, **options)
    yield partial(make, f"{op}_fwd", keep_h=not case.K)
    yield partial(make, f"{op}_bwd", has_ds=case.K > 0)
    if op == "sweep" and case.K:
        yield partial(make, f"{op}_fwd")


def compiler_options(options: dict) -> dict:
    """Those of a launch's options that are the compiler's."""
    return {name: options[name] for name in _OPTIONS if name in options}


def read(kernel, signature, constants, attributes, options) -> None:
    """Has the compiler read a kernel: names, types and shapes; what the interpreter lets pass."""
    target = GPUTarget("cuda", 90, 32)
    backend, source = make_backend(target), ASTSource(kernel, signature, constants, attributes)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    known = backend.parse_options(compiler_options(options))
    functions = backend.get_codegen_implementation(known)
    source.make_ir(target, known, functions, backend.get_module_map(), context)


def launches_of(make: Callable) -> list:
    """What a call launches, each once."""
    found: list = []
    with recorded(found):
        make()
    seen: dict[str, tuple] = {}
    for kernel, args, options in found:
        signature, constants, attributes = specialise(kernel, args, options)
        text = repr((kernel.__name__, signature, constants, attributes))
        seen.setdefault(text, (kernel, signature, constants, attributes, options))
    return list(seen.values())


def read_cases() -> int:
    """Reads what the shared table launches, each case in its dtype and in one other; how many.

    Gated ones, which take long, in one of the two.
    """
    others = ((torch.float64, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32"))
    launches = {}
    for i, case in enumerate(CONFORMANCE):
        kinds = ((case.dtype, "ieee"), others[i % len(others)])
        for dtype, precision in kinds[i % 2 :][:1] if case.needs_cells else kinds:
            for make in calls_of(case, dtype, precision):
                launches |= {repr(launched): launched for launched in launches_of(make)}
    for launched in launches.values():
        read(*launched)
    return len(launches)


def kernels_for_sizes() -> str:
    """How many kernels several batch sizes and lengths of a chain need, forward and backward."""
    counts = []
    for op in ("sweep_fwd", "sweep_bwd"):
        texts = set()
        for T, B in ((1, 1), (2, 16), (7, 5), (64, 160)):
            make = partial(call, op, Topology.chain(T), B, 30, torch.float32, C=30, has_mask=True)
            texts |= {repr(launched[1:4]) for launched in launches_of(make)}
        counts.append(str(len(texts)))
    return " ".join(counts)


def specialise(kernel, args, options):
    """Types, constants and known divisors, as Triton's own launcher derives them."""
    names = kernel.arg_names
    values = dict(zip(names, args, strict=False))
    values |= {name: value for name, value in options.items() if name in names}
    signature, constants, attributes = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(names, kernel.params, strict=True)):
        value = values[name]
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:  # as it is without data
                attributes[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (
            value == 1 and not parameter.do_not_specialize
        ):  # fmt: skip
            signature[name], constants[(index,)] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def measure_amd(source: ASTSource, options: dict, architecture: str) -> dict:
    """Compiles one launch for an AMD GPU, with as many threads, and reads what it uses."""
    lanes = 64 if architecture.startswith("gfx9") else 32
    known = {"num_warps": max(1, 32 * options["num_warps"] // lanes), "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("hip", architecture, lanes), options=known)
    text = compiled.asm["amdgcn"]

    def count(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return {
        "registers": count("vgpr_count"),
        "stack": count("private_segment_fixed_size"),
        "spills": count("vgpr_spill_count") + count("sgpr_spill_count"),
        "shared": compiled.metadata.shared,
        "warps": known["num_warps"],
        "tensor_core": bool(re.search(r"\bv_\w*(?:mfma|wmma)", text)),
    }


def measure(kernel, signature, constants, attributes, options, architecture: str) -> dict:
    """Compiles one launch and reads its resources from the binary."""
    source = ASTSource(kernel, signature, constants, attributes)
    if architecture.startswith("gfx"):
        return measure_amd(source, options, architecture)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", int(architecture), 32),
        options=compiler_options(options),
    )
    tool = Path(triton.backends.nvidia.__file__).with_name("bin") / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            command = [str(tool), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        usage = re.search(r"REG:(\d+) STACK:(\d+)", dump("--dump-resource-usage"))
        sass = dump("-sass")
    return {
        "registers": int(usage[1]),
        "stack": int(usage[2]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "shared": compiled.metadata.shared,
        "warps": options["num_warps"],
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/ ", sass)),
        "tensor_core": bool(re.search(r"\b(?:HMMA|DMMA|HGMMA|UTC\w*MMA)\b", sass)),
    }


def table(architectures: tuple[str, ...] = ARCHITECTURES) -> dict:
    """{variant: {architecture: resources}}."""
    found: dict[str, dict] = {}
    for name, make in variants().items():
        count: dict[str, int] = {}
        wanted = [a for a in architectures if a[:3] != "gfx" or name in AMD_VARIANTS]
        for launched in launches_of(make) if wanted else ():
            kernel = launched[0].__name__.removesuffix("_kernel")
            count[kernel] = count.get(kernel, 0) + 1
            key = f"{name}: {kernel}" + (f" {count[kernel]}" if count[kernel] > 1 else "")
            found[key] = {a: measure(*launched, a) for a in wanted}
    return found


def violations(found: dict, budget: dict) -> list[str]:
    """What breaks a rule or exceeds the budget of this version of Triton (empty: none known)."""
    wrong = []
    for name, by_architecture in found.items():
        for architecture, counts in by_architecture.items():
            at = f"{name}, {architecture}"
            is_amd = architecture.startswith("gfx")
            if not is_amd and (counts["spills"] or counts["stack"]):
                wrong.append(f"{at}: spills {counts['spills']}, stack {counts['stack']}")
            if counts["shared"] > SHARED_LIMIT[architecture]:
                wrong.append(f"{at}: {counts['shared']} bytes of shared memory")
            # Exact float32 must not go through tensor cores, all else must; for float64 the
            # compiler chooses by architecture, and AMD's are exact.
            is_exact = not any(word in name for word in ("f16", "tf32"))
            if counts["tensor_core"] == is_exact and "f64" not in name and not is_amd:
                wrong.append(f"{at}: tensor cores {'used' if is_exact else 'not used'}")
            allowed = budget.get(name, {}).get(architecture)
            if budget and allowed is None:
                wrong.append(f"{at}: has no budget")
            for count in COUNTS if allowed else ():
                if counts[count] > allowed[count]:
                    wrong.append(f"{at}: {count} {counts[count]}, at most {allowed[count]}")
    return wrong


def main(arguments: list[str]) -> None:
    """See the head of the file."""
    architectures = tuple(a for a in arguments if a != "--write")
    found = table(architectures or ARCHITECTURES)
    if "--write" not in arguments:
        print(json.dumps(found))
        return
    known = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    of_version = known.setdefault(triton.__version__, {}) if architectures else {}
    for name, counts in found.items():
        of_version[name] = of_version.get(name, {}) | counts
    known[triton.__version__] = of_version
    BUDGET.write_text(as_lines(known))


def as_lines(versions: dict) -> str:
    """JSON with one line for each kernel and architecture."""
    blocks = []
    for version, variants_of in sorted(versions.items()):
        rows = []
        for name, by_architecture in variants_of.items():
            lines = [f'   "{a}": {json.dumps(counts)}' for a, counts in by_architecture.items()]
            rows.append(f'  "{name}": {{\n' + ",\n".join(lines) + "\n  }")
        blocks.append(f' "{version}": {{\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


if __name__ == "__main__":
    main(sys.argv[1:])
