"""Topologies and the planner: against brute force, against each other, and refusals."""

import copy
import gc
import itertools
import os
import pickle
import random
import re
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strnn_kernels import planner as twin
from strnn_kernels import topology as module
from strnn_kernels.montages import MONTAGES
from strnn_kernels.registration import topology_tables
from strnn_kernels.topology import NEIGHBOURHOODS, Topology

CPU = torch.device("cpu")
ORDERS = ("levels", "raster")

SEED_CHANNELS = """
FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8
T7 C5 C3 C1 CZ C2 C4 C6 T8 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8
PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2
"""


@pytest.fixture
def compiled():
    """The compiled planner; its absence may be excused, but not where it is expected."""
    if module.PLANNER != "compiled":
        if os.environ.get("STRNN_EXPECT_COMPILED") == "1":
            pytest.fail(f"the compiled planner is missing: {module.PLANNER_REASON}")
        pytest.skip(f"the compiled planner is not built: {module.PLANNER_REASON}")
    return module.planner


def random_lists(seed: int, num_nodes: int | None = None) -> list[list[list[int]]]:
    """Predecessor lists of a random DAG whose numbering says nothing about its order."""
    rng = random.Random(seed)
    num_nodes = num_nodes or rng.randint(1, 14)
    lists = []
    for _ in range(rng.randint(1, 4)):
        rank = rng.sample(range(num_nodes), num_nodes)
        density = rng.choice([0.0, 0.15, 0.4, 1.0])
        earlier = [[p for p in range(num_nodes) if rank[p] < rank[n]] for n in range(num_nodes)]
        lists.append([[p for p in before if rng.random() < density] for before in earlier])
    return lists


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 7, size=2)) < rng.choice([0.3, 0.7, 1.0])
    mask.flat[rng.integers(mask.size)] = True
    return mask


def all_lists(topology: Topology) -> list[list[list[int]]]:
    nodes = range(topology.num_nodes)
    return [
        [list(topology.predecessors(d, n)) for n in nodes] for d in range(topology.num_directions)
    ]


