"""The emulator's clusters and tensor-core product: what they do, and which bugs they see."""

import ctypes
import re

import pytest
import torch

BUGS = (
    "none", "no-first-barrier", "no-barrier-before-read", "no-barrier-before-exit",
    "no-barrier-before-rewrite", "no-such-rank", "past-the-end", "arrives-twice", "waits-only",
    "never-waits", "one-thread-missing", "read-between-arrive-and-wait",
)  # fmt: skip
#: What the report must say in the race mode, whatever the schedule.
REPORTS = {
    "no-first-barrier": "may not have started",
    "no-barrier-before-read": "RACE read after write",
    "no-barrier-before-exit": "may exit before|has exited|that exited",
    "no-barrier-before-rewrite": "RACE (write after read|read after write)",
    "no-such-rank": "no block of rank 4",
    "past-the-end": "BOUNDS|RACE",
    "arrives-twice": "arrives twice",
    "waits-only": "waits and has not arrived",
    "never-waits": "never waited for",
    "one-thread-missing": "DEADLOCK",
    "read-between-arrive-and-wait": "RACE read after write",
}


@pytest.fixture(scope="module", params=["fast", "race"])
def library(request, harness):
    runtime = [harness._compile(harness.HERE / file, ["-O2"]) for file in harness.RUNTIME]
    flags = harness.MODES[request.param]
    kernel = harness._compile(harness.HERE / "cluster.cu", flags, harness.HERE / "cuda_host.h")
    c = ctypes.CDLL(str(harness.link("emulator", [*runtime, kernel])))
    c.emu_report.restype = ctypes.c_char_p
    return c


def run(c, bug, seed=0, blocks=8, threads=48, cluster=4):
    out = torch.zeros(blocks * threads, dtype=torch.int32)
    c.emu_unregister_all()
    c.emu_seed(seed)
    pointer = ctypes.c_void_p(out.data_ptr())
    c.emu_register(pointer, ctypes.c_size_t(out.numel() * 4), b"out", 2)
    c.run_cluster(BUGS.index(bug), blocks, threads, cluster, pointer)
    return out.view(blocks, threads), c.emu_report().decode()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_cluster_exchanges(library, seed, cluster):
    out, report = run(library, "none", seed, cluster=cluster)
    assert report == ""
    value = 100 * torch.arange(8)[:, None] + torch.arange(48)
    ring = value.view(-1, cluster, 48)
    assert torch.equal(out, (ring + ring.roll(1, 1) + ring.roll(-1, 1)).view(8, 48).int())


@pytest.mark.parametrize("library", ["race"], indirect=True)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bug", REPORTS)
def test_planted_bug_is_reported(library, bug, seed):
    report = run(library, bug, seed)[1]
    assert re.search(REPORTS[bug], report), report


def test_cluster_must_divide_the_grid(library):
    assert "LIMIT" in run(library, "none", blocks=6)[1]
    assert "LIMIT" in run(library, "none", blocks=64, cluster=32)[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_product_of_a_warp(library, dtype):
    make = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 16, generator=make).to(dtype) for n in (16, 8))
    out = torch.zeros(16, 8)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, b, out)]
    library.emu_unregister_all()
    library.emu_seed(0)
    for t, pointer, flags in zip((a, b, out), pointers, (1, 1, 2), strict=True):
        library.emu_register(
            pointer, ctypes.c_size_t(t.numel() * t.element_size()), b"operand", flags
        )
    library.run_multiply(int(dtype == torch.bfloat16), *pointers)
    assert library.emu_report() == b""
    torch.testing.assert_close(out, (a.double() @ b.double().T + 1).float())
