"""Topologies: which states precede which, and the program that every backend follows.

A topology is D directed acyclic graphs over the same N nodes. A sweep visits each node of a
direction after its predecessors:

    h[n, d] = act( u[n, d] + W[d] @ sum over p in pred(d, n) of h[p, d] )

The graphs are kept as predecessor lists in compressed form and compiled once, by the planner, into
a `SweepProgram`: small int32 tables, the only thing that a backend sees.
"""

from __future__ import annotations

import itertools
import operator
import threading
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils._python_dispatch import _disable_current_modes

from strnn_kernels.montages import MONTAGES
from strnn_kernels.parts import why_missing

#: "compiled" or "python": which planner is in use; PLANNER_REASON tells why it is the slow one.
PLANNER = "compiled"
PLANNER_REASON: str | None = None
try:
    planner = import_module("strnn_kernels._planner")
except ImportError as error:
    from . import planner

    is_missing = isinstance(error, ModuleNotFoundError)
    PLANNER, PLANNER_REASON = "python", why_missing("_planner") if is_missing else str(error)

Ints = NDArray[np.int32]

_LEFT, _RIGHT, _UP, _DOWN = (0, -1), (0, 1), (-1, 0), (1, 0)
#: neighbourhood -> direction -> offsets (row, column) from a cell to its predecessors
NEIGHBOURHOODS = {
    "corner": (
        (_LEFT, _UP, (-1, -1)),
        (_RIGHT, _UP, (-1, 1)),
        (_LEFT, _DOWN, (1, -1)),
        (_RIGHT, _DOWN, (1, 1)),
    ),
    "cross": ((_LEFT, _UP), (_RIGHT, _UP), (_LEFT, _DOWN), (_RIGHT, _DOWN)),
    "line": ((_LEFT,), (_RIGHT,), (_UP,), (_DOWN,)),
}

# Tables hold node numbers and edge offsets as int32, with one more offset than nodes.
_MAX_NODES = 2**31 - 2
_MAX_EDGES = 2**31 - 1
# Topologies that were used last are remembered and handed out again, as many as take this.
_REMEMBERED_BYTES = 1 << 26
_HANDLES = itertools.count()
_LIVE: weakref.WeakValueDictionary[str, Topology] = weakref.WeakValueDictionary()
# Beyond this many nodes the numbers in a drawing would only be a stain.
_NUMBERED_NODES = 1024


