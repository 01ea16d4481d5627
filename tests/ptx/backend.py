"""The two GPU backends as one of the package's on CPU tensors, executed from their PTX."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

from strnn_kernels import registration
from strnn_kernels.backends import BACKENDS, Backend, use_backend
from strnn_kernels.backends import triton as triton_backend
from strnn_kernels.backends.triton import launch
from strnn_kernels.composed import program_of
from strnn_kernels.notation import CELLS, saved
from tests.ptx import decode
from tests.triton import aot

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
#: Families of CUDA kernels in the planner's order; see csrc/cuda/planner.h.
FAMILIES = ("row", "tensor_core", "cluster", "level")
#: Architecture, multiprocessors, shared bytes of a block and of a multiprocessor.
H100 = (90, 132, 227 * 1024, 228 * 1024)
A100 = (80, 108, 163 * 1024, 164 * 1024)
GAP = 4096
#: Outputs that a gated sweep has none of.
_NO_OUTPUTS = {"s": None, "c": None, "saved": None}


@contextmanager
def running(executed) -> Iterator[None]:
    """The package's functions run on `executed`, which has the ops of the schema as methods."""
    backend = Backend(
        "ptx", ("cpu",), tuple(DTYPES), None,
        has_tf32=executed.has_tf32, gives_last=executed.gives_last,
    )  # fmt: skip
    if backend.name not in registration._OPS:
        registration._OPS[backend.name] = registration._register(backend)
        library = torch.library.Library(backend.namespace, "IMPL")
        for op in registration.OPS:
            library.impl(op.name, _forwarder(op.name), "CPU")
        _RUNNING["library"] = library
    _RUNNING["executed"] = executed
    BACKENDS[backend.name] = backend
    # Products outside a sweep are torch's own, here on a CPU, where oneDNN's of bfloat16 by AMX let
    # a NaN of one row reach others if rows are of odd size (torch 2.13; its flags warn).
    had_onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with executed.active(), use_backend(backend.name):
            yield
    finally:
        del BACKENDS[backend.name], _RUNNING["executed"]
        torch._C._set_mkldnn_enabled(had_onednn)


_RUNNING: dict[str, object] = {}


def _forwarder(name: str):
    return lambda *args: getattr(_RUNNING["executed"], name)(*args)


