"""The planner in plain Python: from predecessor lists to the program that every backend follows.

This is the readable twin of ``csrc/planner.cpp`` (module ``strnn_kernels._planner``): the same
functions, results and exceptions. It stands in where the compiled module is missing and is what
the compiled one is tested against.

A graph of N nodes in D directions is a pair of int32 arrays, ``pred_ptr`` of shape (D, N + 1) and
``pred`` of shape (E,): the predecessors of node n in direction d are
``pred[pred_ptr[d, n]:pred_ptr[d, n + 1]]``; the directions follow each other in ``pred``.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int32]

ORDERS = ("levels", "raster")
MAX_EDGES = 2**31 - 1
# A cycle longer than this is cut in the error message.
CYCLE_SHOWN = 8


def build_info() -> dict[str, Any]:
    """What the planner was built with; nothing here, compiler and standard in the compiled twin."""
    return {"compiler": None, "cxx_standard": None}


def cell_predecessors(row: ArrayLike, col: ArrayLike, offsets: ArrayLike) -> tuple[Ints, Ints]:
    """Predecessor lists of cells on a grid: the cells at the given offsets, where there are any.

    Args:
        row: row of each node, shape (N,), not negative.
        col: column of each node, shape (N,), not negative.
        offsets: (row, column) from a node to each predecessor, shape (D, P, 2).

    Returns:
        pred_ptr (D, N + 1) and pred (E,), ascending for each node.

    Raises:
        ValueError: two nodes have the same position, or there are 2**31 edges or more.
    """
    row, col = (_ints(a, name).astype(np.int64) for a, name in ((row, "row"), (col, "col")))
    offsets = _ints(offsets, "offsets").astype(np.int64)
    if row.ndim != 1 or row.shape != col.shape or row.size == 0:
        raise ValueError("Topology: row and col must have one shape (N,) with N >= 1")
    if offsets.ndim != 3 or offsets.shape[2] != 2:
        raise ValueError("Topology: offsets must have shape (D, P, 2)")
    if min(row.min(), col.min()) < 0:
        raise ValueError("Topology: row and col must not be negative")
    num_nodes, (num_directions, per_node, _) = row.size, offsets.shape

    # One number per cell, with room on both sides of a row so that no neighbour wraps round.
    room = int(np.abs(offsets).max(initial=0))
    width = int(col.max()) + 1 + 2 * room
    if (int(row.max()) + 2 + room) * width >= 2**63:
        raise ValueError("Topology: positions and offsets are too far apart for 64 bits")
    key = row * width + col + room
    by_key = np.argsort(key, kind="stable")
    sorted_key = key[by_key]
    (same,) = np.nonzero(sorted_key[1:] == sorted_key[:-1])
    if same.size:
        first, second = by_key[same[0]], by_key[same[0] + 1]
        raise ValueError(
            f"Topology: nodes {first} and {second} have the same position "
            f"({row[first]}, {col[first]})"
        )

    pred_ptr = np.zeros((num_directions, num_nodes + 1), np.int64)
    pred: list[NDArray[np.int64]] = []
    num_edges = 0
    for d in range(num_directions):
        found = np.full((num_nodes, per_node), num_nodes, np.int64)
        for p, (d_row, d_col) in enumerate(offsets[d]):
            wanted = key + d_row * width + d_col
            at = np.minimum(np.searchsorted(sorted_key, wanted), num_nodes - 1)
            hit = sorted_key[at] == wanted
            found[hit, p] = by_key[at[hit]]
        found.sort(axis=1)
        exists = found < num_nodes
        pred_ptr[d, 0] = num_edges
        np.cumsum(exists.sum(axis=1), out=pred_ptr[d, 1:])
        pred_ptr[d, 1:] += num_edges
        num_edges = int(pred_ptr[d, -1])
        pred.append(found[exists])
    if num_edges > MAX_EDGES:
        raise ValueError(f"Topology: {num_edges} edges are more than {MAX_EDGES}")
    return pred_ptr.astype(np.int32), np.concatenate(pred).astype(np.int32)


def transpose(num_nodes: int, pred_ptr: ArrayLike, pred: ArrayLike) -> tuple[Ints, Ints]:
    """Successor lists in the form of predecessor lists, ascending for each node.

    Args:
        num_nodes: N.
        pred_ptr: offsets, shape (D, N + 1).
        pred: predecessors, shape (E,).

    Returns:
        succ_ptr (D, N + 1) and succ (E,).

    Raises:
        ValueError: the arrays do not describe N nodes in D directions.
    """
    pred_ptr, pred = _checked(num_nodes, pred_ptr, pred)
    succ_ptr = np.zeros_like(pred_ptr)
    succ: list[int] = []
    for d, ptr in enumerate(pred_ptr.tolist()):
        succ_ptr[d, 0] = len(succ)
        for n, successors in enumerate(_successors(num_nodes, ptr, pred)):
            succ.extend(successors)
            succ_ptr[d, n + 1] = len(succ)
    return succ_ptr, np.array(succ, np.int32)


def compute_levels(num_nodes: int, pred_ptr: ArrayLike, pred: ArrayLike) -> Ints:
    """level[d, n] = 0 without predecessors, else 1 + max over p in pred(d, n) of level[d, p].

    Args:
        num_nodes: N.
        pred_ptr: offsets, shape (D, N + 1).
        pred: predecessors, shape (E,).

    Returns:
        level, shape (D, N).

    Raises:
        ValueError: a direction has a cycle (the nodes on it are named), or the arrays do not
            describe N nodes in D directions.
    """
    pred_ptr, pred = _checked(num_nodes, pred_ptr, pred)
    levels = [_levels(d, num_nodes, ptr, pred) for d, ptr in enumerate(pred_ptr.tolist())]
    return np.array(levels, np.int32).reshape(len(pred_ptr), num_nodes)


def compile_program(
    num_nodes: int, pred_ptr: ArrayLike, pred: ArrayLike, order: str
) -> dict[str, Any]:
    """The sweep program: visiting order, groups of independent nodes, slots of fast memory.

    Args:
        num_nodes: N.
        pred_ptr: offsets, shape (D, N + 1).
        pred: predecessors, shape (E,).
        order: "levels" (by level, then by node) or "raster" (smallest ready node first).

    Returns:
        ``num_groups`` G, ``num_slots`` S and int32 arrays: ``node``, ``slot``, ``num_succ`` (D, N),
        ``group_ptr`` (D, G + 1), ``pred_ptr`` (D, N + 1), ``pred_slot``, ``pred_node`` (E,), all
        views of ``table``, their concatenation in this order.

    Raises:
        ValueError: unknown order, a cycle, or arrays that do not describe N nodes in D directions.
    """
    if order not in ORDERS:
        raise ValueError(f'Topology: order must be "levels" or "raster", got "{order}"')
    pred_ptr, pred = _checked(num_nodes, pred_ptr, pred)
    plans = []
    for d, ptr in enumerate(pred_ptr.tolist()):
        if order == "levels":
            level = _levels(d, num_nodes, ptr, pred)
            node = sorted(range(num_nodes), key=lambda n: (level[n], n))
        else:
            node = _smallest_ready_first(d, num_nodes, ptr, pred)
        group_ptr = _groups(node, ptr, pred)
        plans.append((node, group_ptr, *_slots(node, group_ptr, ptr, pred)))

    num_groups = max(len(group_ptr) - 1 for _, group_ptr, _, _, _ in plans)
    shapes = {
        "node": (len(plans), num_nodes),
        "slot": (len(plans), num_nodes),
        "num_succ": (len(plans), num_nodes),
        "group_ptr": (len(plans), num_groups + 1),
        "pred_ptr": (len(plans), num_nodes + 1),
        "pred_slot": (pred.size,),
        "pred_node": (pred.size,),
    }
    table = np.empty(sum(math.prod(shape) for shape in shapes.values()), np.int32)
    program: dict[str, Any] = {"num_groups": num_groups, "table": table}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        program[name] = table[begin:end].reshape(shape)
        begin = end

    edge = 0
    for d, (node, group_ptr, slot, num_succ, _) in enumerate(plans):
        program["node"][d] = node
        program["slot"][d] = [slot[n] for n in node]
        program["num_succ"][d] = [num_succ[n] for n in node]
        program["group_ptr"][d] = num_nodes
        program["group_ptr"][d, : len(group_ptr)] = group_ptr
        program["pred_ptr"][d, 0] = edge
        for i, n in enumerate(node):
            for p in _of(n, pred_ptr[d], pred):
                program["pred_node"][edge] = p
                program["pred_slot"][edge] = slot[p]
                edge += 1
            program["pred_ptr"][d, i + 1] = edge
    program["num_slots"] = max(num_slots for *_, num_slots in plans)
    return program


def _ints(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"Topology: {name} must be an array of integers")
    if array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise ValueError(f"Topology: {name} must be integers of 32 bits")
    return array


def _checked(num_nodes: int, pred_ptr: ArrayLike, pred: ArrayLike) -> tuple[Ints, Ints]:
    ptr, pred = _ints(pred_ptr, "pred_ptr"), _ints(pred, "pred")
    if num_nodes < 1 or ptr.ndim != 2 or ptr.shape[0] < 1 or ptr.shape[1] != num_nodes + 1:
        raise ValueError("Topology: pred_ptr must have shape (D, N + 1) with D >= 1 and N >= 1")
    if pred.ndim != 1 or pred.size > MAX_EDGES:
        raise ValueError("Topology: pred must have shape (E,) with E < 2**31")
    flat = ptr.ravel().astype(np.int64)
    joined = np.array_equal(ptr[1:, 0], ptr[:-1, -1])
    if flat[0] != 0 or flat[-1] != pred.size or not joined or np.any(np.diff(flat) < 0):
        raise ValueError("Topology: pred_ptr must rise from 0 to E without gaps")
    if pred.size and (pred.min() < 0 or pred.max() >= num_nodes):
        raise ValueError(f"Topology: a predecessor is outside 0 .. {num_nodes - 1}")
    return ptr.astype(np.int32), pred.astype(np.int32)


def _of(n: int, ptr: Any, pred: Ints) -> list[int]:
    return pred[ptr[n] : ptr[n + 1]].tolist()


def _successors(num_nodes: int, ptr: list[int], pred: Ints) -> list[list[int]]:
    successors: list[list[int]] = [[] for _ in range(num_nodes)]
    for n in range(num_nodes):
        for p in _of(n, ptr, pred):
            successors[p].append(n)
    return successors


def _levels(d: int, num_nodes: int, ptr: list[int], pred: Ints) -> list[int]:
    successors = _successors(num_nodes, ptr, pred)
    waits_for = [ptr[n + 1] - ptr[n] for n in range(num_nodes)]
    level = [0] * num_nodes
    ready = [n for n in range(num_nodes) if waits_for[n] == 0]
    # The list grows while it is read: a queue.
    for n in ready:
        for s in successors[n]:
            level[s] = max(level[s], level[n] + 1)
            waits_for[s] -= 1
            if waits_for[s] == 0:
                ready.append(s)
    if len(ready) < num_nodes:
        raise ValueError(_cycle_message(d, waits_for, ptr, pred))
    return level


def _cycle_message(d: int, waits_for: list[int], ptr: list[int], pred: Ints) -> str:
    # Each node left over has a predecessor left over, so walking back must meet itself.
    n = next(n for n, waiting in enumerate(waits_for) if waiting)
    walk: dict[int, int] = {}
    while n not in walk:
        walk[n] = len(walk)
        n = next(p for p in _of(n, ptr, pred) if waits_for[p])
    cycle = list(walk)[walk[n] :]
    path = " <- ".join(str(m) for m in cycle[:CYCLE_SHOWN])
    if len(cycle) > CYCLE_SHOWN:
        path += f" <- ... ({len(cycle)} nodes)"
    return f"Topology: direction {d} has a cycle: {path} <- {n}"


def _smallest_ready_first(d: int, num_nodes: int, ptr: list[int], pred: Ints) -> list[int]:
    successors = _successors(num_nodes, ptr, pred)
    waits_for = [ptr[n + 1] - ptr[n] for n in range(num_nodes)]
    ready = [n for n in range(num_nodes) if waits_for[n] == 0]
    node = []
    while ready:
        n = heapq.heappop(ready)
        node.append(n)
        for s in successors[n]:
            waits_for[s] -= 1
            if waits_for[s] == 0:
                heapq.heappush(ready, s)
    if len(node) < num_nodes:
        raise ValueError(_cycle_message(d, waits_for, ptr, pred))
    return node


def _groups(node: list[int], ptr: list[int], pred: Ints) -> list[int]:
    position = {n: i for i, n in enumerate(node)}
    group_ptr = [0]
    for i, n in enumerate(node):
        if any(position[p] >= group_ptr[-1] for p in _of(n, ptr, pred)):
            group_ptr.append(i)
    return [*group_ptr, len(node)]


def _slots(
    node: list[int], group_ptr: list[int], ptr: list[int], pred: Ints
) -> tuple[dict[int, int], list[int], int]:
    num_succ = [0] * len(node)
    for n in range(len(node)):
        for p in _of(n, ptr, pred):
            num_succ[p] += 1
    uses = list(num_succ)
    slot: dict[int, int] = {}
    free: list[int] = []
    # Those of nodes that nothing follows, until their group ends: its nodes may be stored at once.
    unread: list[int] = []
    starts = set(group_ptr)
    num_slots = 0
    for i, n in enumerate(node):
        if i in starts:
            for s in unread:
                heapq.heappush(free, s)
            unread = []
        for p in _of(n, ptr, pred):
            uses[p] -= 1
            if uses[p] == 0:
                heapq.heappush(free, slot[p])
        if free:
            slot[n] = heapq.heappop(free)
        else:
            slot[n] = num_slots
            num_slots += 1
        if num_succ[n] == 0:
            unread.append(slot[n])
    return slot, num_succ, num_slots