@dataclass(frozen=True, eq=False, repr=False)
class SweepProgram:
    """A topology in the order of a sweep: what to visit, when, and where states are kept.

    ``node``, ``slot``, ``num_succ`` (D, N) give for position i of direction d the node, the slot of
    fast memory that keeps its state from its visit to its last use, and how often it is used.
    ``group_ptr`` (D, G + 1) cuts the positions into runs of nodes independent of each other, padded
    with N. ``pred_slot`` and ``pred_node`` (E,) name the predecessors of position i at
    ``pred_ptr[d, i] .. pred_ptr[d, i + 1]``, ``pred_ptr`` (D, N + 1). All are int32 and read-only.
    """

    order: str
    num_nodes: int
    num_directions: int
    num_groups: int
    num_slots: int
    num_edges: int
    node: Ints
    slot: Ints
    num_succ: Ints
    group_ptr: Ints
    pred_ptr: Ints
    pred_slot: Ints
    pred_node: Ints
    _joined: Ints
    _tables: dict[torch.device | str, torch.Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"SweepProgram({self.order}: {self.num_nodes} nodes, {self.num_directions} directions, "
            f"{self.num_edges} edges, {self.num_groups} groups, {self.num_slots} slots)"
        )

    def table(self, device: torch.device | str) -> torch.Tensor:
        """The arrays above, flattened and joined in the order listed, as one tensor.

        Args:
            device: where the tensor shall be; it is copied there once and remembered.

        Returns:
            An int32 tensor of shape (D * (3 N + (G + 1) + (N + 1)) + 2 E,). Do not write to it.
        """
        table = self._tables.get(device)
        return self._copy_to(torch.device(device)) if table is None else table

    def _copy_to(self, device: torch.device) -> torch.Tensor:
        if device.type == "cpu":
            device = torch.device("cpu")
        elif device.index is None and device.type != "meta":
            # "cuda" means the current device, which may be another one next time.
            device = torch.device(device.type, torch.get_device_module(device).current_device())
        table = self._tables.get(device)
        if table is None:
            # A tensor born in inference mode could not be saved for a backward pass later, and one
            # born under a tracer would be a stand-in without data.
            with torch.inference_mode(False), _disable_current_modes():
                table = torch.from_numpy(self._joined).to(device)
            self._tables[device] = table
        return table


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """D directed acyclic graphs over N nodes; made by `grid`, `cells`, `montage`, `chain`, `dag`.

    Immutable. Equality and hash look at the graphs alone: N, D and the predecessors of each node.

    Attributes:
        pred_ptr: offsets into ``pred``, int32, shape (D, N + 1), read-only.
        pred: predecessors, ascending for each node, int32, shape (E,), read-only.
        positions: (row, column) of each node where known, int32, shape (N, 2), read-only.
        names: name of each node where known.
        label: how the topology was made, for people.
        num_nodes: N.
        num_directions: D.
        handle: a name of this object in this process, see `by_handle`.
    """

    pred_ptr: Ints
    pred: Ints
    positions: Ints | None = None
    names: tuple[str, ...] | None = None
    label: str = "dag"
    num_nodes: int = field(init=False)
    num_directions: int = field(init=False)
    handle: str = field(init=False)

    def __post_init__(self) -> None:
        for name in ("pred_ptr", "pred", "positions"):
            array = getattr(self, name)
            if array is not None:
                # A view, so that the flag does not change under the owner's hands.
                array = np.ascontiguousarray(array, dtype=np.int32).view()
                array.flags.writeable = False
                object.__setattr__(self, name, array)
        # Plain attributes, which a compiler reads without running code of this class.
        object.__setattr__(self, "num_nodes", self.pred_ptr.shape[1] - 1)
        object.__setattr__(self, "num_directions", self.pred_ptr.shape[0])
        object.__setattr__(self, "handle", f"topology {next(_HANDLES)}")
        _LIVE[self.handle] = self

    @classmethod
    def grid(
        cls, rows: int, cols: int, *, neighbourhood: str = "corner", mask: ArrayLike | None = None
    ) -> Topology:
        """A grid of cells, numbered row by row, swept from four sides.

        Directions of "corner" (horizontal, vertical and diagonal predecessor) and "cross" (without
        the diagonal): from top-left, top-right, bottom-left, bottom-right. Directions of "line"
        (one predecessor, the adjacent cell): left-to-right, right-to-left, top-to-bottom,
        bottom-to-top.

        Args:
            rows: number of rows.
            cols: number of columns.
            neighbourhood: "corner", "cross" or "line".
            mask: bool, shape (rows, cols); only True cells are nodes. None: all cells are.

        Raises:
            TypeError: a size is not an integer, or the mask is not boolean.
            ValueError: a size is not positive or too large, the neighbourhood is unknown, or the
                mask has another shape or no True cell.
        """
        rows, cols = _size(rows, "grid: rows"), _size(cols, "grid: cols")
        _check_neighbourhood(neighbourhood, "grid")
        if mask is None:
            return _remembered(_grid, rows, cols, neighbourhood, None)
        cells = _host(mask)
        if cells.dtype != np.bool_:
            raise TypeError(f"Topology.grid: mask must be boolean, got dtype {cells.dtype}")
        if cells.shape != (rows, cols):
            raise ValueError(
                f"Topology.grid: mask must have shape (rows, cols) = ({rows}, {cols}), "
                f"got {cells.shape}"
            )
        if not cells.any():
            raise ValueError("Topology.grid: mask must have a True cell, got none")
        return _remembered(_grid, rows, cols, neighbourhood, cells.tobytes())

    @classmethod
    def cells(
        cls,
        positions: Mapping[str, Sequence[int]] | Iterable[Sequence[int]] | ArrayLike,
        *,
        neighbourhood: str = "corner",
    ) -> Topology:
        """Cells of a grid in an order of your own: node k sits at positions[k].

        Args:
            positions: (row, column) of each node, not negative; an array (N, 2), a sequence of
                pairs, or a dict from name to pair (electrodes).
            neighbourhood: as in `grid`.

        Raises:
            TypeError: a position is not a pair of integers.
            ValueError: no positions, a negative or repeated one, or an unknown neighbourhood.
        """
        _check_neighbourhood(neighbourhood, "cells")
        names = None
        if isinstance(positions, Mapping):
            names = tuple(str(name) for name in positions)
            positions = list(positions.values())
        where = _positions(positions, names)
        label = f"cells, {neighbourhood}"
        return _from_positions(where, neighbourhood, names=names, label=label)

    @classmethod
    def montage(cls, name: str, *, neighbourhood: str = "corner") -> Topology:
        """The electrodes of a known montage, in the channel order of its data set.

        Args:
            name: "seed-62": the 62 electrodes of SEED on a 9 x 9 grid.
            neighbourhood: as in `grid`.

        Raises:
            ValueError: unknown montage or neighbourhood.
        """
        if name not in MONTAGES:
            known = ", ".join(f'"{m}"' for m in MONTAGES)
            raise ValueError(f"Topology.montage: name must be one of {known}, got {name!r}")
        _check_neighbourhood(neighbourhood, "montage")
        where = _positions(list(MONTAGES[name].values()), None)
        names, label = tuple(MONTAGES[name]), f"montage {name}, {neighbourhood}"
        return _from_positions(where, neighbourhood, names=names, label=label)

    @classmethod
    def chain(cls, length: int, *, bidirectional: bool = True) -> Topology:
        """Time steps: direction 0 runs forward, direction 1 (if bidirectional) backward.

        Args:
            length: number of steps.
            bidirectional: with a second direction, last step first.

        Raises:
            TypeError: length is not an integer or bidirectional not a bool.
            ValueError: length is not positive or too large.
        """
        if bidirectional is not True and bidirectional is not False:
            raise TypeError(f"Topology.chain: bidirectional must be a bool, got {bidirectional!r}")
        return _remembered(_chain, _size(length, "chain: length"), bidirectional)

    @classmethod
    def dag(cls, predecessors: Iterable[Iterable[Iterable[int]]]) -> Topology:
        """Any directed acyclic graphs.

        Args:
            predecessors: predecessors[d][n] lists the nodes that precede node n in direction d.

        Raises:
            TypeError: a predecessor is not an integer, or the nesting is not three deep.
            ValueError: no nodes, directions of different length, a predecessor out of range, named
                twice or equal to its node, or a cycle.
        """
        pred_ptr, pred = _read_dag(predecessors)
        topology = cls(pred_ptr, pred)
        _ = topology.level  # raises where there is a cycle
        return topology

    @cached_property
    def num_edges(self) -> int:
        """Number of predecessors of all nodes in all directions."""
        return self.pred.size

    @cached_property
    def max_predecessors(self) -> int:
        """P, the largest number of predecessors of a node."""
        return int(np.diff(self.pred_ptr, axis=1).max())

    @cached_property
    def level(self) -> Ints:
        """Length of the longest path that ends at node n, int32, shape (D, N), read-only."""
        level = planner.compute_levels(self.num_nodes, self.pred_ptr, self.pred)
        level.flags.writeable = False
        return level

    @cached_property
    def num_levels(self) -> int:
        """Number of dependent steps of a sweep: the largest over the directions."""
        return int(self.level.max()) + 1

    def predecessors(self, d: int, n: int) -> tuple[int, ...]:
        """The nodes that precede node n in direction d, ascending."""
        d = _index(d, self.num_directions, "d")
        n = _index(n, self.num_nodes, "n")
        return tuple(self.pred[self.pred_ptr[d, n] : self.pred_ptr[d, n + 1]].tolist())

    def successors(self, d: int, n: int) -> tuple[int, ...]:
        """The nodes that node n precedes in direction d, ascending."""
        return self.reversed().predecessors(d, n)

    @torch.compiler.disable
    def levels(self, d: int) -> list[list[int]]:
        """The nodes of direction d by level: those of a level depend on earlier levels only."""
        level = self.level[_index(d, self.num_directions, "d")]
        nodes = np.argsort(level, kind="stable")
        cuts = np.cumsum(np.bincount(level))[:-1]
        return [part.tolist() for part in np.split(nodes, cuts)]

    def reversed(self) -> Topology:
        """The topology with each edge turned round: what a derivative is swept over."""
        turned = self.__dict__.get("_reversed")
        if isinstance(turned, weakref.ref):
            turned = turned()
        return self._reverse() if turned is None else turned

    def _reverse(self) -> Topology:
        succ_ptr, succ = planner.transpose(self.num_nodes, self.pred_ptr, self.pred)
        label = self.label.removeprefix("reversed ")
        if label == self.label:
            label = f"reversed {label}"
        turned = Topology(succ_ptr, succ, self.positions, self.names, label)
        # The one made is kept, its maker only found: the two are no cycle, and go when unused.
        self.__dict__["_reversed"] = turned
        turned.__dict__["_reversed"] = weakref.ref(self)
        return turned

    def program(self, order: str = "levels") -> SweepProgram:
        """The sweep program in the given order, compiled at the first call.

        Args:
            order: "levels", nodes by dependency level (few groups, many at once), or "raster", the
                smallest ready node first (few slots).

        Raises:
            ValueError: unknown order.
        """
        program = self._programs.get(order)
        return self._compile(order) if program is None else program

    @cached_property
    def _programs(self) -> dict[str, SweepProgram]:
        return {}

    def _compile(self, order: str) -> SweepProgram:
        fields = planner.compile_program(self.num_nodes, self.pred_ptr, self.pred, order)
        joined = fields.pop("table")
        for array in fields.values():
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
        program = SweepProgram(
            order=order,
            num_nodes=self.num_nodes,
            num_directions=self.num_directions,
            num_edges=self.num_edges,
            _joined=joined,
            **fields,
        )
        self._programs[order] = program
        return program

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Topology):
            return NotImplemented
        return np.array_equal(self.pred_ptr, other.pred_ptr) and np.array_equal(
            self.pred, other.pred
        )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(
            (self.pred_ptr.shape, zlib.crc32(self.pred_ptr.data), zlib.crc32(self.pred.data))
        )

    def __repr__(self) -> str:
        return (
            f"Topology({self.label}: {self.num_nodes} nodes, {self.num_directions} directions, "
            f"{self.num_edges} edges, {self.num_levels} levels)"
        )

    def draw(self, path: Any = None, *, ax: Any = None, direction: int | None = None) -> Any:
        """Draw the edges and the visiting order (by level) of each direction, a panel for each.

        Nodes sit at their positions where known, otherwise level by level from left to right.

        Args:
            path: file to write, of any type that matplotlib knows.
            ax: matplotlib axes to draw on, one for each direction drawn. None: a new figure.
            direction: the only one to draw. None: all.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: matplotlib is missing.
            ValueError: the number of axes is not the number of directions to draw.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            message = "Topology.draw needs matplotlib: pip install strnn-kernels[plots]"
            raise ImportError(message) from error
        drawn = range(self.num_directions) if direction is None else [direction]
        if ax is None:
            figure = Figure(figsize=(5 * len(drawn), 5), layout="constrained")
            ax = figure.subplots(1, len(drawn))
        axes = np.atleast_1d(ax).ravel()
        if len(axes) != len(drawn):
            raise ValueError(
                f"Topology.draw: ax must have one axes for each of {len(drawn)} directions, "
                f"got {len(axes)}"
            )
        for d, panel in zip(drawn, axes, strict=True):
            _draw_direction(self, _index(d, self.num_directions, "direction"), panel)
        figure = axes[0].figure
        if path is not None:
            figure.savefig(path)
        return figure

    # Immutable: a copy is the topology itself, and what was compiled stays compiled.
    def __copy__(self) -> Topology:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Topology, (self.pred_ptr, self.pred, self.positions, self.names, self.label)


def by_handle(handle: str) -> Topology:
    """The living topology of that handle: what a compiler can hold is text, not a Topology."""
    return _LIVE[handle]


def _integer(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise TypeError("a bool is not an integer here")
    return operator.index(value)


def _size(value: Any, what: str) -> int:
    try:
        size = _integer(value)
    except TypeError:
        raise TypeError(f"Topology.{what} must be an integer, got {value!r}") from None
    if not 1 <= size <= _MAX_NODES:
        raise ValueError(f"Topology.{what} must be in 1 .. {_MAX_NODES}, got {size}")
    return size


def _index(value: Any, bound: int, what: str) -> int:
    index = operator.index(value)
    if not 0 <= index < bound:
        raise IndexError(f"Topology: {what} must be in 0 .. {bound - 1}, got {index}")
    return index


def _host(array: Any) -> NDArray[Any]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
    return np.ascontiguousarray(array)


def _check_neighbourhood(neighbourhood: str, maker: str) -> None:
    if not isinstance(neighbourhood, str) or neighbourhood not in NEIGHBOURHOODS:
        known = ", ".join(f'"{name}"' for name in NEIGHBOURHOODS)
        raise ValueError(
            f"Topology.{maker}: neighbourhood must be one of {known}, got {neighbourhood!r}"
        )


def _from_positions(
    where: Ints, neighbourhood: str, *, names: tuple[str, ...] | None = None, label: str
) -> Topology:
    offsets = np.array(NEIGHBOURHOODS[neighbourhood], np.int32)
    pred_ptr, pred = planner.cell_predecessors(where[:, 0], where[:, 1], offsets)
    return Topology(pred_ptr, pred, where, names, label)


def _grid(rows: int, cols: int, neighbourhood: str, mask: bytes | None) -> Topology:
    label = f"grid {rows} x {cols}, {neighbourhood}"
    if mask is not None:
        cells = np.frombuffer(mask, np.bool_).reshape(rows, cols)
        return _from_positions(
            np.argwhere(cells).astype(np.int32), neighbourhood, label=f"{label}, masked"
        )
    num_edges = sum(
        (rows - abs(d_row)) * (cols - abs(d_col))
        for direction in NEIGHBOURHOODS[neighbourhood]
        for d_row, d_col in direction
    )
    if rows * cols > _MAX_NODES or num_edges > _MAX_EDGES:
        raise ValueError(
            f"Topology.grid: {rows} x {cols} cells with {num_edges} edges are too many: "
            f"at most {_MAX_NODES} cells and {_MAX_EDGES} edges"
        )
    where = np.empty((rows, cols, 2), np.int32)
    where[..., 0] = np.arange(rows, dtype=np.int32)[:, None]
    where[..., 1] = np.arange(cols, dtype=np.int32)
    return _from_positions(where.reshape(-1, 2), neighbourhood, label=label)


def _chain(length: int, bidirectional: bool) -> Topology:
    num_directions = 1 + bidirectional
    if num_directions * (length - 1) > _MAX_EDGES:
        raise ValueError(f"Topology.chain: {length} steps have more than {_MAX_EDGES} edges")
    steps = np.arange(length, dtype=np.int32)
    pred_ptr = np.zeros((num_directions, length + 1), np.int32)
    pred_ptr[0, 1:] = steps
    if bidirectional:
        pred_ptr[1, :-1] = length - 1 + steps
        pred_ptr[1, -1] = 2 * (length - 1)
    pred = np.concatenate([steps[:-1], steps[1:]][:num_directions])
    label = f"chain {length}, {'bidirectional' if bidirectional else 'forward'}"
    return Topology(pred_ptr, pred, label=label)


class _Remembered:
    """What makers made, handed out again while it is among the last used of so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._made: OrderedDict[tuple[Any, ...], Topology] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, maker: Callable[..., Topology], *args: Any) -> Topology:
        key = (maker, *args)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        topology = maker(*args)
        with self._lock:
            self._bytes += self._cost(topology) if key not in self._made else 0
            topology = self._made.setdefault(key, topology)
            while self._bytes > self._most_bytes:
                self._bytes -= self._cost(self._made.popitem(last=False)[1])
        return topology

    @staticmethod
    def _cost(topology: Topology) -> int:
        """Bytes of the lists, levels and a program of a topology and of its reverse."""
        return 8 * (7 * topology.num_directions * topology.num_nodes + 3 * topology.num_edges)


