"""The machine runs kernels that are known to be right, and sees the faults that are planted."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl

from tests.ptx import decode
from tests.ptx.backend import Triton

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
#: Largest error, as a share of the largest value.
BOUNDS = {"bf16": 8e-3, "f16": 1e-3, "f32": 1e-6, "tf32": 2e-3, "tf32x3": 5e-6, "f64": 1e-14}
#: M, N, K, blocks of them, warps, stages of cp.async, whether A and B are transposed.
PRODUCTS = (
    (64, 64, 64, 32, 32, 32, 4, 3, False, False),
    (100, 70, 130, 64, 32, 32, 4, 4, False, True),
    (33, 17, 65, 16, 16, 16, 1, 2, True, False),
    (129, 128, 96, 128, 64, 32, 8, 3, True, True),
    (64, 48, 257, 32, 64, 64, 2, 2, False, False),
    (128, 128, 160, 64, 64, 32, 4, 3, False, True),
)


FUSION = {"enable_fp_fusion": True}


@triton.jit
def product_kernel(
    a, b, c, M, N, K, am, ak, bk, bn,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    of_a = a + m[:, None] * am + k[None, :] * ak
    of_b = b + k[:, None] * bk + n[None, :] * bn
    acc = tl.zeros((BM, BN), dtype=ACC)
    for start in range(0, K, BK):
        is_in = start + k < K
        x = tl.load(of_a, mask=(m[:, None] < M) & is_in[None, :], other=0.0)
        y = tl.load(of_b, mask=is_in[:, None] & (n[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=ACC)
        of_a += BK * ak
        of_b += BK * bk
    to = c + m[:, None] * N + n[None, :]
    tl.store(to, acc.to(c.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def rows_kernel(x, softmax, most, scan, total, R, C, BR: tl.constexpr, BC: tl.constexpr):
    r, c = tl.arange(0, BR), tl.arange(0, BC)
    at = r[:, None] * C + c[None, :]
    is_in = (r[:, None] < R) & (c[None, :] < C)
    v = tl.load(x + at, mask=is_in, other=-float("inf")).to(tl.float32)
    e = tl.exp(v - tl.max(v, axis=1)[:, None])
    y = e / tl.sum(e, axis=1)[:, None]
    tl.store(softmax + at, y.to(softmax.dtype.element_ty), mask=is_in)
    tl.store(most + r, tl.argmax(v, axis=1), mask=r < R)
    known = tl.where(is_in, v, 0.0)
    tl.store(scan + at, tl.cumsum(known, axis=1), mask=is_in)
    tl.store(total + c, tl.sum(known, axis=0), mask=c < C)


@triton.jit
def transpose_kernel(x, y, R, C, BR: tl.constexpr, BC: tl.constexpr):
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    is_in = (r[:, None] < R) & (c[None, :] < C)
    v = tl.load(x + r[:, None] * C + c[None, :], mask=is_in, other=0.0)
    to = y + c[:, None] * R + r[None, :]
    tl.store(to, tl.trans(v), mask=(c[:, None] < C) & (r[None, :] < R))


def product_error(architecture: int, kind: str, sizes, seed=1, edit=None) -> float:
    M, N, K, BM, BN, BK, warps, stages, transposes_a, transposes_b = sizes
    make, dtype = torch.Generator().manual_seed(M + N + K), DTYPES.get(kind, torch.float32)

    def matrix(rows, columns, is_transposed):
        shape = (columns, rows) if is_transposed else (rows, columns)
        made = torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)
        return made.T if is_transposed else made

    a, b = matrix(M, K, transposes_a), matrix(K, N, transposes_b)
    c = torch.full((M, N), torch.nan, dtype=dtype)
    options = {
        "BM": BM, "BN": BN, "BK": BK, "num_warps": warps, "num_stages": stages,
        "PRECISION": kind if kind.startswith("tf32") else "ieee",
        "ACC": tl.float64 if kind == "f64" else tl.float32, **FUSION,
    }  # fmt: skip
    machine = Triton(architecture, seed=seed, edit=edit)
    grid = (triton.cdiv(M, BM), triton.cdiv(N, BN))
    machine.launch(product_kernel, grid, (a, b, c, M, N, K, *a.stride(), *b.stride()), options)
    exact = a.double() @ b.double()
    return ((c.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("kind", BOUNDS)
def test_products(kind, architecture, is_exhaustive):
    """mma and, on sm_90, wgmma, with copies under way through cp.async, at odd sizes."""
    for seed, sizes in enumerate(PRODUCTS if is_exhaustive else PRODUCTS[1:4]):
        assert product_error(architecture, kind, sizes, seed) <= BOUNDS[kind], sizes


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("R, C, warps", [(7, 100, 4), (32, 60, 8), (5, 33, 1)])
def test_softmax_and_sums(R, C, warps, dtype, architecture):
    """Shuffles, reductions of a warp and of a CTA, scans."""
    x = torch.randn(R, C).to(dtype)
    softmax, most = torch.empty_like(x), torch.empty(R, dtype=torch.int32)
    scan, total = torch.empty(R, C), torch.empty(C)
    blocks = {"BR": triton.next_power_of_2(R), "BC": triton.next_power_of_2(C), "num_warps": warps}
    blocks |= FUSION
    arguments = (x, softmax, most, scan, total, R, C)
    Triton(architecture).launch(rows_kernel, (1,), arguments, blocks)
    known = x.float()
    torch.testing.assert_close(softmax, known.softmax(1).to(dtype))
    torch.testing.assert_close(scan, known.cumsum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, known.sum(0), atol=1e-5, rtol=1e-5)
    assert torch.equal(most.long(), known.argmax(1))


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transpose(dtype, architecture):
    """Through shared memory."""
    x, y = torch.randn(70, 45).to(dtype), torch.empty(45, 70, dtype=dtype)
    blocks = {"BR": 32, "BC": 32, "num_warps": 4, **FUSION}
    Triton(architecture).launch(transpose_kernel, (3, 2), (x, y, 70, 45), blocks)
    assert torch.equal(y, x.T)


def edited(pattern: str, becomes: str, *which: int) -> Callable[[str], str]:
    """What changes the matches of those numbers; there must be as many."""

    def edit(text: str) -> str:
        found = list(re.finditer(pattern, text))
        for n in sorted(which, reverse=True):
            m = found[n]
            text = text[: m.start()] + m.expand(becomes) + text[m.end() :]
        return text

    return edit


WAIT = r"cp\.async\.wait_group\s+(\d+);"
#: Barriers, waits and groups that are not named are redundant in this compiler's code: the same
#: wait stands right before, or two groups become one.
FAULTS = {
    **{f"no barrier {n}": edited(r"bar\.sync\s+\d+;", "", n) for n in (0, 2, 3, 4, 5)},
    "no wait 0": edited(WAIT, "", 0),
    "no wait 2 and 3": edited(WAIT, "", 2, 3),
    "no wait 4": edited(WAIT, "", 4),
    "wait 0 for one less": edited(WAIT, "cp.async.wait_group 3;", 0),
    **{f"no group {n}": edited(r"cp\.async\.commit_group;", "", n) for n in (1, 4)},
    **{f"ldmatrix {n} beside": edited(r"(ldmatrix[^;]*\[[^\]+]*)\]", r"\1+16]", n) for n in (0, 2)},
    "ldmatrix misaligned": edited(r"(ldmatrix[^;]*\[[^\]+]*)\]", r"\1+2]", 0),
    "ldmatrix not transposed": edited(r"x4\.trans\.shared", "x4.shared", 0),
    "st.global misaligned": edited(r"(st\.global[^;]*?\[ ?%rd\d+ ?\+ ?)0( ?\])", r"\g<1>2\2", 0),
    "st.global outside": edited(r"(st\.global[^;]*?\[ ?%rd\d+ ?\+ ?)0( ?\])", r"\g<1>131072\2", 0),
    "mma of other rows": edited(
        r"(mma\.sync[^;]*?\}, \{ )(%r\d+), (%r\d+), (%r\d+)", r"\1\2, \4, \3", 0
    ),
}


@pytest.mark.skipif(triton.__version__ != "3.9.0", reason="the faults are in the PTX of Triton 3.9")
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_seen(fault):
    sizes = (128, 64, 256, 64, 32, 32, 4, 3, False, False)
    try:
        error = product_error(80, "bf16", sizes, edit=FAULTS[fault])
    except RuntimeError:
        return
    assert not error <= BOUNDS["bf16"]


def test_an_unknown_instruction_is_refused():
    text = ".visible .entry f()\n{\n .reg .b32 %r<2>;\n frobnicate.b32 %r0, %r1;\n ret;\n}\n"
    with pytest.raises(decode.Unknown, match=r"f, line 4: frobnicate.b32 %r0, %r1"):
        decode.Module(text).kernel("f")
