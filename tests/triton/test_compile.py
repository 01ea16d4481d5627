"""What a compiler and the capture of a graph ask of the ops: opaque, and nothing that waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import strnn_kernels as sk

pytest.importorskip("triton")

from torch.utils._pytree import tree_map_only

from strnn_kernels.backends.triton import (
    gated_sweep,
    launch,
    sparse_projection,
    sweep,
    sweep_weights,
)
from strnn_kernels.notation import CELLS
from strnn_kernels.registration import NO_TABLES, topology_tables
from strnn_kernels.testing import sweep_arguments, sweep_backward_arguments
from strnn_kernels.topology import Topology

pytestmark = pytest.mark.usefixtures("triton_backend")

CHAIN = Topology.chain(3)
B, N, D, C, H, K = 2, 3, 2, 3, 4, 2


def leaves(device: torch.device, batch: int = B) -> dict[str, torch.Tensor]:
    """Arguments of all ops, by the letter of the docs."""
    make = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, N, C), "w_ih": (D, H, C), "w": (D, H, H), "bias": (D, H),
        "projection": (D, K, N), "u": (batch, N, D, H), "gate": (batch, N, D, H),
    }  # fmt: skip
    return {
        name: torch.randn(shape, generator=make).div(2).to(device).requires_grad_()
        for name, shape in shapes.items()
    }


def spatial(t):
    return sk.spatial_rnn(t["x"], t["w_ih"], t["w"], t["bias"], CHAIN, projection=t["projection"])


OPS: dict[str, Callable] = {
    "sweep": lambda t: sk.sweep(t["u"], t["w"], CHAIN, activation="tanh"),
    "spatial_rnn": spatial,
    "temporal_rnn": lambda t: sk.temporal_rnn(t["x"], t["w_ih"], t["w"], t["bias"]),
    "gated_sweep": lambda t: sk.gated_sweep(t["u"], t["gate"], t["w"], CHAIN),
    "sparse_projection": lambda t: sk.sparse_projection(t["u"], t["projection"]),
}


@pytest.mark.parametrize("op", OPS)
def test_compiled_with_a_dynamic_batch(op: str, device: torch.device) -> None:
    """No break in the graph, forward and backward, and a new B compiles nothing."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(OPS[op], fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch in (7, 5, 6):  # unlike any other size, which a compiler would take for the same
        ours, theirs = leaves(device, batch), leaves(device, batch)
        expected, found = OPS[op](theirs), compiled(ours)
        torch.testing.assert_close(found, expected)
        for y in (found, expected):
            y.square().sum().backward()
        for name, t in ours.items():
            torch.testing.assert_close(t.grad, theirs[name].grad)
        counts.append(counter.frame_count)
    # torch 2.11 compiles a second time once the backend has been chosen, whatever B is.
    assert counts[2] == counts[1] <= 2


@pytest.mark.parametrize("op", OPS)
def test_exported_with_a_dynamic_batch(op: str, device: torch.device) -> None:
    class Model(torch.nn.Module):
        def forward(self, t):
            return OPS[op](t)

    t = {name: value.detach() for name, value in leaves(device, 3).items()}
    with_batch = {"x", "u", "gate"}
    sizes = {name: {0: torch.export.Dim.DYNAMIC} if name in with_batch else None for name in t}
    exported = torch.export.export(Model(), (t,), dynamic_shapes=(sizes,))
    others = {name: value.detach() for name, value in leaves(device, 5).items()}
    torch.testing.assert_close(exported.module()(others), OPS[op](others))