_remembered = _Remembered(_REMEMBERED_BYTES)


def _positions(positions: Any, names: tuple[str, ...] | None) -> Ints:
    if isinstance(positions, np.ndarray | torch.Tensor):
        where = _host(positions)
        if where.dtype.kind not in "iu":
            raise TypeError(f"Topology.cells: positions must be integers, got dtype {where.dtype}")
        if where.ndim != 2 or where.shape[1] != 2:
            raise ValueError(
                f"Topology.cells: positions must have shape (N, 2), got {tuple(where.shape)}"
            )
    else:
        pairs = [_pair(k, pair, names) for k, pair in enumerate(positions)]
        where = np.array(pairs, dtype=object).reshape(-1, 2)
    if len(where) == 0:
        raise ValueError("Topology.cells: positions must name at least one cell, got none")
    (outside,) = np.nonzero(((where < 0) | (where > _MAX_NODES)).any(axis=1))
    if outside.size:
        k = int(outside[0])
        raise ValueError(
            f"Topology.cells: position of {_called(k, names)} must be in 0 .. {_MAX_NODES}, "
            f"got ({where[k, 0]}, {where[k, 1]})"
        )
    return where.astype(np.int32)


def _called(k: int, names: tuple[str, ...] | None) -> str:
    return f"node {k}" if names is None else f"node {k} ({names[k]})"