class Cuda:
    """The CUDA backend: its own host code plans and launches, the PTX of nvcc is executed.

    Args:
        built: what `build.cuda` made.
        device: the limits that the planner sees.
        family: one of `FAMILIES`, the only one that may be chosen.
        seed: the schedule; 0 runs lanes in ascending order.
        offset: elements between an aligned place and the first of each tensor.
    """

    gives_last = has_tf32 = False

    def __init__(self, built, device=H100, family: str | None = None, seed=1, offset=0):
        library, self._files = built
        max_cluster = 16 if device[0] >= 90 else 0
        only = -1 if family is None else FAMILIES.index(family)
        self._device = (ctypes.c_int64 * 6)(*device, max_cluster, only)
        self._architecture, self._seed, self._offset = device[0], seed, offset
        self._host = ctypes.CDLL(str(library))
        self._host.host_error.restype = ctypes.c_char_p
        self._host.host_tells(decode.library().ptx_wrote)
        self.launched: list[str] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing to be replaced."""
        yield

    def _launch(self, name, grid, block, shared, cluster, args) -> int:
        try:
            kernel = _kernels(*self._files[self._architecture])[name.decode()]()
            parameters = ctypes.string_at(args[0], kernel.parameter_bytes)
            self._seed += 2
            self.launched.append(kernel.name)
            kernel.run(grid[:3], block[:3], parameters, shared, cluster, self._seed)
        except Exception as error:  # it may not go through the C++ that called
            self._error = error
            return 1
        return 0

    def _place(self, like, shape, dtype, name: str, is_writable: bool) -> torch.Tensor:
        """A copy of a tensor, or new memory of NaN, with forbidden memory on both sides."""
        size, count = dtype.itemsize, math.prod(shape)
        raw = torch.full((count * size + 2 * GAP,), 0xFF, dtype=torch.uint8)
        offset = 0 if name == "workspace" else self._offset * size  # the allocator's own is aligned
        start = -raw.data_ptr() % 512 + GAP // 2 + offset
        view = raw[start : start + count * size].view(dtype).view(shape)
        if like is not None:
            view.copy_(like)
        self._kept.append(raw)
        decode.register(
            view.data_ptr(), count * size, name, is_writable=is_writable,
            is_written=like is not None,
        )  # fmt: skip
        return view

    def call(self, name: str, sizes, inputs: dict, outputs: dict, dtype: torch.dtype) -> dict:
        """Runs host_<name>. inputs: name -> tensor or None; outputs: name -> shape or None."""
        decode.forget_buffers()
        self._kept: list[torch.Tensor] = []
        self._error: Exception | None = None
        launch = _LAUNCH(self._launch)
        self._host.runtime_device(self._device, launch)
        given = {
            n: None if t is None else self._place(t, t.shape, t.dtype, n, False)
            for n, t in inputs.items()
        }
        made = {
            n: None if s is None else self._place(None, s, dtype, n, True)
            for n, s in outputs.items()
        }

        def pointers(tensors):
            found = [None if t is None else t.data_ptr() for t in tensors.values()]
            return (ctypes.c_void_p * max(1, len(found)))(*found)

        entry = getattr(self._host, f"host_{name}")
        entry.restype = ctypes.c_int64
        numbers = (ctypes.c_int64 * len(sizes))(*sizes)
        common = (numbers, pointers(given), pointers(made), DTYPES[dtype], self._device)
        wanted = entry(*common, None)
        if wanted >= 0:
            scratch = self._place(None, (max(wanted, 1),), torch.uint8, "workspace", True)
            wanted = entry(*common, ctypes.c_void_p(scratch.data_ptr()))
        if wanted < 0:
            raise self._error or RuntimeError(self._host.host_error().decode())
        return {n: None if t is None else t.clone() for n, t in made.items()}

    # --- the ops of strnn_kernels.schema ---

    def _sweep(self, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, tables, cell, mean):
        """Sizes and inputs of one sweep; weights as lists of one."""
        w_ih, bias, w_hh = (w[0] if w else None for w in (w_ih, bias, w_hh))
        (B, N), (D, _, H) = x.shape[:2], w_hh.shape
        C = 0 if w_ih is None else w_ih.shape[2]
        K = 0 if projection is None else projection.shape[1]
        names = ("x", "w_ih", "bias", "w_hh", "mask", "h0", "c0", "entry", "projection", "table")
        table, (groups, slots) = tables
        values = (x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, table)
        sizes = (B, N, D, C, H, K, cell, mean, groups, slots, table.numel())
        return sizes, dict(zip(names, values, strict=True))

    def sweep_fwd(self, x, w_ih, bias, w_hh, mask, h0, c0, entry, projection, program, _reversed,
                  sizes, cell, mean, keep_h, keep_c, keep_last, save, allow_tf32):  # fmt: skip
        n, given = self._sweep(
            x, w_ih, bias, w_hh, mask, h0, c0, entry, projection,
            program_of(x, w_hh, program, sizes, 0), cell, mean,
        )  # fmt: skip
        B, N, D, _, H, K = n[:6]
        wanted = {
            "h": (B, N, D, H) if keep_h else None,
            "pre": None,
            "s": (B, D, K, H) if K else None,
            "c": (B, N, D, H) if keep_c and CELLS[cell] == "lstm" else None,
            "saved": (B, N, D, saved(cell) * H) if save and saved(cell) else None,
        }
        made = self.call("sweep", n, given | {"gate": None}, wanted, x.dtype)
        h, s, c, kept = (
            x.new_empty(0) if made[k] is None else made[k] for k in ("h", "s", "c", "saved")
        )
        return h, s, c, x.new_empty(0), x.new_empty(0), kept

    def sweep_bwd(self, dh, ds, dc, dh_n, dc_n, x, h, kept, w_ih, bias, w_hh, mask, h0, c0, entry,
                  projection, reversed_program, sizes, cell, mean, need_dx,
                  allow_tf32):  # fmt: skip
        n, given = self._sweep(
            x, w_ih, bias, w_hh, mask, h0, c0, entry, projection,
            program_of(x, w_hh, reversed_program, sizes, 2), cell, mean,
        )  # fmt: skip
        of = {"dx": x if need_dx else None}
        of |= {"d" + k: given[k] for k in ("w_ih", "bias", "w_hh", "h0", "c0", "projection")}
        given |= {"h": h, "dh": dh, "ds": ds, "gate": None, "pre": None}
        given |= {"saved": kept if kept.numel() else None, "dc": dc}
        wanted = {"dgate": None} | {k: None if t is None else t.shape for k, t in of.items()}
        made = self.call("sweep_backward", n, given, wanted, x.dtype)
        return tuple(x.new_empty(0) if made[k] is None else made[k] for k in of)

    def gated_sweep_fwd(self, g, gate, w, program, reversed_program, sizes, allow_tf32=False):
        n, given = self._gated(g, w, program, sizes[:2])
        wanted = {"h": g.shape, "pre": None} | _NO_OUTPUTS
        return self.call("sweep", n, given | {"gate": gate}, wanted, g.dtype)["h"]

    def gated_sweep_bwd(self, dy, y, g, gate, w, program, reversed_program, sizes,
                        allow_tf32=False):  # fmt: skip
        n, given = self._gated(g, w, program, sizes[:2])
        wanted = {"h": None, "pre": g.shape} | _NO_OUTPUTS
        pre = self.call("sweep", n, given | {"gate": gate}, wanted, g.dtype)["pre"]
        n, given = self._gated(g, w, reversed_program, sizes[2:])
        given |= {"h": y, "dh": dy, "ds": None, "gate": gate, "pre": pre, "saved": None, "dc": None}
        wanted = {"dgate": g.shape, "dx": g.shape, "dw_ih": None, "dbias": None, "dw_hh": w.shape}
        wanted |= {"dh0": None, "dc0": None, "dprojection": None}
        made = self.call("sweep_backward", n, given, wanted, g.dtype)
        return made["dx"], made["dgate"], made["dw_hh"]

    def _gated(self, g, w, table, sizes):
        nothing = (None,) * 5
        return self._sweep(g, [], [], [w], *nothing, (table, sizes), 0, False)

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


_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint),
    ctypes.c_uint64, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@cache
def _kernels(*files: Path) -> dict:
    """What decodes each kernel of PTX files, by name."""
    modules = [decode.Module(file.read_text()) for file in files]
    return {name: cache(lambda m=m, n=name: m.kernel(n)) for m in modules for name in m.entries}


class Triton:
    """The Triton backend: its own Python launches, the PTX that Triton emits is executed.

    Args:
        architecture: 80 or 90.
        multiprocessors: how many the launches count on.
        seed: the schedule; 0 runs lanes in ascending order.
        edit: changes the PTX before it is decoded.
    """

    gives_last = has_tf32 = True

    def __init__(self, architecture: int, multiprocessors: int = 132, seed: int = 1, edit=None):
        self._architecture, self._multiprocessors = architecture, multiprocessors
        self._seed, self._edit = seed, edit
        self.launched: list[str] = []

    def __getattr__(self, op: str):
        if op not in triton_backend._OPS:
            raise AttributeError(op)
        return getattr(import_module(f"{triton_backend.__name__}.{triton_backend._OPS[op]}"), op)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Launches come here."""
        with ExitStack() as stack:
            count = mock.patch.object(
                launch, "num_multiprocessors", lambda _: self._multiprocessors
            )
            stack.enter_context(count)
            for module, name in aot.KERNELS:
                replaced = Launcher(self, getattr(module, name))
                stack.enter_context(mock.patch.object(module, name, replaced))
            yield

    def launch(self, kernel, grid, args, options) -> None:
        """Executes one launch."""
        values = dict(zip(kernel.arg_names, args, strict=False)) | options
        decode.forget_buffers()
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                decode.register(
                    value.data_ptr(), value.numel() * value.element_size(), name,
                    is_writable=True, is_written=True,
                )  # fmt: skip
        decoded, passed, metadata = compiled(kernel, args, options, self._architecture, self._edit)
        parameters = bytearray(decoded.parameter_bytes)
        for (at, size), name in zip(decoded.parameters, passed, strict=False):
            value = values[name]
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            parameters[at : at + size] = number.to_bytes(size, "little", signed=number < 0)
        self._seed += 2
        self.launched.append(decoded.name)
        grid = (*grid, 1, 1)[:3]
        block = (32 * metadata.num_warps, 1, 1)
        if all(grid):
            decoded.run(grid, block, bytes(parameters), metadata.shared, 1, self._seed)


