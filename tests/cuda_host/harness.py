"""The CUDA kernels as a backend on CPU tensors: compiled by g++, executed by the emulator.

`build` compiles csrc/cuda with the emulator; `Emulated` is one build with its schedule and the
limits of the device that it pretends to be; `Switch` makes it a backend of the package, so that the
functions of the package, their derivatives included, run on it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from strnn_kernels import registration
from strnn_kernels.backends import BACKENDS, Backend, use_backend
from strnn_kernels.composed import program_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
BUILD = ROOT / "build" / "cuda_host"
KERNELS = (
    *(f"sweep_{way}{family}.cu" for way in ("forward", "backward")
      for family in ("", "_warp", "_tensor", "_cluster", "_level")),
    "sparse_projection_kernel.cu",
)  # fmt: skip
RUNTIME = ("scheduler.cpp", "checker.cpp", "tensor_core.cpp")
COMMON = ["-std=c++17", "-g1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]
_CHECKED = ["-fno-tree-vectorize", "-fno-store-merging", "-fsanitize=thread"]
#: -O1: at -O2 the compiler takes longer than the tests would save.
MODES = {"fast": ["-O1"], "race": ["-O1", *_CHECKED]}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: Families of kernels in the planner's order; see csrc/cuda/planner.h.
FAMILIES = ("general", "warp_per_row", "tensor_core", "cluster", "level")
#: Architecture, multiprocessors, shared bytes of a block and of a multiprocessor.
H200 = (90, 132, 227 * 1024, 228 * 1024)
GAP = 256


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(" ".join(command) + "\n" + done.stderr[-4000:])


def _text(source: Path, seen: set[Path]) -> str:
    """The text of a file and of all that it includes by a relative path, each once."""
    source = source.resolve()
    if source in seen or not source.exists():
        return ""
    seen.add(source)
    text = source.read_text()
    included = re.findall(r'^#include "(.+)"', text, re.M)
    places = [p for name in included for p in (source.parent / name, ROOT / name)]
    return text + "".join(_text(place, seen) for place in places)


def _compile(source: Path, flags: Sequence[str], forced: Path | None = None) -> Path:
    """The object file of source, compiled again only if it or what it includes changed."""
    text = _text(source, set()) + (_text(forced, set()) if forced else "")
    key = hashlib.sha1((text + " ".join(flags)).encode()).hexdigest()[:16]
    to = BUILD / f"{source.stem}-{key}.o"
    if not to.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        part = to.with_suffix(f".{os.getpid()}")
        include = [f"-I{CUDA_HOME}/include", f"-I{ROOT}"]
        force = ["-include", str(forced)] if forced else []
        command = ["g++", *COMMON, *flags, *include, *force, "-x", "c++", "-c", str(source)]
        _run([*command, "-o", str(part)])
        part.rename(to)
    return to


def link(name: str, objects: Sequence[Path]) -> Path:
    """The shared library of the objects, made if it is not there."""
    key = hashlib.sha1(" ".join(o.name for o in objects).encode()).hexdigest()[:16]
    library = BUILD / f"{name}-{key}.so"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        _run(["g++", "-shared", *map(str, objects), "-ldl", "-o", str(part)])
        part.rename(library)
    return library


def missing() -> str | None:
    """What the emulator needs and this machine lacks, or None."""
    if shutil.which("g++") is None:
        return "no g++"
    if not (CUDA_HOME / "include" / "cuda_bf16.h").exists():
        return f"no CUDA headers in {CUDA_HOME}/include"
    return None


def build(mode: str = "fast", sources: Path = ROOT / "csrc" / "cuda") -> Path:
    """The shared library of the kernels in `sources` in one of `MODES`.

    `sources` may be a changed copy (the mutation test), beside a copy of csrc/common.
    """
    runtime = [_compile(HERE / file, ["-O2"]) for file in RUNTIME]
    kernels = [_compile(sources / file, MODES[mode], HERE / "cuda_host.h") for file in KERNELS]
    host = [_compile(file, ["-O2"]) for file in (sources / "planner.cpp", HERE / "entry.cpp")]
    return link(f"kernels-{mode}", [*runtime, *kernels, *host])


class Emulated:
    """One build of the kernels.

    Attributes:
        seed: the schedule: 0 round robin, 1 last woken first, even: one random warp as far as it
            gets, odd: a random thread every time.
        device: the limits that the planner sees.
        family: one of `FAMILIES`: the only one that may be chosen.
    """

    def __init__(self, library: Path, device=H200, seed: int = 0, family: str | None = None):
        self.library = library
        max_cluster = 16 if device[0] >= 90 else 0
        self.device = (*device, max_cluster, -1 if family is None else FAMILIES.index(family))
        self.seed = seed
        self._c = ctypes.CDLL(str(library))
        self._c.host_error.restype = ctypes.c_char_p
        self._c.emu_register.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        self._kept: list[torch.Tensor] = []

    def _guarded(self, name: str, like: torch.Tensor | None, shape, dtype, flags: int):
        """A copy of a tensor, or new memory full of NaN, with forbidden memory on both sides."""
        size = torch.empty((), dtype=dtype).element_size()
        count = 1
        for extent in shape:
            count *= extent
        raw = torch.full((count * size + 2 * GAP,), 0xFF, dtype=torch.uint8)
        start = (-raw.data_ptr()) % GAP
        view = raw[start : start + count * size].view(dtype).view(shape)
        if like is not None:
            view.copy_(like)
        self._kept.append(raw)
        self._c.emu_register(view.data_ptr(), count * size, name.encode(), flags)
        return view

    def call(self, name: str, sizes, inputs: dict, outputs: dict, dtype: torch.dtype) -> dict:
        """Runs host_<name>. inputs: name -> tensor or None; outputs: name -> shape or None."""
        self._c.emu_unregister_all()
        self._c.emu_seed(self.seed)
        self._kept = []
        given = {
            n: None if t is None else self._guarded(n, t, t.shape, t.dtype, 1)
            for n, t in inputs.items()
        }
        made = {
            n: None if s is None else self._guarded(n, None, s, dtype, 2)
            for n, s in outputs.items()
        }

        def pointers(tensors):
            return (ctypes.c_void_p * max(1, len(tensors)))(
                *(None if t is None else t.data_ptr() for t in tensors.values())
            )

        entry = getattr(self._c, f"host_{name}")
        entry.restype = ctypes.c_int64
        common = (
            (ctypes.c_int64 * len(sizes))(*sizes),
            pointers(given),
            pointers(made),
            DTYPES[dtype],
            (ctypes.c_int64 * 6)(*self.device),
        )
        wanted = entry(*common, None)
        if wanted >= 0:
            scratch = self._guarded("workspace", None, (wanted + 1,), torch.uint8, 2)
            wanted = entry(*common, ctypes.c_void_p(scratch.data_ptr()))
        if wanted < 0:
            raise RuntimeError(self._places(self._c.host_error().decode()))
        return {n: None if t is None else t.clone() for n, t in made.items()}

    def _places(self, report: str) -> str:
        """The report with source lines in place of addresses."""

        def line(match):
            command = ["addr2line", "-i", "-s", "-e", match[1], match[2]]
            found = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
            own = [
                x.split(" (disc")[0] for x in found if x and "cuda_host" not in x and "ptx" not in x
            ]
            return f"[{own[0] if own else found[0]}]"

        return re.sub(r"\[([^\]\[]+\.so)\+(0x[0-9a-f]+)\]", line, report)

    # --- the ops of strnn_kernels.schema ---

    def _sweep(self, x, w_ih, bias, w_hh, mask, h0, entry, projection, tables, cell, allow_tf32):
        """Sizes and inputs of one sweep; weights as lists of one."""
        w_ih, bias, w_hh = (w[0] if w else None for w in (w_ih, bias, w_hh))
        (B, N), (D, H) = x.shape[:2], w_hh.shape[:2]
        C = 0 if w_ih is None else w_ih.shape[2]
        K = 0 if projection is None else projection.shape[1]
        names = ("x", "w_ih", "bias", "w_hh", "mask", "h0", "entry", "projection", "table")
        table, (groups, slots) = tables
        values = (x, w_ih, bias, w_hh, mask, h0, entry, projection, table)
        sizes = (B, N, D, C, H, K, cell, groups, slots, table.numel(), allow_tf32)
        return sizes, dict(zip(names, values, strict=True))

    def sweep_fwd(self, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, _reversed,
                  sizes, cell, mean, keep_h, keep_c, keep_last, save, allow_tf32):  # fmt: skip
        n, given = self._sweep(
            x, w_ih, bias, w_hh, mask, h0, entry, projection,
            program_of(x, w_hh, program, sizes, 0), cell, allow_tf32,
        )  # fmt: skip
        B, N, D, _, H, K = n[:6]
        wanted = {
            "h": (B, N, D, H) if keep_h else None,
            "pre": None,
            "s": (B, D, K, H) if K else None,
        }
        made = self.call("sweep", n, given | {"gate": None}, wanted, x.dtype)
        results = [x.new_empty(0) if made[k] is None else made[k] for k in ("h", "s")]
        return *results, *(x.new_empty(0) for _ in range(4))

    def sweep_bwd(self, dh, ds, dc, dh_n, dc_n, x, h, saved, w_ih, bias, w_hh, mask, h0, c0, entry,
                  projection, reversed_program, sizes, cell, mean, need_dx,
                  allow_tf32):  # fmt: skip
        n, given = self._sweep(
            x, w_ih, bias, w_hh, mask, h0, entry, projection,
            program_of(x, w_hh, reversed_program, sizes, 2), cell, allow_tf32,
        )  # fmt: skip
        of = {"dx": x if need_dx else None}
        of |= {"d" + k: given[k] for k in ("w_ih", "bias", "w_hh", "h0", "projection")}
        given |= {"h": h, "dh": dh, "ds": ds, "gate": None, "pre": None}
        wanted = {"dgate": None} | {k: None if t is None else t.shape for k, t in of.items()}
        made = self.call("sweep_backward", n, given, wanted, x.dtype)
        *results, dprojection = (x.new_empty(0) if made[k] is None else made[k] for k in of)
        return *results, x.new_empty(0), dprojection

    def gated_sweep_fwd(self, g, gate, w, program, reversed_program, sizes, allow_tf32=False):
        n, given = self._gated(g, w, program, sizes[:2], allow_tf32)
        wanted = {"h": g.shape, "pre": None, "s": None}
        return self.call("sweep", n, given | {"gate": gate}, wanted, g.dtype)["h"]

    def gated_sweep_bwd(self, dy, y, g, gate, w, program, reversed_program, sizes,
                        allow_tf32=False):  # fmt: skip
        n, given = self._gated(g, w, program, sizes[:2], allow_tf32)
        wanted = {"h": None, "pre": g.shape, "s": None}
        pre = self.call("sweep", n, given | {"gate": gate}, wanted, g.dtype)["pre"]
        n, given = self._gated(g, w, reversed_program, sizes[2:], allow_tf32)
        given |= {"h": y, "dh": dy, "ds": None, "gate": gate, "pre": pre}
        wanted = {"dgate": g.shape, "dx": g.shape, "dw_ih": None, "dbias": None, "dw_hh": w.shape}
        wanted |= {"dh0": None, "dprojection": None}
        made = self.call("sweep_backward", n, given, wanted, g.dtype)
        return made["dx"], made["dgate"], made["dw_hh"]

    def _gated(self, g, w, table, sizes, allow_tf32):
        nothing = (None,) * 4
        return self._sweep(g, [], [], [w], *nothing, (table, sizes), 0, allow_tf32)

    def sparse_projection_fwd(self, h, weight):
        (B, N, D, H), K = h.shape, weight.shape[1]
        given, wanted = {"h": h, "weight": weight}, {"s": (B, D, K, H)}
        return self.call("sparse_projection", (B, N, D, H, K), given, wanted, h.dtype)["s"]

    def sparse_projection_bwd(self, ds, h, weight):
        (B, N, D, H), K = h.shape, weight.shape[1]
        given, wanted = (
            {"ds": ds, "h": h, "weight": weight},
            {"dh": h.shape, "dweight": weight.shape},
        )
        made = self.call("sparse_projection_backward", (B, N, D, H, K), given, wanted, h.dtype)
        return made["dh"], made["dweight"]


class Switch:
    """The backend "cuda_host", whose ops go to whichever `Emulated` runs."""

    def __init__(self):
        self._current: Emulated | None = None
        self._backend = Backend("cuda_host", ("cpu",), tuple(DTYPES), None, has_tf32=True)
        registration._OPS["cuda_host"] = registration._register(self._backend)
        self._library = torch.library.Library(self._backend.namespace, "IMPL")
        for op in registration.OPS:
            self._library.impl(op.name, self._forwarder(op.name), "CPU")

    def _forwarder(self, name: str):
        return lambda *args: getattr(self._current, name)(*args)

    @contextmanager
    def running(self, emulated: Emulated) -> Iterator[None]:
        """The package's functions run on `emulated`; other tests do not see the backend."""
        self._current = emulated
        BACKENDS[self._backend.name] = self._backend
        try:
            with use_backend(self._backend.name):
                yield
        finally:
            del BACKENDS[self._backend.name]
            self._current = None