def _pair(k: int, pair: Any, names: tuple[str, ...] | None) -> tuple[int, int]:
    try:
        row, col = (_integer(value) for value in pair)
    except (TypeError, ValueError):
        raise TypeError(
            f"Topology.cells: position of {_called(k, names)} must be two integers (row, col), "
            f"got {pair!r}"
        ) from None
    return row, col


def _read_dag(predecessors: Any) -> tuple[Ints, Ints]:
    try:
        lists = [[list(node) for node in direction] for direction in predecessors]
    except TypeError:
        raise TypeError(
            "Topology.dag: predecessors must be predecessors[d][n] = iterable of nodes"
        ) from None
    if not lists or not lists[0]:
        raise ValueError("Topology.dag: the graph needs a direction and a node, got an empty one")
    num_nodes = len(lists[0])
    pred_ptr: list[list[int]] = []
    pred: list[int] = []
    for d, direction in enumerate(lists):
        if len(direction) != num_nodes:
            raise ValueError(
                f"Topology.dag: direction {d} has {len(direction)} nodes, "
                f"but direction 0 has {num_nodes}"
            )
        pred_ptr.append([len(pred)])
        for n, node in enumerate(direction):
            pred.extend(_read_node(d, n, node, num_nodes))
            pred_ptr[d].append(len(pred))
    return np.array(pred_ptr, np.int32), np.array(pred, np.int32)