def raw_calls(device: torch.device) -> dict[str, tuple]:
    """Arguments of every raw op of the schema."""
    t = {name: value.detach() for name, value in leaves(device).items()}
    tables = topology_tables(CHAIN, device, "levels")
    mask, h0 = torch.ones(B, N, dtype=torch.bool, device=device), t["u"][:, 0].contiguous()
    given = {name: t[name] for name in ("w_ih", "bias", "projection")} | {"mask": mask, "h0": h0}
    ds = torch.ones(B, D, K, H, device=device)
    # Of an lstm all that there can be, with lists of weights and no tables.
    of_lstm = {"w_ih": torch.cat([t["w_ih"]] * 4, 1), "c0": h0} | {"mask": mask, "h0": h0}
    w, last = torch.cat([t["w"]] * 4, 1), torch.ones(D, B, H, device=device)
    lstm, states = (CELLS.index("lstm"), t["u"])
    keep = {"keep_c": True, "keep_last": True, "save": True}
    grads = {"dh": states, "dc": states, "dh_n": last, "dc_n": last}
    saved = torch.cat([states] * 5, 3)
    return {
        "sweep_fwd lstm": sweep_arguments(t["x"], w, NO_TABLES, lstm, **of_lstm, **keep),
        "sweep_bwd lstm": sweep_backward_arguments(
            t["x"], t["gate"], w, NO_TABLES, lstm, saved=saved, **grads, **of_lstm
        ),
        "sweep_fwd": sweep_arguments(t["x"], t["w"], tables, 2, **given),
        "sweep_bwd": sweep_backward_arguments(
            t["x"], t["gate"], t["w"], tables, 2, dh=t["u"], ds=ds, **given
        ),
        "gated_sweep_fwd": (t["u"], t["gate"], t["w"], *tables),
        "gated_sweep_bwd": (t["u"], t["gate"], t["u"], t["gate"], t["w"], *tables),
        "sparse_projection_fwd": (t["u"], t["projection"]),
        "sparse_projection_bwd": (ds, t["u"], t["projection"]),
    }


NAMES = (
    "sweep_fwd", "sweep_bwd", "gated_sweep_fwd", "gated_sweep_bwd", "sparse_projection_fwd",
    "sparse_projection_bwd", "sweep_fwd lstm", "sweep_bwd lstm",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str, device: torch.device) -> None:
    arguments = list(raw_calls(device)[name])
    name = name.split()[0]
    if name.endswith("_fwd"):
        arguments = [
            a.requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in arguments
        ]
    op = getattr(torch.ops.strnn_triton, name).default
    # A backward has no derivative of its own.
    checks = () if name.endswith("_fwd") else ("test_schema", "test_faketensor")
    torch.library.opcheck(op, tuple(arguments), **({"test_utils": checks} if checks else {}))


@pytest.mark.parametrize("name", NAMES)
def test_the_host_reads_nothing(name: str, device: torch.device, monkeypatch) -> None:
    """On tensors without data, which nobody can read: no size and no value is asked of them.

    Kernels are replaced by nothing, so all that is left is the host's part: what a graph captures.
    """

    class Nothing:
        def __getitem__(self, grid):
            assert all(isinstance(n, int) for n in grid)
            return lambda *args, **options: launches.append(args)

    modules = {"sweep": sweep, "gated": gated_sweep, "sparse": sparse_projection}
    for module, kernel in (
        (sweep, "sweep_kernel"),
        (sweep, "sweep_wide_kernel"),
        (sweep_weights, "sweep_weights_kernel"),
        (sparse_projection, "project_kernel"),
        (sparse_projection, "project_weights_kernel"),
    ):
        monkeypatch.setattr(module, kernel, Nothing())
    monkeypatch.setattr(launch, "sorts_rows", lambda *_: True)
    launches: list = []
    arguments = tree_map_only(torch.Tensor, lambda t: t.to("meta"), raw_calls(device)[name])
    outputs = getattr(modules[name.split("_")[0]], name.split()[0])(*arguments)
    assert launches
    for t in (*launches[0], *(outputs if isinstance(outputs, tuple) else (outputs,))):
        assert not isinstance(t, torch.Tensor) or t.device.type == "meta"


def test_launches_go_to_the_tensors_device(monkeypatch) -> None:
    """The device of the tensors becomes the current one, and with it its current stream."""

    class OnDevice:
        device = torch.device("cuda", 1)

    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or device)
    launch.on(OnDevice())
    assert entered == [torch.device("cuda", 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph needs a GPU")
@pytest.mark.parametrize("op", OPS)
def test_captured_in_a_graph(op: str, device: torch.device) -> None:
    t = {name: value.detach() for name, value in leaves(device).items()}
    expected = OPS[op](t)  # compiles the kernels
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        found = OPS[op](t)
    found.zero_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(found, expected)
