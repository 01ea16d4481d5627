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


#: CTAs of a cluster send each other numbers into two boxes in turn, each with an mbarrier: the
#: first warp sends, and both add up.
EXCHANGE = """\
.version 8.6
.target sm_90a
.address_size 64
.visible .entry exchange(.param .u64 out, .param .u32 steps)
{
  .shared .align 8 .b8 barriers[16];
  .shared .align 8 .b8 boxes[2048];
  .shared .align 8 .b8 parts[512];
  .reg .pred %p<5>;
  .reg .b32 %r<40>;
  .reg .b64 %d<4>;
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, %cluster_ctarank;
  mov.u32 %r2, %cluster_nctarank;
  mov.u32 %r3, barriers;
  mov.u32 %r4, boxes;
  mov.u32 %r5, parts;
  setp.ne.u32 %p0, %r0, 0;
  setp.ge.u32 %p1, %r0, 32;
  mad.lo.u32 %r33, %r0, 32, %r4;
  mov.u32 %r34, 0;
ZERO:
  st.shared.u32 [%r33], 0;
  add.u32 %r33, %r33, 4;
  add.u32 %r34, %r34, 1;
  setp.lt.u32 %p2, %r34, 8;
  @%p2 bra ZERO;
  @%p0 bra MADE;
  mbarrier.init.shared::cta.b64 [%r3], 1;
  mbarrier.init.shared::cta.b64 [%r3+8], 1;
MADE:
  bar.warp.sync 0xffffffff;
  barrier.cluster.arrive.release.aligned;
  barrier.cluster.wait.acquire.aligned;
  ld.param.u32 %r6, [steps];
  shl.b32 %r7, %r1, 8;
  and.b32 %r8, %r0, 31;
  shl.b32 %r9, %r8, 3;
  shl.b32 %r10, %r2, 8;
  mad.lo.u32 %r11, %r1, 64, %r0;
  mov.u32 %r12, 0;
  mov.u32 %r13, 0;
STEP:
  shl.b32 %r14, %r12, 3;
  add.u32 %r14, %r3, %r14;
  shl.b32 %r15, %r12, 10;
  add.u32 %r15, %r4, %r15;
  add.u32 %r16, %r15, %r7;
  add.u32 %r16, %r16, %r9;
  @%p0 bra EXPECTED;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r14], %r10;
EXPECTED:
  @%p1 bra SENT;
  add.u32 %r17, %r11, 1;
  mov.u32 %r18, 0;
SEND:
  mapa.shared::cluster.u32 %r19, %r16, %r18;
  mapa.shared::cluster.u32 %r20, %r14, %r18;
  st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%r19], {%r11, %r17}, [%r20];
  add.u32 %r18, %r18, 1;
  setp.lt.u32 %p2, %r18, %r2;
  @%p2 bra SEND;
SENT:
  mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 %p3, [%r14], %r13;
  @!%p3 bra SENT;
  fence.acquire.sync_restrict::shared::cluster.cluster;
  shr.u32 %r21, %r0, 5;
  shl.b32 %r21, %r21, 2;
  add.u32 %r22, %r15, %r9;
  add.u32 %r22, %r22, %r21;
  mov.u32 %r23, 0;
  mov.u32 %r24, 0;
READ:
  ld.shared.u32 %r25, [%r22];
  add.u32 %r24, %r24, %r25;
  add.u32 %r22, %r22, 256;
  add.u32 %r23, %r23, 1;
  setp.lt.u32 %p2, %r23, %r2;
  @%p2 bra READ;
ADDED:
  shl.b32 %r26, %r12, 8;
  add.u32 %r26, %r5, %r26;
  shl.b32 %r27, %r0, 2;
  add.u32 %r27, %r26, %r27;
  st.shared.u32 [%r27], %r24;
  bar.sync 0;
  shl.b32 %r28, %r8, 2;
  add.u32 %r28, %r26, %r28;
  ld.shared.u32 %r29, [%r28];
  ld.shared.u32 %r30, [%r28+128];
  mad.lo.u32 %r11, %r30, 3, %r29;
  xor.b32 %r13, %r13, %r12;
  xor.b32 %r12, %r12, 1;
  sub.u32 %r6, %r6, 1;
  setp.gt.u32 %p4, %r6, 0;
  @%p4 bra STEP;
  ld.param.u64 %d0, [out];
  mov.u32 %r31, %ctaid.x;
  mad.lo.u32 %r32, %r31, 64, %r0;
  mul.wide.u32 %d1, %r32, 4;
  add.u64 %d2, %d0, %d1;
  st.global.u32 [%d2], %r11;
  ret;
}
"""
STEPS, CTAS = 5, 4


