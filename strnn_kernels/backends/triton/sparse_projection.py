"""The ops sparse_projection_fwd and sparse_projection_bwd (schema.py).

    s[b,d,k] = sum_n weight[d,k,n] h[b,n,d]
    dh[b,n,d] = sum_k weight[d,k,n] ds[b,d,k]        dweight[d,k,n] = sum_b ds[b,d,k] . h[b,n,d]

Two kernels. `project_kernel` is one product for each (b, d): weight[d] times the (N, H) states, or
its transpose times (K, H); a block of weights that are all exactly zero reads no states.
`project_weights_kernel` sums over a share of the sequences; the partial sums are added in order.

Products of float32 are exact, as where the sweep sums its projection itself.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import launch
from .tile import load_rows


@triton.jit(do_not_specialize=["num_in", "num_out", "in_stride", "out_stride"])
def project_kernel(
    in_ptr,  # row q of (b, d) is row b * D * num_in + d * in_direction + q * in_stride, of H
    weight_ptr,  # (D, K, N)
    out_ptr,  # as in_ptr
    num_in, num_out, in_direction, in_stride, out_direction, out_stride,
    D: tl.constexpr,
    H: tl.constexpr,
    TRANSPOSED: tl.constexpr,  # from K to N
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    b = (tl.program_id(0) // D).to(tl.int64)
    d = tl.program_id(0) % D
    to = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    col = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros([BLOCK_OUT, BLOCK_H], ACC)
    for start in range(0, num_in, BLOCK_IN):
        of = start + tl.arange(0, BLOCK_IN)
        if TRANSPOSED:
            at = of[None, :] * num_out + to[:, None]
        else:
            at = to[:, None] * num_in + of[None, :]
        is_inside = (to < num_out)[:, None] & (of < num_in)[None, :]
        g = tl.load(weight_ptr + d * num_in * num_out + at, mask=is_inside, other=0.0).to(ACC)
        if tl.max(tl.max(tl.where(g == 0, 0, 1), 1), 0) > 0:
            row = b * D * num_in + d * in_direction + of * in_stride
            h = load_rows(in_ptr, row, H, col, of < num_in, ACC)
            acc = tl.dot(g.to(DOT), h.to(DOT), acc, input_precision=PRECISION, out_dtype=ACC)
    row = b * D * num_out + d * out_direction + to * out_stride
    is_stored = (to < num_out)[:, None] & (col < H)[None, :]
    at = row[:, None] * H + col[None, :]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=is_stored)


@triton.jit(do_not_specialize=["B", "N", "share"])
def project_weights_kernel(
    ds_ptr,  # (B, D, K, H)
    h_ptr,  # (B, N, D, H)
    dweight_ptr,  # (programs, D, K, N)
    B, N, share,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """See the head of the file."""
    d = tl.program_id(1)
    num_blocks = tl.cdiv(N, BLOCK_N)
    k = tl.program_id(2) // num_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    n = tl.program_id(2) % num_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros([BLOCK_K, BLOCK_N], ACC)
    first = tl.program_id(0) * share
    for b in range(first, tl.minimum(first + share, B)):
        b_64 = tl.cast(b, tl.int64)
        for h0 in range(0, H, BLOCK_H):
            col = h0 + tl.arange(0, BLOCK_H)
            ds = load_rows(ds_ptr, (b_64 * D + d) * K + k, H, col, k < K, ACC)
            h = load_rows(h_ptr, (b_64 * N + n) * D + d, H, col, n < N, ACC)
            acc = tl.dot(
                ds.to(DOT), tl.trans(h.to(DOT)), acc, input_precision=PRECISION, out_dtype=ACC
            )
    at = ((tl.program_id(0) * D + d).to(tl.int64) * K + k[:, None]) * N + n[None, :]
    tl.store(dweight_ptr + at, acc, mask=(k < K)[:, None] & (n < N)[None, :])


def _project(source, weight, out, is_transposed):
    """Between states (B, N, D, H), row (b, n, d) at stride D, and projected rows (B, D, K, H)."""
    D, K, N = weight.shape
    B, H = source.shape[0], source.shape[-1]
    states, rows = (1, D), (K, 1)
    num_in, num_out, at_in, at_out = (K, N, rows, states) if is_transposed else (N, K, states, rows)
    block_h = min(launch.padded(H), 64)
    block_in, block_out = min(launch.padded(num_in), 32), min(launch.padded(num_out), 32)
    project_kernel[B * D, triton.cdiv(num_out, block_out), triton.cdiv(H, block_h)](
        source, weight, out, num_in, num_out, *at_in, *at_out, D=D, H=H,
        TRANSPOSED=is_transposed, BLOCK_IN=block_in, BLOCK_OUT=block_out, BLOCK_H=block_h,
        **launch.types(weight.dtype, "ieee"), **launch.options(4, 128, weight.device),
    )  # fmt: skip


def projection_forward(h: torch.Tensor, weight: torch.Tensor, s: torch.Tensor) -> None:
    """Writes s = weight h; all contiguous, none empty."""
    _project(h, weight, s, is_transposed=False)


def projection_weight_gradient(ds: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Gradient dweight (D, K, N) from ds (B, D, K, H) and h (B, N, D, H), contiguous, not empty."""
    (B, N, D, H), K = h.shape, ds.shape[2]
    block_k, block_n, block_h = (
        min(launch.padded(K), 32), min(launch.padded(N), 32), min(launch.padded(H), 64),
    )  # fmt: skip
    blocks = triton.cdiv(K, block_k) * triton.cdiv(N, block_n)
    programs = min(B, max(1, launch.num_programs(h.device) // (D * blocks)))
    share = triton.cdiv(B, programs)
    programs = triton.cdiv(B, share)
    partial = h.new_empty((programs, D, K, N), dtype=launch.accumulator(h.dtype))
    project_weights_kernel[programs, D, blocks](
        ds, h, partial, B, N, share, D=D, H=H, K=K,
        BLOCK_K=block_k, BLOCK_N=block_n, BLOCK_H=block_h,
        **launch.types(h.dtype, "ieee"), **launch.options(8, 168, h.device),
    )  # fmt: skip
    return partial.sum(0).to(h.dtype)


def sparse_projection_fwd(h, weight):
    """Projected rows s, (B, D, K, H)."""
    B, _, D, H = h.shape
    s = h.new_empty((B, D, weight.shape[1], H))
    if s.numel():
        with launch.on(h):
            projection_forward(h.contiguous(), weight.contiguous(), s)
    return s


def sparse_projection_bwd(ds, h, weight):
    """Gradients dh (B, N, D, H) and dweight (D, K, N)."""
    if ds.numel() == 0:
        return h.new_zeros(h.shape), weight.new_zeros(weight.shape)
    ds, h, weight, dh = ds.contiguous(), h.contiguous(), weight.contiguous(), h.new_empty(h.shape)
    with launch.on(h):
        _project(ds, weight, dh, is_transposed=True)
        return dh, projection_weight_gradient(ds, h)
