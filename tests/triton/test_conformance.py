"""Every case of the shared table, forward and backward, and whatever else the ops promise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.notation import CELLS, bias_rows, gates
from strnn_kernels.testing import (
    CONFORMANCE,
    Case,
    Expected,
    assert_zeros_are_not_read,
    calls_without_memory,
    find,
    sweep_arguments,
    sweep_backward_arguments,
    with_odd_bytes,
)
from strnn_kernels.topology import Topology

pytestmark = pytest.mark.usefixtures("triton_backend")

#: In the interpreter a gate takes long: tests/ptx runs all cases, compiled, in a tenth of the time.
IN_INTERPRETER = (
    "lstm-sum", "lstm-1x1-h1", "elman-mean", "gru-t9", "gru-causal", "lstm-lengths",
)  # fmt: skip
#: Of each op and option one, so that the interpreter, where a kernel can be debugged, stays usable.
IN_CI = (
    "corner-mask", "line-3x5", "chain-lengths-k", "chain-tanh-h0", "sweep-diamond", "gated-corner",
    "project", "lstm-1x1-h1", "gru-causal", "elman-mean",
)  # fmt: skip
CASES = [
    case if torch.cuda.is_available() or not case.needs_cells
    else dataclasses.replace(case, B=min(case.B, 2))
    for case in CONFORMANCE
    if torch.cuda.is_available() or not case.needs_cells or case.name in IN_INTERPRETER
]  # fmt: skip
#: Smooth, so that rounding to 16 bits cannot move a state across the kink of a ReLU.
OTHER_DTYPES = (
    ("diamond", torch.bfloat16),
    ("chain-tanh-h0", torch.bfloat16),
    ("chain-wide", torch.bfloat16),
    ("gated-diamond", torch.bfloat16),
    ("project", torch.bfloat16),
    ("line-3x5", torch.float16),
    ("chain-lengths-k", torch.float16),
    ("sweep-diamond", torch.float16),
    ("gated-chain", torch.float16),
    ("gru-causal", torch.bfloat16),
    ("lstm-states", torch.float16),
    ("sweep-mask-h0", torch.float64),
    ("gated-diamond", torch.float64),
    ("project", torch.float64),
)


def check(case: Case, device: torch.device) -> None:
    """Output and gradients, and the output where no gradient is wanted."""
    inputs = case.inputs()
    expected = Expected.of(case, inputs)
    there = {name: value.to(device) for name, value in inputs.items()}
    expected.check(case.results(sk, there), "triton")
    with torch.no_grad():
        expected.check({"output": case.run(sk, there)}, "triton, no gradient")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: Case, device: torch.device, wanted_here) -> None:
    wanted_here(case.name in IN_CI)
    check(case, device)


@pytest.mark.parametrize(("name", "dtype"), OTHER_DTYPES)
def test_other_dtypes(name: str, dtype: torch.dtype, device: torch.device, wanted_here) -> None:
    wanted_here((name, dtype) in OTHER_DTYPES[::4])
    check(dataclasses.replace(find(name), dtype=dtype), device)


@pytest.mark.parametrize(
    ("cell", "mean", "graph"),
    [
        ("tanh", False, lambda: Topology.grid(3, 4)),
        ("tanh", True, lambda: Topology.dag([[[], [0], [1, 0], [1]]])),
        ("gru", True, lambda: Topology.dag([[[], [], [1, 0], [1]]])),
        ("lstm", True, lambda: Topology.dag([[[], [0], [1, 0], [1]]])),
        ("gru", False, lambda: Topology.chain(3)),
        ("lstm", False, lambda: Topology.chain(3)),
    ],
)
def test_any_backward_finishes_any_forward(cell, mean, graph, device: torch.device) -> None:
    """Raw ops with all that they know: what either backend leaves, the other takes."""
    if sk.backends()["cpu"]:
        pytest.skip(f"backend cpu: {sk.backends()['cpu']}")
    cpu, triton = torch.ops.strnn_cpu, torch.ops.strnn_triton
    topology, code = graph(), CELLS.index(cell)
    G, has_c = gates(code), cell == "lstm"
    B, N, D, C, H, K = 5, topology.num_nodes, topology.num_directions, 3, 17, 2
    torch.manual_seed(0)
    x, w_ih = torch.randn(B, N, C), torch.randn(D, G * H, C)
    bias, w_hh = torch.randn(D, bias_rows(code) * H), torch.randn(D, G * H, H) / (3 * H**0.5)
    projection, h0 = torch.randn(D, K, N), torch.randn(B, D, H)
    mask = torch.rand(B, N) < 0.8
    mask[1] = False
    entry = torch.randint(-1, N, (B, D), dtype=torch.int32)
    c0 = torch.randn(B, D, H) if has_c else None
    forth, back = topology.program("levels"), topology.reversed().program("levels")
    sizes = [forth.num_groups, forth.num_slots, back.num_groups, back.num_slots]
    tensors = {
        "w_ih": w_ih, "bias": bias, "mask": mask, "h0": h0, "c0": c0, "entry": entry,
        "projection": projection,
    }  # fmt: skip
    keep = {"keep_c": True, "keep_last": True, "save": G > 1}

    def tables(where):
        return forth.table(where), back.table(where), sizes

    def there(**given):
        return {n: None if t is None else t.to(device) for n, t in given.items()}

    weight = w_hh.to(device)
    ours = triton.sweep_fwd(
        *sweep_arguments(
            x.to(device), weight, tables(device), code, mean=mean, **there(**tensors), **keep
        )
    )
    theirs = cpu.sweep_fwd(
        *sweep_arguments(x, w_hh, tables("cpu"), code, mean=mean, **tensors, **keep)
    )
    # What a masked node would save nobody reads.
    left = [torch.where(mask[:, :, None, None], t[-1].cpu(), 0) if G > 1 else None
            for t in (ours, theirs)]  # fmt: skip
    for mine, other in zip((*ours[:-1], left[0]), (*theirs[:-1], left[1]), strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.cpu(), other, atol=1e-5, rtol=1e-5)
    h, s, c, h_n, c_n, _ = theirs
    given = {
        "dh": torch.randn_like(h), "ds": torch.randn_like(s), "dh_n": torch.randn_like(h_n),
        "dc": torch.randn_like(c) if has_c else None,
        "dc_n": torch.randn_like(c_n) if has_c else None, **tensors,
    }  # fmt: skip
    a = cpu.sweep_bwd(
        *sweep_backward_arguments(
            x, ours[0].cpu(), w_hh, tables("cpu"), code, saved=left[0], mean=mean, **given
        )
    )
    given["saved"] = left[1]
    b = triton.sweep_bwd(
        *sweep_backward_arguments(
            x.to(device), h.to(device), weight, tables(device), code, mean=mean, **there(**given)
        )
    )
    for mine, other in zip(b, a, strict=True):
        torch.testing.assert_close(mine.cpu(), other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_a_layer_of_torch(name: str, device: torch.device) -> None:
    """Weights of each direction in a tensor of its own, last states and their gradients."""
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(3, 5, bidirectional=True, batch_first=True)
    ours = getattr(sk, name)(3, 5, bidirectional=True, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, states = torch.randn(2, 3, 3), torch.randn(2, 2, 2, 5)
    found = []
    for layer, where in ((ours.to(device), device), (theirs, "cpu")):
        start = states.to(where).requires_grad_()
        y, last = layer(x.to(where), start[0] if name == "GRU" else tuple(start))
        results = (y, last) if name == "GRU" else (y, *last)
        loss = sum((r * torch.arange(1, 1 + r.shape[-1], device=where)).sum() for r in results)
        slopes = torch.autograd.grad(loss, (start, *layer.parameters()))
        found.append([t.cpu() for t in (*results, *slopes)])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


def test_masked_values_are_never_looked_at(device: torch.device) -> None:
    topology, make = Topology.grid(3, 3), torch.Generator().manual_seed(0)
    B, N, D, C, H = 3, 9, 4, 4, 6
    mask = torch.rand(B, N, generator=make) < 0.6
    x = torch.randn(B, N, C, generator=make)
    x[~mask] = torch.nan
    leaves = [
        t.to(device).requires_grad_()
        for t in (x, torch.randn(D, H, C, generator=make), torch.randn(D, H, H, generator=make) / 8)
    ]
    h = sk.spatial_rnn(*leaves, None, topology, mask=mask.to(device))
    assert (h[~mask.to(device)] == 0).all()
    gradients = torch.autograd.grad(h, leaves, torch.ones_like(h))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][~mask.to(device)] == 0).all()


def test_inputs_of_any_strides_and_empty_batches(device: torch.device) -> None:
    topology = Topology.chain(4)
    u = torch.randn(5, 2, 4, 3, device=device).permute(3, 2, 1, 0)
    w = torch.randn(2, 5, 5, device=device).transpose(1, 2)
    found = sk.sweep(u, w, topology)
    assert found.is_contiguous()
    torch.testing.assert_close(found, sk.sweep(u.contiguous(), w.contiguous(), topology))
    empty = u[:0].detach().requires_grad_()
    weight = w.contiguous().requires_grad_()
    y = sk.sweep(empty, weight, topology)
    y.sum().backward()
    assert y.shape == (0, 4, 2, 5) and (weight.grad == 0).all()


def test_second_derivative(device: torch.device) -> None:
    topology = Topology.chain(3)
    make = torch.Generator().manual_seed(1)
    u = torch.randn(2, 3, 2, 3, generator=make).to(device).requires_grad_()
    w = torch.randn(2, 3, 3, generator=make).to(device).requires_grad_()

    def slope_of_slope(module):
        h = module.sweep(u, w, topology, activation="tanh")
        du, dw = torch.autograd.grad(h.square().sum(), (u, w), create_graph=True)
        return torch.autograd.grad(du.square().sum() + dw.square().sum(), (u, w))

    for ours, theirs in zip(slope_of_slope(sk), slope_of_slope(sk.reference), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_same_call_same_bits(device: torch.device, wanted_here) -> None:
    wanted_here(False)
    case = find("corner-mask")
    inputs = {name: value.to(device) for name, value in case.inputs().items()}
    first, second = case.results(sk, inputs), case.results(sk, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["corner-mask", "sweep-mask-h0", "gated-chain", "project"])
def test_a_tensor_without_memory_is_an_error(name: str, device: torch.device) -> None:
    case = dataclasses.replace(find(name), graph=lambda: Topology.grid(1, 2), B=1, H=3)
    for what, call in calls_without_memory(case, sk, device):
        with pytest.raises(RuntimeError, match=r"the storage of .* was freed"):
            pytest.fail(f"{what}: {call()}")


@pytest.mark.parametrize("name", ["corner-mask", "sweep-mask-h0"])
def test_a_mask_is_bytes_against_zero(name: str, device: torch.device, wanted_here) -> None:
    wanted_here(name == "corner-mask")
    case = dataclasses.replace(find(name), B=2)
    inputs = {n: t.to(device) for n, t in case.inputs().items()}
    expected = case.results(sk, inputs)
    odd = inputs | {"mask": with_odd_bytes(inputs["mask"])}
    assert odd["mask"].view(torch.uint8).max() > 1
    for result, value in case.results(sk, odd).items():
        assert torch.equal(value, expected[result]), result


# NumPy says so in the interpreter, of padding and of the recurrence.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize(
    ("dtype", "K"), [(torch.float32, 5), (torch.float32, 70), (torch.bfloat16, 5)]
)
def test_zeros_of_a_projection_read_nothing(
    dtype: torch.dtype, K: int, device: torch.device, wanted_here
) -> None:
    wanted_here(dtype == torch.float32 and K == 5)
    assert_zeros_are_not_read(sk, dtype, device, K=K)