def exchanged(text: str, cluster: int = CTAS, seed: int = 1) -> bool:
    """Whether two clusters found the right sums."""
    out = torch.zeros(2 * cluster, 64, dtype=torch.int32)
    decode.forget_buffers()
    decode.register(out.data_ptr(), 4 * out.numel(), "out", is_writable=True, is_written=False)
    parameters = out.data_ptr().to_bytes(8, "little") + STEPS.to_bytes(4, "little")
    kernel = decode.Module(text).kernel("exchange")
    kernel.run((2 * cluster, 1, 1), (64, 1, 1), parameters, cluster=cluster, seed=seed)
    sent = 64 * torch.arange(cluster)[:, None] + torch.arange(32)
    for _ in range(STEPS):
        sent = (sent + 3 * (sent + 1)).sum(0).expand(cluster, -1)
    return torch.equal(out.long() & 0xFFFFFFFF, sent.repeat(2, 2) & 0xFFFFFFFF)


FENCE = "  fence.acquire.sync_restrict::shared::cluster.cluster;\n"
WAITS = "  @!%p3 bra SENT;\n"
EXPECTS = "  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r14], %r10;\n"
SENDS = "  st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 "
SENDS += "[%r19], {%r11, %r17}, [%r20];\n"
MADE = "  mbarrier.init.shared::cta.b64 [%r3+8], 1;\n"
STARTED = "  barrier.cluster.arrive.release.aligned;\n  barrier.cluster.wait.acquire.aligned;\n"


@pytest.mark.parametrize("cluster", [2, 4])
def test_exchange(cluster):
    """Bytes come late and in any order; a wait that acquires needs no fence."""
    acquires = EXCHANGE.replace(".relaxed.cluster", ".acquire.cluster").replace(FENCE, "")
    for seed in range(8):
        assert exchanged(EXCHANGE, cluster, seed)
        assert exchanged(acquires, cluster, seed)


