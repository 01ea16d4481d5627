"""Electrodes on a grid: from an MNE montage, or from the tables of other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import numpy as np

import strnn_kernels as sk
from strnn_kernels.montages import MONTAGES

Grid = dict[str, tuple[int, int]]

#: The electrodes of SEED in channel order.
SEED_CHANNELS = tuple(MONTAGES["seed-62"])
#: SEED's names that MNE's standard montages lack -> the nearest position they have.
ALIASES = {"CB1": "POO7", "CB2": "POO8"}


def grid_from_table(
    table: Mapping[str, Sequence[int]] | Sequence[Sequence[int]],
    names: Sequence[str] = SEED_CHANNELS,
    *,
    first: int = 0,
) -> Grid:
    """Name -> (row, col), counted from 0, from the tables of other libraries.

    Args:
        table: name -> [row, col], as TorchEEG has it; or a list of [row, col] in the order of
            `names`, as LibEER has it.
        names: of the electrodes where the table is a list.
        first: number of the first row and column: 0 in TorchEEG, 1 in LibEER.

    Raises:
        ValueError: a name is missing or a cell does not exist.
    """
    if isinstance(names, str):
        raise ValueError(f"grid_from_table: names must be a list of names, got {names!r}")
    if not isinstance(table, Mapping):
        if len(table) != len(names):
            raise ValueError(
                f"grid_from_table: table has {len(table)} entries for {len(names)} names"
            )
        table = dict(zip(names, table, strict=True))
    grid = {}
    for name, cell in table.items():
        try:  # int would take texts, and cut off fractions
            row, col = (index(value) - first for value in cell)
        except (TypeError, ValueError):
            raise ValueError(
                f"grid_from_table: {name} is at {cell!r}, must be a row and a column"
            ) from None
        if row < 0 or col < 0:
            raise ValueError(
                f"grid_from_table: {name} is at {list(cell)}, but rows and columns start at {first}"
            )
        grid[str(name)] = (row, col)
    return grid


def positions_from_mne(montage: Any, names: Sequence[str] = SEED_CHANNELS) -> dict[str, np.ndarray]:
    """Name -> (x to the right, y to the front) of a montage, azimuthal equidistant, equator at 1.

    Args:
        montage: an mne.channels.DigMontage, or the name of a built-in one such as "standard_1005".
        names: the electrodes wanted; upper or lower case does not matter.

    Raises:
        ImportError: mne is missing.
        ValueError: the montage lacks an electrode.
    """
    places = positions_3d(montage, names)
    xyz = np.array(list(places.values()))
    xyz = xyz - _head_centre(montage)
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    radius = np.arccos(np.clip(xyz[:, 2], -1, 1)) / (np.pi / 2)
    flat = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1)
    return dict(zip(places, flat, strict=True))


def positions_3d(montage: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> (x, y, z) in metres; arguments and errors as `positions_from_mne`."""
    known = {name.upper(): xyz for name, xyz in _montage(montage).get_positions()["ch_pos"].items()}
    places = {}
    for name in names:
        key = name.upper() if name.upper() in known else ALIASES.get(name.upper(), name.upper())
        if key not in known:
            raise ValueError(f"positions_from_mne: the montage has no electrode {name}")
        places[name] = known[key]
    return places


def grid_from_mne(
    montage: Any, names: Sequence[str] = SEED_CHANNELS, *, rows: int = 9, cols: int = 9
) -> Grid:
    """Name -> (row, col): each electrode in a cell of its own, near its place on the head.

    The head's disc is stretched to a square and the cells are assigned so that the sum of squared
    distances is least (scipy.optimize.linear_sum_assignment).

    Args:
        montage: as in `positions_from_mne`.
        names: the electrodes wanted.
        rows: of the grid.
        cols: of the grid.

    Raises:
        ImportError: mne is missing.
        ValueError: the montage lacks an electrode, or there are more electrodes than cells.
    """
    from scipy.optimize import linear_sum_assignment

    flat = np.array(list(positions_from_mne(montage, names).values()))
    if len(flat) > rows * cols:
        raise ValueError(f"grid_from_mne: {len(flat)} electrodes do not fit {rows} x {cols} cells")
    flat /= np.linalg.norm(flat, axis=1).max()
    radius, longest = np.linalg.norm(flat, axis=1), np.abs(flat).max(axis=1)
    square = flat * (radius / np.where(longest > 0, longest, 1))[:, None]
    wanted = np.stack(
        [(1 - square[:, 1]) * (rows - 1) / 2, (1 + square[:, 0]) * (cols - 1) / 2], axis=1
    )
    cells = np.stack(np.meshgrid(range(rows), range(cols), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = ((wanted[:, None] - cells[None]) ** 2).sum(axis=2)
    _, chosen = linear_sum_assignment(distance)
    return {name: tuple(cells[k].tolist()) for name, k in zip(names, chosen, strict=True)}


def topology_from_mne(
    montage: Any,
    names: Sequence[str] = SEED_CHANNELS,
    *,
    rows: int = 9,
    cols: int = 9,
    neighbourhood: str = "corner",
) -> sk.Topology:
    """The topology of `grid_from_mne`, nodes in the order of `names`."""
    grid = grid_from_mne(montage, names, rows=rows, cols=cols)
    return sk.Topology.cells(grid, neighbourhood=neighbourhood)


def standard_montage() -> Any:
    """MNE's montage with the most electrodes: standard_1005, or colin27_1005 as newer ones call it.

    Raises:
        ImportError: mne is missing.
    """
    try:
        from mne.channels import get_builtin_montages, make_standard_montage
    except ImportError as error:
        raise ImportError("montages need MNE: pip install mne") from error
    known = get_builtin_montages()
    return make_standard_montage("colin27_1005" if "colin27_1005" in known else "standard_1005")


def mne_info(names: Sequence[str], rate: float = 200.0) -> Any:
    """An mne.Info of these electrodes with their places on the head, for MNE's own functions.

    Raises:
        ImportError: mne is missing.
        ValueError: an electrode is in no standard montage.
    """
    standard = standard_montage()
    import mne

    known = standard.get_positions()
    marks = {key: known[key] for key in ("nasion", "lpa", "rpa", "coord_frame")}
    montage = mne.channels.make_dig_montage(positions_3d(standard, names), **marks)
    info = mne.create_info(list(names), rate, "eeg", verbose="error")
    info.set_montage(montage, verbose="error")
    return info


def _montage(montage: Any) -> Any:
    if not isinstance(montage, str):
        return montage
    if montage == "standard_1005":
        return standard_montage()
    try:
        from mne.channels import make_standard_montage
    except ImportError as error:
        raise ImportError("montages need MNE: pip install mne") from error
    return make_standard_montage(montage)


def _head_centre(montage: Any) -> np.ndarray:
    """Centre of the sphere through all electrodes, by least squares."""
    points = np.array(list(_montage(montage).get_positions()["ch_pos"].values()))
    points = points[np.isfinite(points).all(axis=1)]
    design = np.column_stack([2 * points, np.ones(len(points))])
    solution, *_ = np.linalg.lstsq(design, (points**2).sum(axis=1), rcond=None)
    return solution[:3]