class Launcher:
    """Stands in for a Triton kernel and executes its launches."""

    def __init__(self, machine: Triton, kernel):
        self._machine, self._kernel = machine, kernel

    def __getitem__(self, grid):
        """The kernel with a grid, ready to be called."""
        return lambda *args, **options: self._machine.launch(self._kernel, grid, args, options)


_COMPILED: dict[str, tuple] = {}


def compiled(kernel, args, options, architecture: int, edit=None) -> tuple:
    """The decoded kernel of a launch, the names that it is passed, and its metadata."""
    signature, constants, attributes = aot.specialise(kernel, args, options)
    known = aot.compiler_options(options)
    key = repr((kernel.__name__, signature, constants, attributes, known, architecture, edit))
    if key not in _COMPILED:
        target = GPUTarget("cuda", architecture, 32)
        source = ASTSource(kernel, signature, constants, attributes)
        with mock.patch.object(CUDABackend, "make_cubin", lambda *_: b""):  # not needed, and slow
            made = triton.compile(source, target=target, options=known)
        text = made.asm["ptx"]
        module = decode.Module(edit(text) if edit else text)
        passed = [name for name, kind in signature.items() if kind != "constexpr"]
        _COMPILED[key] = module.kernel(next(iter(module.entries))), passed, made.metadata
    return _COMPILED[key]