def _read_node(d: int, n: int, node: list[Any], num_nodes: int) -> list[int]:
    at = f"Topology.dag: node {n} of direction {d}"
    try:
        found = sorted(_integer(p) for p in node)
    except TypeError:
        raise TypeError(f"{at} must have integers as predecessors, got {node!r}") from None
    for i, p in enumerate(found):
        if not 0 <= p < num_nodes:
            raise ValueError(f"{at} has predecessor {p}, outside 0 .. {num_nodes - 1}")
        if p == n:
            raise ValueError(f"{at} is its own predecessor")
        if i and p == found[i - 1]:
            raise ValueError(f"{at} has predecessor {p} twice")
    return found


def _draw_direction(topology: Topology, d: int, panel: Any) -> None:
    program, level = topology.program("levels"), topology.level[d]
    number = np.empty(topology.num_nodes, np.int32)
    number[program.node[d]] = np.arange(topology.num_nodes)
    if topology.positions is not None:
        y, x = topology.positions.T
    else:
        first = program.group_ptr[d][level]
        x, y = level, number - first - (np.bincount(level)[level] - 1) / 2
    ptr = topology.pred_ptr[d]
    p, n = topology.pred[ptr[0] : ptr[-1]], np.repeat(np.arange(topology.num_nodes), np.diff(ptr))
    if p.size:
        # The head of an arrow sits half way: at its end it would hide under the node.
        for reach, head in ((1.0, 0), (0.6, 5)):
            steps = (reach * (x[n] - x[p]), reach * (y[n] - y[p]))
            style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.003}
            heads = {"headwidth": head, "headlength": head, "headaxislength": head}
            panel.quiver(x[p], y[p], *steps, color="0.5", **style, **heads)
    panel.scatter(x, y, s=400, color="white", edgecolors="0.3", zorder=2)
    if topology.num_nodes <= _NUMBERED_NODES:
        for k, i in enumerate(number.tolist()):
            text = str(i) if topology.names is None else f"{topology.names[k]}\n{i}"
            panel.text(x[k], y[k], text, ha="center", va="center", fontsize=6, zorder=3)
    panel.set_title(f"direction {d}")
    panel.set_aspect("equal")
    panel.margins(0.1)
    panel.invert_yaxis()
    panel.axis("off")