#: What stands there, what it becomes, what the machine says.
FAULTS_OF_AN_EXCHANGE = {
    "no wait": (WAITS, "", "race"),
    "no fence": (FENCE, "", "shared race"),
    "fence before the wait": ((FENCE, "SENT:\n"), ("", FENCE + "SENT:\n"), "shared race"),
    "wait in the scope of a CTA": (".relaxed.cluster", ".relaxed.cta", "shared race"),
    "acquires in the scope of a CTA": (".relaxed.cluster", "", "shared race"),
    "other parity at first": ("mov.u32 %r13, 0;", "mov.u32 %r13, 1;", "race"),
    "parity that stays": ("xor.b32 %r13, %r13, %r12;", "", "race|deadlock|nobody waited"),
    "parity of each step": ("xor.b32 %r13, %r13, %r12;", "xor.b32 %r13, %r13, 1;", "race|deadlock"),
    "wait for the other half": (
        "cta.b64 %p3, [%r14]", "cta.b64 %p3, [%r3]", "race|deadlock",
    ),
    "one mbarrier for both halves": (
        "cluster.u32 %r20, %r14,", "cluster.u32 %r20, %r3,", "race|deadlock",
    ),
    "one box for both halves": ("shl.b32 %r15, %r12, 10;", "mov.u32 %r15, 0;", "race"),
    "too few bytes": ("shl.b32 %r10, %r2, 8;", "mad.lo.u32 %r10, %r2, 256, -8;", "race|deadlock"),
    "too many bytes": ("shl.b32 %r10, %r2, 8;", "mad.lo.u32 %r10, %r2, 256, 8;", "deadlock"),
    "more bytes than can be counted": (
        "shl.b32 %r10, %r2, 8;", "mov.u32 %r10, 1048576;", "an mbarrier counts 1048576 bytes",
    ),
    "nothing is expected": (EXPECTS, "", "deadlock"),
    "expects after the wait": ((EXPECTS, FENCE), ("", FENCE + "  @!%p0" + EXPECTS), "deadlock"),
    "expects twice": (EXPECTS, 2 * EXPECTS, "more often than it counts"),
    "one send less": ("setp.lt.u32 %p2, %r18, %r2;", "setp.lt.u32 %p2, %r18, 1;", "deadlock"),
    "sends again at the end": (
        "  ld.param.u64 %d0", "  @!%p1" + SENDS + "  ld.param.u64 %d0",
        "race|under way|nobody waited|has exited",
    ),
    "no wait at the end": (
        "SENT:\n", "SENT:\n  setp.eq.u32 %p4, %r6, 1;\n  @%p4 bra ADDED;\n",
        "under way|nobody waited|has exited",
    ),
    "a plain store": (
        (SENDS, "shl.b32 %r10, %r2, 8;"),
        (
            "  st.shared::cluster.u32 [%r19], %r11;\n"
            "  st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 "
            "[%r19+4], %r17, [%r20];\n",
            "shl.b32 %r10, %r2, 7;",
        ),
        "shared race",
    ),
    "no mbarrier": (MADE, "", "no mbarrier at shared byte 8"),
    "an mbarrier twice": (MADE, 2 * MADE, "touches the mbarrier"),
    "an mbarrier for two": ("[%r3+8], 1;", "[%r3+8], 2;", "deadlock"),
    "an mbarrier for none": ("[%r3+8], 1;", "[%r3+8], 0;", "mbarrier for 0"),
    "an mbarrier off alignment": ("[%r3+8], 1;", "[%r3+4], 1;", "misaligned"),
    "a store to an mbarrier": (STARTED, STARTED + "  st.shared.u32 [%r3], 0;\n", "touches"),
    "mbarriers after the start": (
        (STARTED, "  setp.ne.u32 %p0, %r0, 0;\n"), ("", STARTED + "  setp.ne.u32 %p0, %r0, 0;\n"),
        "may not be there yet|no mbarrier",
    ),
    "no barrier at the start": (STARTED, "", "may not have started|no mbarrier"),
    "an mbarrier of another CTA": ("[%r20];", "[%r14];", "of another"),
    "sends off alignment": ("bytes.v2.b32 [%r19]", "bytes.v2.b32 [%r19+4]", "misaligned"),
    "sends to a CTA that is not": ("setp.lt.u32 %p2, %r18,", "setp.le.u32 %p2, %r18,", "rank 4 of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS_OF_AN_EXCHANGE)
def test_fault_of_an_exchange_is_seen(fault):
    """In every schedule."""
    found, becomes, says = FAULTS_OF_AN_EXCHANGE[fault]
    text, one = EXCHANGE, isinstance(found, str)
    for old, new in [(found, becomes)] if one else zip(found, becomes, strict=True):
        assert text.count(old) == 1
        text = text.replace(old, new)
    for seed in range(8):
        with pytest.raises(RuntimeError, match=says):
            exchanged(text, seed=seed)


def test_a_cluster_of_one_sends_nothing():
    with pytest.raises(RuntimeError, match=r"st\.async in a cluster of one CTA"):
        exchanged(EXCHANGE, cluster=1)


def test_an_unknown_instruction_is_refused():
    text = ".visible .entry f()\n{\n .reg .b32 %r<2>;\n frobnicate.b32 %r0, %r1;\n ret;\n}\n"
    with pytest.raises(decode.Unknown, match=r"f, line 4: frobnicate.b32 %r0, %r1"):
        decode.Module(text).kernel("f")
