"""Cells: what turns what reached a node, and what is carried to it, into its state.

The blocks of a node's row, each of H, and what is saved are those of csrc/common/cell.h: the
product with x adds to the first G of them, that with the predecessors' states to the last G (of an
Elman cell and an lstm the same ones; a gru has one block more, its new gate keeps the two apart).

    gru    nx, r, z, nh      saved  r, z, n, nh, m
    lstm   i, f, g, o        saved  i, f, g, o, m

Codes as in notation.CELLS. All values are tiles, several of them tuples.
"""

from __future__ import annotations

import triton
import triton.language as tl

from strnn_kernels.notation import CELLS

GRU: tl.constexpr = tl.constexpr(CELLS.index("gru"))
LSTM: tl.constexpr = tl.constexpr(CELLS.index("lstm"))


def blocks(G: int) -> int:
    """Blocks of a row of a cell with G gates."""
    return 1 if G == 1 else 4


def input_gate(block: int, G: int) -> int:
    """The gate, in torch's order, whose rows of w_ih belong to the block; of a bias too."""
    return block if block == G else (block + 2 * G - blocks(G)) % G


@triton.jit
def _sigmoid(a):
    # Of exp(-|a|): beside the products of an lstm the compiler of Triton 3.9 aborts at 1 / (1 +
    # exp(-a)) (a fault of LLVM's SLP vectorizer).
    e = tl.exp(-tl.abs(a))
    return tl.where(a < 0, e, 1.0) / (1 + e)


@triton.jit
def _tanh(a):
    # Of exp(-2|a|), which never overflows.
    e = tl.exp(-2 * tl.abs(a))
    t = (1 - e) / (1 + e)
    return tl.where(a < 0, -t, t)


@triton.jit
def forward(a, m, CELL: tl.constexpr):
    """H and what is carried, of the blocks a and the reduced carry m. A NaN stays one."""
    if CELL == GRU:
        z = _sigmoid(a[2])
        h = z * m + (1 - z) * _tanh(a[0] + _sigmoid(a[1]) * a[3])
        c = h
    elif CELL == LSTM:
        c = _sigmoid(a[1]) * m + _sigmoid(a[0]) * _tanh(a[2])
        h = _sigmoid(a[3]) * _tanh(c)
    else:
        h = a[0]
        if CELL == 1:
            h = tl.where(h < 0, 0.0, h)
        if CELL == 2:
            h = _tanh(h)
        if CELL == 3:
            h = _sigmoid(h)
        c = h
    return h, c


@triton.jit
def saved(a, m, CELL: tl.constexpr):
    """What the backward of a gated cell wants to know."""
    if CELL == GRU:
        r = _sigmoid(a[1])
        found = (r, _sigmoid(a[2]), _tanh(a[0] + r * a[3]), a[3], m)
    else:
        found = (_sigmoid(a[0]), _sigmoid(a[1]), _tanh(a[2]), _sigmoid(a[3]), m)
    return found


@triton.jit
def backward(known, dh, dc, CELL: tl.constexpr):
    """Gradients of the blocks and of m, from those of h and c.

    `known` is what was saved, of an Elman cell h.
    """
    if CELL == GRU:
        r, z, n, nh, m = known[0], known[1], known[2], known[3], known[4]
        dn = dh * (1 - z) * (1 - n * n)
        da = (dn, dn * nh * (r * (1 - r)), dh * (m - n) * (z * (1 - z)), dn * r)
        dm = dh * z
    elif CELL == LSTM:
        i, f, g, o, m = known[0], known[1], known[2], known[3], known[4]
        y = _tanh(f * m + i * g)
        d = dc + dh * o * (1 - y * y)
        da = (
            d * g * (i * (1 - i)), d * m * (f * (1 - f)), d * i * (1 - g * g),
            dh * y * (o * (1 - o)),
        )  # fmt: skip
        dm = d * f
    else:
        h = known[0]
        if CELL == 1:
            slope = tl.where(h <= 0, 0.0, 1.0).to(h.dtype)
        elif CELL == 2:
            slope = 1 - h * h
        elif CELL == 3:
            slope = h * (1 - h)
        else:
            slope = h * 0 + 1
        da = (slope * dh,)
        dm = dh
    return da, dm
