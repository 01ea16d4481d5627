"""Each shape of kernel by force, at sizes around the widths of its blocks."""

from __future__ import annotations

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.testing import Case, Expected, with_shared_slots
from strnn_kernels.topology import Topology

launch = pytest.importorskip("strnn_kernels.backends.triton.launch", exc_type=ImportError)
pytestmark = pytest.mark.usefixtures("triton_backend")

GRAPHS = {
    "corner": lambda: Topology.grid(2, 3),
    "chain": lambda: Topology.chain(4),
    "many": lambda: Topology.dag([[[], [0], [0], [0, 1, 2], [0, 1, 2, 3], [3, 0, 1, 2, 4]]]),
}


def narrow(block_j: int, block_r: int, H: int) -> object:
    """The kernel that keeps W on chip."""
    return launch.Shape(False, False, block_j, block_r, launch.padded(H), launch.padded(H), 4)


def wide(block_j: int, block_r: int, is_stepwise: bool) -> object:
    """The kernel that does not, with blocks smaller than the states."""
    return launch.Shape(True, is_stepwise, block_j, block_r, 32, 32, 4)


def one_row(H: int) -> object:
    """A sequence to a program, its products in four parts."""
    return launch.Shape(False, False, 1, 1, 64, 64, 2, parts=4)


SHAPES = {
    "one visit": lambda H: narrow(1, 16, H),
    "one row": one_row,
    "8 x 4": lambda H: narrow(8, 4, H),
    "16 x 2": lambda H: narrow(16, 2, H),
    "32 x 1": lambda H: narrow(32, 1, H),
    "wide": lambda H: wide(8, 4, False),
    "wide, a launch for each group": lambda H: wide(16, 1, True),
}


def check(case: Case, device: torch.device) -> None:
    inputs = case.inputs()
    expected = Expected.of(case, inputs)
    there = {name: value.to(device) for name, value in inputs.items()}
    expected.check(case.results(sk, there))
    with torch.no_grad():
        expected.check({"output": case.run(sk, there)})


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shape: str, graph: str, device: torch.device, monkeypatch) -> None:
    H = 30 if graph == "corner" else 33
    monkeypatch.setattr(launch, "sweep_shape", lambda *_, **__: SHAPES[shape](H))
    check(
        Case(
            f"{graph}, {shape}", "sweep", GRAPHS[graph], B=5, H=H, activation="tanh",
            has_h0=True, has_mask=True,
        ),
        device,
    )  # fmt: skip


#: Of gated cells a graph with means, one with sums, and a chain with all that it may start from.
GATED = {
    "corner": Case(
        "corner", "spatial_rnn", GRAPHS["corner"], B=5, C=3, H=30, cell="lstm", has_mask=True
    ),
    "many": Case("many", "spatial_rnn", GRAPHS["many"], B=5, C=3, H=9, cell="gru", reduce="sum"),
    "chain": Case(
        "chain", "temporal_rnn", GRAPHS["chain"], B=5, C=3, H=33, cell="lstm", has_lengths=True,
        has_h0=True, has_c0=True,
    ),
}  # fmt: skip


#: A chain without tables keeps what is carried in registers: no tile of several visits takes it.
GATED_SHAPES = [
    (shape, graph) for shape in SHAPES for graph in GATED if graph != "chain" or " x " not in shape
]


@pytest.mark.parametrize("shape, graph", GATED_SHAPES)
def test_shape_of_a_gated_cell(shape, graph, device, monkeypatch, wanted_here) -> None:
    wanted_here((shape, graph) in {("8 x 4", "many"), ("wide", "many"), ("one row", "chain")})
    case = GATED[graph]
    monkeypatch.setattr(launch, "sweep_shape", lambda *_, **__: SHAPES[shape](case.H))
    check(case, device)