def to_arrays(lists: list[list[list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    pred = [p for direction in lists for node in direction for p in node]
    ends = np.cumsum([len(node) for direction in lists for node in direction])
    pred_ptr = np.zeros((len(lists), len(lists[0]) + 1), np.int64)
    pred_ptr[:, 1:] = ends.reshape(len(lists), -1)
    pred_ptr[1:, 0] = pred_ptr[:-1, -1]
    return pred_ptr, np.array(pred, np.int64)


def longest_path(lists: list[list[int]], n: int) -> int:
    return max((1 + longest_path(lists, p) for p in lists[n]), default=0)


def simulate(topology: Topology, order: str) -> None:
    """Follow the program with slots that remember whose state they keep, and doubt everything."""
    program = topology.program(order)
    N, D, G = topology.num_nodes, topology.num_directions, program.num_groups
    assert (program.num_nodes, program.num_directions) == (N, D)
    assert program.num_edges == topology.num_edges == program.pred_slot.size
    most_slots = most_groups = 0
    for d in range(D):
        assert sorted(program.node[d]) == list(range(N))
        owner: dict[int, int] = {}
        used: dict[int, int] = {}
        starts, at_once = set(program.group_ptr[d].tolist()), set()
        for i, n in enumerate(program.node[d].tolist()):
            at_once = set() if i in starts else at_once
            part = slice(program.pred_ptr[d, i], program.pred_ptr[d, i + 1])
            preds = program.pred_node[part].tolist()
            assert tuple(preds) == topology.predecessors(d, n)
            for p, slot in zip(preds, program.pred_slot[part].tolist(), strict=True):
                assert owner[slot] == p, "a state was overwritten while needed"
                used[p] += 1
            # What is still needed: of these none may be overwritten, and no other may be kept.
            alive = {s for s, m in owner.items() if used[m] < len(topology.successors(d, m))}
            # States that nothing reads may be stored, at the same time as others of their group.
            alive |= {s for s, m in owner.items() if m in at_once}
            slot = int(program.slot[d, i])
            lowest_free = next(s for s in range(N) if s not in alive)
            assert slot == lowest_free
            owner[slot], used[n] = n, 0
            at_once |= set() if topology.successors(d, n) else {n}
            assert program.num_succ[d, i] == len(topology.successors(d, n))
            most_slots = max(most_slots, slot + 1)
        ptr = program.group_ptr[d].tolist()
        groups = ptr.index(N)
        assert ptr[0] == 0 and ptr[groups:] == [N] * (G + 1 - groups)
        most_groups = max(most_groups, groups)
        for start, end in itertools.pairwise(ptr[: groups + 1]):
            group = set(program.node[d, start:end].tolist())
            assert group and not any(group & set(topology.predecessors(d, n)) for n in group)
            if end < N:  # maximal: the next node depends on the group
                assert group & set(topology.predecessors(d, program.node[d, end]))
        if order == "levels":
            cut = [
                program.node[d, start:end].tolist()
                for start, end in itertools.pairwise(ptr[: groups + 1])
            ]
            assert cut == topology.levels(d)
    assert (program.num_slots, G) == (most_slots, most_groups)


@pytest.mark.parametrize("seed", range(40))
def test_random_dags(seed):
    lists = random_lists(seed)
    topology = Topology.dag(lists)
    assert all_lists(topology) == lists
    depth = []
    for d, direction in enumerate(lists):
        expected = [longest_path(direction, n) for n in range(topology.num_nodes)]
        assert topology.level[d].tolist() == expected
        depth.append(max(expected) + 1)
        levels = topology.levels(d)
        assert [(k, n) for k, nodes in enumerate(levels) for n in nodes] == sorted(
            (k, n) for n, k in enumerate(expected)
        )
    assert topology.num_levels == max(depth)
    for order in ORDERS:
        simulate(topology, order)
        simulate(topology.reversed(), order)


@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
@pytest.mark.parametrize("seed", range(12))
def test_masked_grids(seed, neighbourhood):
    mask = random_mask(seed)
    topology = Topology.grid(*mask.shape, neighbourhood=neighbourhood, mask=mask)
    where = [tuple(cell) for cell in np.argwhere(mask).tolist()]
    assert topology.positions.tolist() == [list(cell) for cell in where]
    expected = [
        [
            sorted(where.index((r + dr, c + dc)) for dr, dc in offsets if (r + dr, c + dc) in where)
            for r, c in where
        ]
        for offsets in NEIGHBOURHOODS[neighbourhood]
    ]
    assert all_lists(topology) == expected
    assert topology == Topology.cells(where, neighbourhood=neighbourhood) == Topology.dag(expected)
    assert topology == Topology.grid(
        *mask.shape, neighbourhood=neighbourhood, mask=torch.tensor(mask)
    )
    for order in ORDERS:
        simulate(topology, order)


def test_directions_of_a_grid():
    corner, cross, line = (Topology.grid(3, 3, neighbourhood=name) for name in NEIGHBOURHOODS)
    assert [corner.predecessors(d, 4) for d in range(4)] == [
        (0, 1, 3),
        (1, 2, 5),
        (3, 6, 7),
        (5, 7, 8),
    ]
    assert [cross.predecessors(d, 4) for d in range(4)] == [(1, 3), (1, 5), (3, 7), (5, 7)]
    assert [line.predecessors(d, 4) for d in range(4)] == [(3,), (5,), (1,), (7,)]


def test_a_hole_breaks_a_line():
    topology = Topology.grid(1, 4, neighbourhood="line", mask=[[True, False, True, True]])
    assert all_lists(topology)[:2] == [[[], [], [1]], [[], [2], []]]


@pytest.mark.parametrize("seed", range(6))
def test_cells_in_any_order(seed):
    mask = random_mask(seed)
    grid = Topology.grid(*mask.shape, mask=mask)
    order = random.Random(seed).sample(range(grid.num_nodes), grid.num_nodes)
    cells = Topology.cells(grid.positions[order])
    for d in range(4):
        for k, n in enumerate(order):
            expected = sorted(order.index(p) for p in grid.predecessors(d, n))
            assert list(cells.predecessors(d, k)) == expected


def test_cells_far_apart():
    far = 2**31 - 2
    topology = Topology.cells([(far, far), (0, 0), (far, far - 1), (0, far), (1, 0)])
    assert all_lists(topology)[0] == [[2], [], [], [], [1]]


def test_chain():
    topology = Topology.chain(4)
    assert all_lists(topology) == [[[], [0], [1], [2]], [[1], [2], [3], []]]
    assert Topology.chain(4, bidirectional=False) == Topology.dag([[[], [0], [1], [2]]])
    assert Topology.chain(1).num_edges == 0
    assert Topology.chain(70_000).num_levels == 70_000
    assert Topology.chain(512) is Topology.chain(512)
    assert Topology.chain(np.int64(512)) == Topology.chain(512)


def test_seed_montage():
    topology = Topology.montage("seed-62")
    channels = SEED_CHANNELS.split()
    assert topology.names == tuple(channels)
    assert topology == Topology.cells(MONTAGES["seed-62"])
    assert topology.positions[channels.index("CZ")].tolist() == [4, 4]
    assert topology.positions[channels.index("CB2")].tolist() == [8, 6]
    assert (topology.num_nodes, topology.num_directions, topology.num_levels) == (62, 4, 13)
    assert [sum(map(len, lists)) for lists in all_lists(topology)] == [151] * 4
    top = [2, 4, 4, 5, 5, 5, 6, 6, 7, 6, 5, 4, 3]
    bottom = [3, 4, 5, 6, 7, 6, 6, 5, 6, 5, 5, 3, 1]
    widths = [[len(level) for level in topology.levels(d)] for d in range(4)]
    assert widths == [top, top, bottom, bottom]


@pytest.mark.parametrize("neighbourhood", NEIGHBOURHOODS)
def test_flips_exchange_directions(neighbourhood):
    rows, cols = 4, 5
    lists = all_lists(Topology.grid(rows, cols, neighbourhood=neighbourhood))
    nodes = np.arange(rows * cols).reshape(rows, cols)
    exchanged = {
        "line": {"left-right": [1, 0, 2, 3], "up-down": [0, 1, 3, 2]},
    }.get(neighbourhood, {"left-right": [1, 0, 3, 2], "up-down": [2, 3, 0, 1]})
    for flip, image in (("left-right", nodes[:, ::-1]), ("up-down", nodes[::-1])):
        image = image.ravel()
        flipped = [
            [sorted(image[p] for p in lists[d][image[n]]) for n in range(20)] for d in range(4)
        ]
        assert flipped == [lists[d] for d in exchanged[flip]]
    if neighbourhood == "line":
        assert all_lists(Topology.grid(rows, cols, neighbourhood="line").reversed()) == [
            lists[d] for d in (1, 0, 3, 2)
        ]


@pytest.mark.parametrize("seed", range(20))
def test_reversed_is_the_transpose(seed):
    topology = Topology.dag(random_lists(seed))
    turned = topology.reversed()
    for d in range(topology.num_directions):
        edges = {(p, n) for n in range(topology.num_nodes) for p in topology.predecessors(d, n)}
        back = {(p, n) for n in range(topology.num_nodes) for p in turned.predecessors(d, n)}
        assert back == {(n, p) for p, n in edges}
        assert back == {
            (s, n) for n in range(topology.num_nodes) for s in topology.successors(d, n)
        }
    assert topology.reversed() is turned
    assert turned.reversed() == topology
    assert pickle.loads(pickle.dumps(turned)).reversed() == topology


def test_slot_counts():
    assert Topology.chain(100).program("raster").num_slots == 1
    assert Topology.chain(100).program("levels").num_slots == 1
    assert Topology.grid(32, 32).program("raster").num_slots <= 34
    assert Topology.grid(32, 32).program("levels").num_slots <= 2 * 32
    assert Topology.montage("seed-62").program("levels").num_slots == 13
    for neighbourhood in ("cross", "line"):
        topology = Topology.grid(32, 32, neighbourhood=neighbourhood)
        assert {topology.program(order).num_slots for order in ORDERS} == {32}
    # One group: all may be stored at once, though none is read.
    assert Topology.dag([[[]] * 5]).program("levels").num_slots == 5
    # The leaf is the last of its group, and the next group takes its slot.
    assert Topology.dag([[[], [0], [0], [1], [3]]]).program("levels").num_slots == 2


@st.composite
def acyclic_lists(draw):
    """Predecessor lists of any directed acyclic graphs, in any numbering."""
    N = draw(st.integers(1, 12))
    lists = []
    for _ in range(draw(st.integers(1, 3))):
        rank = draw(st.permutations(range(N)))
        earlier = [[p for p in range(N) if rank[p] < rank[n]] for n in range(N)]
        lists.append([draw(st.sets(st.sampled_from(ps))) if ps else set() for ps in earlier])
    return [[sorted(node) for node in direction] for direction in lists]


@settings(max_examples=200, deadline=None)
@given(acyclic_lists(), st.sampled_from(ORDERS))
def test_the_nodes_of_a_group_have_slots_of_their_own(lists, order):
    """A backend stores a group at once, in no order: also what nothing reads must find its place.

    Nor may such a store hit a state that is still needed.
    """
    graph = Topology.dag(lists)
    for topology, planner in itertools.product((graph, graph.reversed()), {module.planner, twin}):
        p = planner.compile_program(topology.num_nodes, topology.pred_ptr, topology.pred, order)
        for d, group_ptr in enumerate(p["group_ptr"].tolist()):
            needed: dict[int, int] = {}  # slot -> reads to come
            for start, end in itertools.pairwise(group_ptr):
                read = slice(p["pred_ptr"][d, start], p["pred_ptr"][d, end])
                for slot in p["pred_slot"][read].tolist():
                    needed[slot] -= 1
                stored = p["slot"][d, start:end].tolist()
                assert len(set(stored)) == len(stored)
                assert all(needed.get(slot, 0) == 0 for slot in stored)
                counts = p["num_succ"][d, start:end].tolist()
                needed |= dict(zip(stored, counts, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_table(order):
    topology = Topology.montage("seed-62")
    program = topology.program(order)
    N, D, G, E = 62, 4, program.num_groups, 604
    table = program.table(CPU)
    assert (table.dtype, table.device, table.dim()) == (torch.int32, CPU, 1)
    assert table.is_contiguous() and table.numel() == D * (3 * N + (G + 1) + (N + 1)) + 2 * E
    names = ("node", "slot", "num_succ", "group_ptr", "pred_ptr", "pred_slot", "pred_node")
    joined = np.concatenate([getattr(program, name).ravel() for name in names])
    assert np.array_equal(table.numpy(), joined)
    assert program.table(CPU) is table is program.table("cpu") is program.table("cpu:0")
    assert program.table("meta").device.type == "meta"
    assert topology.program(order) is program
    assert repr(program).startswith(f"SweepProgram({order}: 62 nodes, 4 directions, 604 edges")
    for name in names:
        assert not getattr(program, name).flags.writeable


def test_table_is_an_ordinary_tensor_wherever_it_is_made():
    from torch._subclasses.fake_tensor import FakeTensorMode

    program = Topology.dag(random_lists(1)).program()
    with FakeTensorMode():
        program.table(CPU)
    with torch.inference_mode():
        program.table(CPU)
    assert type(program.table(CPU)) is torch.Tensor
    assert not program.table(CPU).is_inference()


def test_program_is_traced_as_a_constant():
    topology = Topology.montage("seed-62")
    # What is looked up while tracing has to be there already: numpy code cannot be traced.
    num_slots = topology.reversed().program("raster").num_slots
    total = topology.program("raster").table(CPU).sum()

    def look_up(x):
        table = topology.program("raster").table(x.device)
        return x + table.sum() + topology.reversed().program("raster").num_slots

    traced = torch.compile(look_up, fullgraph=True, backend="eager")
    assert traced(torch.zeros(())) == total + num_slots


def test_equality_and_hash():
    mask = np.array([[True, False], [True, True]])
    grid, cells = Topology.grid(2, 2, mask=mask), Topology.cells([(0, 0), (1, 0), (1, 1)])
    assert grid == cells and hash(grid) == hash(cells) and grid is not cells
    assert grid != Topology.cells([(0, 0), (1, 1), (1, 0)])
    assert Topology.chain(3) != Topology.chain(4)
    assert Topology.chain(3) != Topology.chain(3, bidirectional=False)
    assert Topology.chain(1) != Topology.chain(1, bidirectional=False)
    assert Topology.chain(3) != "chain"
    assert Topology.dag([[[], [], [1, 0]]]) == Topology.dag([[[], [], [0, 1]]])
    assert {grid: 1}[cells] == 1
    assert Topology.grid(3, 3) is Topology.grid(3, 3)
    # A mask is remembered by its cells, and another mask is another grid.
    other = mask.copy()
    other[0, 1] = True
    assert Topology.grid(2, 2, mask=mask) is grid
    assert Topology.grid(2, 2, mask=other) == Topology.grid(2, 2)


def test_immutable_and_copied():
    topology = Topology.cells({"a": (0, 0), "b": (0, 1)})
    with pytest.raises(AttributeError):
        topology.pred = None
    for array in (topology.pred_ptr, topology.pred, topology.positions, topology.level):
        with pytest.raises(ValueError):
            array[...] = 0
    assert copy.deepcopy(topology) is topology and copy.copy(topology) is topology
    assert copy.deepcopy({"t": topology})["t"].program() is topology.program()
    loaded = pickle.loads(pickle.dumps(topology))
    assert loaded == topology and hash(loaded) == hash(topology)
    assert loaded.names == ("a", "b") and loaded.positions.tolist() == [[0, 0], [0, 1]]
    assert not loaded.pred.flags.writeable


def test_arrays_given_stay_the_callers():
    positions = np.array([[0, 0], [0, 1]], np.int32)
    topology = Topology.cells(positions)
    positions[0] = 7
    assert topology.positions.tolist() == [[0, 0], [0, 1]]


def test_repr():
    assert repr(Topology.grid(9, 9)) == (
        "Topology(grid 9 x 9, corner: 81 nodes, 4 directions, 832 edges, 17 levels)"
    )
    assert "reversed chain 5, forward" in repr(Topology.chain(5, bidirectional=False).reversed())
    assert "reversed" not in repr(Topology.dag([[[], [0]]]).reversed().reversed())
    assert "seed-62" in repr(Topology.montage("seed-62"))


def test_a_large_grid_is_built():
    topology = Topology.grid(1024, 1024)
    assert topology.num_edges == 4 * (2 * 1024 * 1023 + 1023**2)
    assert hash(topology) == hash(Topology.grid(1024, 1024))
    if module.PLANNER == "compiled":
        assert topology.num_levels == topology.program("levels").num_groups == 2 * 1024 - 1
        assert topology.program("raster").num_slots <= 1026


@pytest.mark.parametrize("order", [*ORDERS, "other"])
@pytest.mark.parametrize("seed", range(60))
def test_compiled_program_equals_twin(compiled, seed, order):
    lists = random_lists(seed, num_nodes=90 if seed < 4 else None)
    if seed % 3 == 0:  # turn an edge or two round: often a cycle
        rng = random.Random(seed)
        n, p = rng.randrange(len(lists[0])), rng.randrange(len(lists[0]))
        lists[-1][n] = sorted({*lists[-1][n], p})
    args = len(lists[0]), *to_arrays(lists)
    same(compiled.compile_program, twin.compile_program, *args, order)
    same(compiled.compute_levels, twin.compute_levels, *args)
    same(compiled.transpose, twin.transpose, *args)


@pytest.mark.parametrize("seed", range(60))
def test_compiled_cells_equal_twin(compiled, seed):
    rng = np.random.default_rng(seed)
    where = rng.integers(0, 6, size=(rng.integers(1, 9), 2))
    if seed % 2:
        where = np.unique(where, axis=0)
        rng.shuffle(where)
    offsets = rng.integers(-2, 3, size=(3, 2, 2))
    same(compiled.cell_predecessors, twin.cell_predecessors, where[:, 0], where[:, 1], offsets)


def test_compiled_cells_far_apart_equal_twin(compiled):
    far = 2**31 - 1
    offsets = [[[0, -1], [-1, -1]], [[1 - 2**16, 0], [0, far >> 1]]]
    row, col = [far, far, far - 1, 0, 2**16 - 1], [far, far - 1, far - 1, 0, 0]
    same(compiled.cell_predecessors, twin.cell_predecessors, *map(np.array, (row, col, offsets)))


@pytest.mark.parametrize(
    "args",
    [
        (2, [[0, 0, 1]], [2]),
        (2, [[0, 0, 1]], [-1]),
        (2, [[0, 0, 2]], [0]),
        (2, [[0, 1, 0]], [0]),
        (2, [[0, 0, 1], [0, 0, 1]], [0]),
        (2, [[1, 1, 1]], [0]),
        (3, [[0, 0, 1]], [0]),
        (0, [[0]], [0]),
        (2, [0, 0, 1], [0]),
        (2, [[0, 0, 1]], [[0]]),
        (2, [[0, 0, 1]], [0.0]),
        (2, [[0.0, 0, 1]], [0]),
        (9, [list(range(10))], [*range(1, 9), 0]),
        (2, [[0, 0, 1]], [2**32]),
        (2, [[0, 0, 2**32 + 1]], [0]),
        (2**63 - 1, [[0, 0, 1]], [0]),
    ],
    ids=str,
)
def test_compiled_planner_refuses_what_the_twin_refuses(compiled, args):
    num_nodes, pred_ptr, pred = args[0], np.array(args[1]), np.array(args[2])
    with pytest.raises((ValueError, TypeError)):
        compiled.compute_levels(num_nodes, pred_ptr, pred)
    same(compiled.compute_levels, twin.compute_levels, num_nodes, pred_ptr, pred)
    same(compiled.compile_program, twin.compile_program, num_nodes, pred_ptr, pred, "raster")


@pytest.mark.parametrize(
    "args",
    [
        ([], [], [[[0, 1]]]),
        ([0, 1], [0], [[[0, 1]]]),
        ([0, -1], [0, 0], [[[0, 1]]]),
        ([0, 0], [3, 3], [[[0, 1]]]),
        ([0, 0], [3, 4], [[0, 1]]),
        ([0.5], [3], [[[0, 1]]]),
        ([2**32], [0], [[[0, 1]]]),
        ([0], [-(2**32)], [[[0, 1]]]),
        ([0], [0], [[[0, 2**32]]]),
        ([np.uint64(2**64 - 1)], [0], [[[0, 1]]]),
        ([2**31 - 1], [2**31 - 1], [[[0, 2**31 - 1]]]),
        ([0], [0], [[[-(2**31), 2**31 - 1]], [[2**31 - 1, 0]]]),
    ],
    ids=str,
)
def test_compiled_cells_refuse_what_the_twin_refuses(compiled, args):
    args = [np.array(a) for a in args]
    with pytest.raises((ValueError, TypeError)):
        compiled.cell_predecessors(*args)
    same(compiled.cell_predecessors, twin.cell_predecessors, *args)


def test_build_info(compiled):
    info = compiled.build_info()
    assert set(info) == set(twin.build_info()) == {"compiler", "cxx_standard"}
    assert info["compiler"] and info["cxx_standard"] >= 201703


def same(one, other, *args):
    """Both functions return the same, of the same types, or raise the same."""
    outcomes = []
    for function in (one, other):
        try:
            outcomes.append(function(*args))
        except (ValueError, TypeError) as error:
            outcomes.append((type(error).__name__, str(error)))
    flat = [
        list(o.values()) if isinstance(o, dict) else list(o) if isinstance(o, tuple) else [o]
        for o in outcomes
    ]
    if isinstance(outcomes[0], dict):
        assert set(outcomes[0]) == set(outcomes[1])
        flat = [[outcome[name] for name in sorted(outcome)] for outcome in outcomes]
    for a, b in zip(*flat, strict=True):
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype == np.int32 and a.shape == b.shape
            assert np.array_equal(a, b)
        else:
            assert a == b


REFUSED = {
    "cycle": (
        lambda: Topology.dag([[[], [0]], [[1], [0]]]),
        ValueError,
        "direction 1 has a cycle: 0 <- 1 <- 0",
    ),
    "long cycle": (
        lambda: Topology.dag([[[(n + 1) % 20] for n in range(20)]]),
        ValueError,
        "direction 0 has a cycle: 0 <- 1 <- 2 <- 3 <- 4 <- 5 <- 6 <- 7 <- ... (20 nodes) <- 0",
    ),
    "cycle behind a tail": (
        lambda: Topology.dag([[[1], [2], [1]]]),
        ValueError,
        "cycle: 1 <- 2 <- 1",
    ),
    "duplicate": (
        lambda: Topology.dag([[[], [0, 0]]]),
        ValueError,
        "node 1 of direction 0 has predecessor 0 twice",
    ),
    "out of range": (
        lambda: Topology.dag([[[], [2]]]),
        ValueError,
        "node 1 of direction 0 has predecessor 2, outside 0 .. 1",
    ),
    "far out of range": (lambda: Topology.dag([[[], [2**70]]]), ValueError, "outside 0 .. 1"),
    "negative index": (lambda: Topology.dag([[[], [-1]]]), ValueError, "has predecessor -1"),
    "self-loop": (
        lambda: Topology.dag([[[]], [[0]]]),
        ValueError,
        "node 0 of direction 1 is its own predecessor",
    ),
    "no direction": (lambda: Topology.dag([]), ValueError, "empty"),
    "no node": (lambda: Topology.dag([[]]), ValueError, "empty"),
    "directions differ": (
        lambda: Topology.dag([[[]], [[], []]]),
        ValueError,
        "direction 1 has 2 nodes, but direction 0 has 1",
    ),
    "float index": (
        lambda: Topology.dag([[[], [0.0]]]),
        TypeError,
        "node 1 of direction 0 must have integers",
    ),
    "bool index": (lambda: Topology.dag([[[], [False]]]), TypeError, "must have integers"),
    "flat dag": (lambda: Topology.dag([[0, 1]]), TypeError, "predecessors[d][n]"),
    "float size": (
        lambda: Topology.grid(2.0, 2),
        TypeError,
        "grid: rows must be an integer, got 2.0",
    ),
    "bool size": (
        lambda: Topology.chain(True),
        TypeError,
        "chain: length must be an integer, got True",
    ),
    "no rows": (lambda: Topology.grid(0, 2), ValueError, "grid: rows must be in 1 .. "),
    "negative columns": (lambda: Topology.grid(2, -2), ValueError, "grid: cols must be in 1 .. "),
    "no steps": (lambda: Topology.chain(0), ValueError, "chain: length must be in 1 .. "),
    "bidirectional": (
        lambda: Topology.chain(3, bidirectional=2),
        TypeError,
        "bidirectional must be a bool, got 2",
    ),
    "neighbourhood": (
        lambda: Topology.grid(2, 2, neighbourhood="star"),
        ValueError,
        'neighbourhood must be one of "corner", "cross", "line", got \'star\'',
    ),
    "cells neighbourhood": (
        lambda: Topology.cells([(0, 0)], neighbourhood=3),
        ValueError,
        'one of "corner"',
    ),
    "mask shape": (
        lambda: Topology.grid(2, 3, mask=np.ones((3, 2), bool)),
        ValueError,
        "mask must have shape (rows, cols) = (2, 3), got (3, 2)",
    ),
    "mask dtype": (
        lambda: Topology.grid(1, 1, mask=np.ones((1, 1))),
        TypeError,
        "mask must be boolean, got dtype float64",
    ),
    "empty mask": (
        lambda: Topology.grid(1, 2, mask=[[False, False]]),
        ValueError,
        "mask must have a True cell",
    ),
    "same position": (
        lambda: Topology.cells([(1, 1), (0, 0), (1, 1)]),
        ValueError,
        "nodes 0 and 2 have the same position (1, 1)",
    ),
    "negative position": (
        lambda: Topology.cells({"CZ": (0, 0), "PZ": (0, -1)}),
        ValueError,
        "position of node 1 (PZ) must be in 0 .. 2147483646, got (0, -1)",
    ),
    "far position": (lambda: Topology.cells([(0, 2**40)]), ValueError, "position of node 0"),
    "far position in an array": (
        lambda: Topology.cells(np.array([[0, 2**31]])),
        ValueError,
        "position of node 0",
    ),
    "no cells": (lambda: Topology.cells([]), ValueError, "at least one cell"),
    "no cells in an array": (
        lambda: Topology.cells(np.zeros((0, 2), int)),
        ValueError,
        "at least one cell",
    ),
    "triple": (
        lambda: Topology.cells([(0, 0, 0)]),
        TypeError,
        "position of node 0 must be two integers (row, col)",
    ),
    "float position": (
        lambda: Topology.cells([(0, 0.5)]),
        TypeError,
        "position of node 0 must be two integers",
    ),
    "float positions": (
        lambda: Topology.cells(np.zeros((2, 2))),
        TypeError,
        "must be integers, got dtype float64",
    ),
    "positions shape": (
        lambda: Topology.cells(torch.zeros(2, 3, dtype=int)),
        ValueError,
        "must have shape (N, 2), got (2, 3)",
    ),
    "montage": (
        lambda: Topology.montage("seed-63"),
        ValueError,
        'name must be one of "seed-62", "deap-32", got \'seed-63\'',
    ),
    "order": (
        lambda: Topology.chain(3).program("zigzag"),
        ValueError,
        'order must be "levels" or "raster", got "zigzag"',
    ),
    "direction index": (
        lambda: Topology.chain(3).predecessors(2, 0),
        IndexError,
        "d must be in 0 .. 1, got 2",
    ),
    "node index": (
        lambda: Topology.chain(3).successors(0, -1),
        IndexError,
        "n must be in 0 .. 2, got -1",
    ),
    "levels index": (lambda: Topology.chain(3).levels(7), IndexError, "d must be in 0 .. 1, got 7"),
    "huge grid": (lambda: Topology.grid(10**6, 10**6), ValueError, "too many"),
    "huge edges": (lambda: Topology.grid(20_000, 20_000), ValueError, "too many"),
    "huge chain": (lambda: Topology.chain(2**31 - 2), ValueError, "edges"),
    "huger chain": (lambda: Topology.chain(2**70), ValueError, "length must be in 1 .. "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, kind, text = REFUSED[name]
    with pytest.raises(kind, match=re.escape(text)) as caught:
        call()
    assert str(caught.value).startswith("Topology")


def test_draw(tmp_path):
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    path = tmp_path / "montage.png"
    figure = Topology.montage("seed-62").draw(path)
    assert path.stat().st_size > 0 and len(figure.axes) == 4
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "FP1\n0" in texts and len(texts) == 62

    assert len(Topology.chain(4).draw(direction=1).axes) == 1
    assert len(Topology.dag(random_lists(3)).reversed().draw().axes) >= 1
    ax = figure_class().subplots()
    assert Topology.grid(1, 1).draw(ax=ax, direction=0) is ax.figure
    with pytest.raises(ValueError, match="one axes for each of 4 directions, got 1"):
        Topology.grid(2, 2).draw(ax=ax)


def test_draw_names_the_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=re.escape("pip install strnn-kernels[plots]")):
        Topology.chain(2).draw()


# Memory


@pytest.fixture
def no_collector():
    """Only what nothing refers to goes: no reference cycle is found."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def bytes_of(topology: Topology) -> int:
    """The arrays of a topology and of its reverse, with their programs."""
    both = (topology, topology.reversed())
    return sum(t.pred_ptr.nbytes + t.pred.nbytes + t.program("levels")._joined.nbytes for t in both)


@pytest.mark.parametrize("first", [0, 1])
def test_a_topology_and_its_reverse_go_when_nothing_uses_them(no_collector, first):
    both = [Topology.dag([[[], [0]]])]
    both.append(both[0].reversed())
    for t in both:
        topology_tables(t, CPU, "levels")
    gone = [weakref.ref(t) for t in both]
    other = both[1 - first]
    del t, both[first]
    assert other.reversed().reversed() is other or first == 0
    assert other.reversed().reversed() == other
    del both, other
    assert [t() for t in gone] == [None, None]


@pytest.mark.parametrize(
    "make",
    [
        lambda i: Topology.chain(16384 - i),
        lambda i: Topology.grid(128, 128, mask=np.random.default_rng(i).random((128, 128)) < 0.9),
        lambda i: Topology.grid(100 + i, 120),
    ],
    ids=["chains", "masks", "grids"],
)
def test_what_is_remembered_is_bounded_by_bytes(no_collector, make):
    made = []
    for i in range(40):
        topology = make(i)
        made.append((weakref.ref(topology), bytes_of(topology)))
        assert make(i) is topology
    del topology
    kept = [size for t, size in made if t() is not None]
    assert sum(kept) <= module._REMEMBERED_BYTES < sum(size for _, size in made)
    assert made[-1][0]() is not None and kept[-1] * (len(kept) + 3) > module._REMEMBERED_BYTES / 2


def test_what_is_too_large_is_not_remembered(no_collector):
    one = Topology.grid(512, 512)
    assert Topology.grid(512, 512) == one
    gone = weakref.ref(one)
    del one
    assert gone() is None


def test_threads_share_what_is_remembered():
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: Topology.chain(1 + i % 5), range(200)))
    assert len({id(t) for t in made[-100:]}) == 5
