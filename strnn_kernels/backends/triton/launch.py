"""Launch configurations: an explicit table by (H bucket, dtype); nothing is autotuned.

B, N and T choose at most between a few shapes of tile, and never enter a compiled kernel: a new
batch size or length compiles nothing.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl

from . import IS_INTERPRETED

#: Widest state (padded to a power of two) of which W stays on chip, by operand; beyond it the wide
#: kernel. tests/triton/budget.json holds what these cost.
_NARROW = {"float64": 16, "ieee": 64, "tf32": 128, "tf32x3": 64, "16 bit": 128}
#: The same of gated cells, of which there are three or four such W.
_NARROW_GATED = {"float64": 16, "ieee": 32, "tf32": 64, "tf32x3": 32, "16 bit": 64}
#: The same for chains in exact float32: a thread keeps its column of W in registers.
_NARROW_CHAIN = 128
#: Columns made at once, states read at once, and warps, of the wide kernel. Exact float32 has its
#: own rule: 16 results to a thread, 512 multiply-adds for 64 reads of shared memory.
_WIDE = {
    "float64": (32, 32, 8), "tf32": (128, 32, 4), "tf32x3": (128, 32, 8), "16 bit": (256, 64, 8),
}  # fmt: skip
#: Padded C times padded H up to which u = w_ih x + bias is made in the sweep, not by a GEMM before.
_FUSED_INPUT = {"float64": 0, "ieee": 2048, "tf32": 4096, "tf32x3": 2048, "16 bit": 4096}
#: dW is summed inside the backward sweep up to this padded H, otherwise by its own kernel.
_FUSED_WEIGHTS = {"float64": 16, "ieee": 32, "tf32": 64, "tf32x3": 32, "16 bit": 64}
#: Accumulators of the projection (K x rows x H) that a thread can carry, and of gated cells.
_PROJECTION, _PROJECTION_GATED = 80, 16
#: Widest input that is multiplied column by column.
_COLUMNS = 8
#: Shortest masked chain of which rows are sorted: sorting is three more launches.
_SORTED = 64
#: From this H there is one launch for each group, its columns spread over programs: one program
#: would wait for all of W at every step.
_STEPWISE = 512


@dataclass(frozen=True)
class Shape:
    """How a sweep is cut, and what its products are made of.

    Attributes:
        is_wide: whether it takes the kernel for wide states.
        is_stepwise: wide, one launch for each group.
        block_j: visits in a tile.
        block_r: rows of B in a tile.
        block_h: H padded, or the columns of a wide state made at once.
        block_k: H padded, or the columns of a wide state read at once.
        num_warps: warps of a program.
        parts: sums of a product that run side by side.
        precision: that of products of float32, see `precision_of`.
    """

    is_wide: bool
    is_stepwise: bool
    block_j: int
    block_r: int
    block_h: int
    block_k: int
    num_warps: int
    parts: int = 1
    precision: str = "ieee"


@dataclass(frozen=True)
class Tables:
    """A sweep program on the device, with its sizes.

    Attributes:
        program: the table.
        num_nodes: N.
        num_groups: its groups.
        num_slots: its slots.
        num_edges: edges of all directions.
        width: visits in a group, on average.
    """

    program: torch.Tensor
    num_nodes: int
    num_groups: int
    num_slots: int
    num_edges: int
    width: float

    @classmethod
    def of(cls, program: torch.Tensor, num_groups: int, num_slots: int, N: int, D: int) -> Tables:
        """The table and what its size tells."""
        edges = (program.numel() - D * (3 * N + (num_groups + 1) + (N + 1))) // 2
        return cls(program, N, num_groups, num_slots, edges, N / num_groups)


def padded(n: int) -> int:
    """The next power of two that a product takes, at least 16."""
    return max(16, 1 << (n - 1).bit_length())


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def kept(dtype: torch.dtype) -> torch.dtype:
    """What operands of products are kept in: as they are, but see `types`."""
    return torch.float32 if IS_INTERPRETED and dtype == torch.bfloat16 else dtype


def stages(shape: Shape, products: int, dtype: torch.dtype) -> int:
    """Blocks of W that the wide kernel has in flight, as many as 96 KB hold."""
    columns = products * shape.block_h + shape.block_j * shape.block_r
    block = shape.block_k * columns * dtype.itemsize
    return max(1, min(4, 96 * 1024 // block))


def precision_of(dtype: torch.dtype, allow_tf32: bool) -> str:
    """How a sweep makes products of float32: exactly ("ieee"), unless its caller allows TF32.

    STRNN_TRITON_TF32=tf32x3 asks for three TF32 products (nearly exact) wherever TF32 is allowed.

    Raises:
        ValueError: STRNN_TRITON_TF32 is neither "tf32" nor "tf32x3".
    """
    if not allow_tf32 or dtype != torch.float32 or torch.version.hip:  # one of AMD's has it
        return "ieee"
    asked = os.environ.get("STRNN_TRITON_TF32", "tf32")
    if asked not in ("tf32", "tf32x3"):
        raise ValueError(f"STRNN_TRITON_TF32 must be tf32 or tf32x3, got {asked!r}")
    return asked


def types(dtype: torch.dtype, precision: str) -> dict:
    """The kernels' ACC, DOT and PRECISION."""
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    dot = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, acc)
    # The interpreter computes bfloat16 on its bits: there the operands stay as they were cast.
    if IS_INTERPRETED and dot == tl.bfloat16:
        dot = acc
    return {"ACC": acc, "DOT": dot, "PRECISION": precision}