@pytest.mark.parametrize("H", [1, 64, 100])
def test_width(H: int, device: torch.device) -> None:
    check(Case(f"H = {H}", "sweep", GRAPHS["chain"], B=2, H=H, activation="sigmoid"), device)


@pytest.mark.parametrize("shape", ["one visit", "8 x 4", "wide"])
def test_projection_in_the_sweep(shape: str, device: torch.device, monkeypatch) -> None:
    """Fused where it fits: with slots, several tiles and a ragged last one."""
    monkeypatch.setattr(launch, "sweep_shape", lambda *_, **__: SHAPES[shape](6))
    check(
        Case(
            "K", "spatial_rnn", GRAPHS["corner"], B=18, C=3, H=6, K=3, activation="tanh",
            density=0.5,
        ),
        device,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["fuses_input", "fuses_projection", "fuses_weights"])
def test_nothing_depends_on_a_fusion(name: str, device: torch.device, monkeypatch) -> None:
    monkeypatch.setattr(launch, name, lambda *_: False)
    check(
        Case(
            name, "spatial_rnn", GRAPHS["corner"], B=3, C=3, H=6, K=3, activation="tanh",
            has_mask=True,
        ),
        device,
    )  # fmt: skip


@pytest.mark.parametrize("K", [0, 2])
@pytest.mark.parametrize("shape", ["8 x 4", "16 x 2"])
def test_no_state_is_stored_that_nobody_reads(shape, K, device, monkeypatch) -> None:
    """Nor with h kept in rows that are no whole words, whose slots are apart too."""
    monkeypatch.setattr(launch, "sweep_shape", lambda *_, **__: SHAPES[shape](5))
    lists = [[[], [0], [0], [1], [3]], [[1], [], [1], [0], [3]]]
    case = Case(
        "unread", "spatial_rnn", lambda: with_shared_slots(Topology.dag(lists)), B=5, C=3, H=5,
        K=K, activation="tanh",
    )  # fmt: skip
    check(case, device)


@pytest.mark.parametrize("block_r", [1, 4])
@pytest.mark.parametrize("K", [0, 2])
def test_a_tile_ends_with_its_longest_row(K, block_r, device, monkeypatch) -> None:
    """Equal results, and no step in which no row of the tile takes part."""
    if device.type == "cuda":
        pytest.skip("steps are counted in the interpreter")
    from triton.runtime.interpreter import InterpreterBuilder

    steps, make_dot = [], InterpreterBuilder.create_dot
    monkeypatch.setattr(
        InterpreterBuilder, "create_dot",
        lambda self, *args, **options: (steps.append(1), make_dot(self, *args, **options))[1],
    )  # fmt: skip
    monkeypatch.setattr(launch, "_SORTED", 1)
    monkeypatch.setattr(
        launch, "sweep_shape", lambda *_, **__: launch.Shape(False, False, 1, block_r, 16, 16, 4)
    )
    case = Case(
        "lengths", "temporal_rnn", lambda: Topology.chain(9), B=8, C=3, H=6, K=K,
        activation="tanh", has_lengths=True, has_h0=True,
    )  # fmt: skip
    inputs = case.inputs()
    inputs["lengths"] = torch.tensor([2, 9, 1, 3, 3, 2, 1, 3])
    with torch.no_grad():
        case.run(sk, inputs)
    longest = sorted(inputs["lengths"].tolist(), reverse=True)[::block_r]
    assert len(steps) == 2 * sum(longest if block_r > 1 else inputs["lengths"].tolist())
    Expected.of(case, inputs).check(case.results(sk, inputs))


def test_a_program_takes_several_tiles(device: torch.device, monkeypatch) -> None:
    monkeypatch.setattr(launch, "num_programs", lambda device: 4)
    check(
        Case("tiles", "spatial_rnn", GRAPHS["corner"], B=9, C=3, H=6, K=2, activation="tanh"),
        device,
    )
    check(Case("rows", "gated_sweep", GRAPHS["corner"], B=9, H=6), device)