def options(num_warps: int, registers: int, device: torch.device) -> dict:
    """Options of a launch: warps of 32 threads, and the registers that a thread may take.

    Left to itself the compiler makes room for more programs on a multiprocessor, and spills for it;
    AMD's has no such limit. Multiply and add contract; later versions of Triton want to be told.
    """
    threads = {"num_warps": max(1, 32 * num_warps // warp_size(device)), "enable_fp_fusion": True}
    return threads if torch.version.hip else threads | {"maxnreg": registers}


def _operand(dtype: torch.dtype, precision: str) -> str:
    if dtype == torch.float64:
        return "float64"
    return precision if dtype == torch.float32 else "16 bit"


def sweep_shape(
    tables: Tables, B: int, D: int, H: int, G: int, dtype: torch.dtype, device, allow_tf32: bool,
    is_back: bool = False,
) -> Shape:  # fmt: skip
    """The tile of a sweep, of a cell with G gates.

    Chains: one visit, and 16 rows, which tensor cores want. Exact float32 has no such wish: there
    a program is one row and a thread one column of W, so a step is as short as it can be and all
    multiprocessors take part; only very many narrow rows are cheaper together.

    Graphs with independent visits: tiles of (visit, row) pairs, with as many rows as leave a
    program for each multiprocessor; few pairs where every thread makes its products for itself, so
    that several programs hide each other's latencies.
    """
    precision, width = precision_of(dtype, allow_tf32), padded(H)
    operand = _operand(dtype, precision)
    is_exact, many = operand == "ieee", num_multiprocessors(device)
    narrow = (_NARROW if G == 1 else _NARROW_GATED)[operand]
    narrow_chain = _NARROW_CHAIN if G == 1 else _NARROW_GATED["ieee"]
    is_wide = width > narrow
    block_j, block_r = 1, 16
    if tables.width >= 2:
        block_j, block_r = 8, 2 if is_exact else 4
        while block_r > 1 and block_r * many > D * B:
            block_j, block_r = 2 * block_j, block_r // 2
    elif is_exact and width <= narrow_chain and (width > 32 or D * B // many <= 32):
        return Shape(False, False, 1, 1, width, width, max(1, width // 32), 4 if width > 32 else 1)
    if not is_wide:
        num_warps = 4 if width <= (32 if is_exact else 64) and (G == 1 or block_j == 1) else 8
        return Shape(False, False, block_j, block_r, width, width, num_warps, precision=precision)
    is_stepwise = H >= _STEPWISE
    if is_exact:
        block_h = 64 if 0 < H % 128 <= 64 else 128
        block_k, num_warps = 32, block_j * block_r * block_h // 512
    else:
        block_h, block_k, num_warps = _WIDE[operand]
    if G > 1 and not is_back:  # as many results in all
        block_h = max(16, block_h // 4)
    return Shape(
        True, is_stepwise, block_j, block_r, min(block_h, width), block_k, num_warps,
        precision=precision,
    )  # fmt: skip


def weights_shape(H: int, dtype: torch.dtype, precision: str) -> tuple[int, int, int]:
    """BLOCK_H, BLOCK_M and warps of the weight gradient's own kernel."""
    widest = {"float64": 32, "ieee": 64}.get(_operand(dtype, precision), 128)
    block_h = min(padded(H), widest)
    return block_h, 32, 4 if block_h < 64 else 8


def fuses_input(shape: Shape, C: int, G: int, dtype: torch.dtype) -> bool:
    """Whether u is made inside the sweep: of one gate, several leave no registers for it."""
    most = _FUSED_INPUT[_operand(dtype, shape.precision)]
    return G == 1 and not shape.is_wide and padded(C) * shape.block_h <= most


def fuses_weights(shape: Shape, dtype: torch.dtype) -> bool:
    """Whether dW is summed inside the backward sweep."""
    rows = shape.block_j * shape.block_r  # over which that product sums: 16 at least
    widest = _FUSED_WEIGHTS[_operand(dtype, shape.precision)]
    return not shape.is_wide and rows >= 16 and shape.block_h <= widest


def fuses_projection(shape: Shape, K: int, G: int) -> bool:
    """Whether s = projection h is summed inside the sweep, so that h need not be kept."""
    rows = shape.block_j * shape.block_r
    threads = 32 * shape.num_warps
    most = _PROJECTION if G == 1 else _PROJECTION_GATED
    return not shape.is_wide and K * rows * shape.block_h <= most * threads


def wants_frontier(shape: Shape, H: int, dtype: torch.dtype) -> bool:
    """Whether predecessors' states are kept a second time, in padded rows.

    A graph reads up to three states for each that it writes; from rows that are no multiple of 8
    bytes it would read them number by number.
    """
    return shape.block_j > 1 and H * dtype.itemsize % 8 != 0


def sorts_rows(shape: Shape, B: int, N: int) -> bool:
    """Whether sorting the rows of a masked chain by length takes less time than it saves."""
    return shape.block_j == 1 and 1 < shape.block_r < B and N >= _SORTED


def block_c(C: int) -> int:
    """Padded C for a product of blocks; 0 where C is so small that it is made column by column."""
    return 0 if C <= _COLUMNS else padded(C)


def index_type(numel: int):
    """The integers that number the elements of a tensor."""
    return tl.int32 if numel < 2**31 else tl.int64


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the device; a small number for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def warp_size(device: torch.device) -> int:
    """Threads of a warp: 64 on AMD's CDNA."""
    return torch.cuda.get_device_properties(device).warp_size if device.type == "cuda" else 32


def num_programs(device: torch.device) -> int:
    """Programs of a launch whose programs loop over tiles: a few for each multiprocessor."""
    return 8 * num_multiprocessors(device)


def shared_out(tiles: int, most: int) -> int:
    """Programs, at most `most`, that take equally many tiles each, but for the last."""
    return triton.cdiv(tiles, triton.cdiv(tiles, max(1, most)))


def on(tensor: torch.Tensor):
    """The tensor's device as the current one: a launch goes to its current stream."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
