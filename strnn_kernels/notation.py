"""The letters of the package, listed once.

====== =====================================================================
letter meaning
====== =====================================================================
B      sequences, or batch x time slices
N      nodes: grid cells, electrodes, time steps
D      directions: four in space, two in time
P      predecessors of a node
L      dependency levels of a topology
C      input width
H      hidden width
K      projected rows
G      gates of a cell: rows of its weights for each hidden unit
T      time steps
====== =====================================================================

Grid extents are ``rows, cols``. An index is the lower-case letter, a gradient is ``d`` + name
(``dh``, ``du``, ``dw``). Pre-activation ``u``, state ``h``, recurrent weight ``w``.
"""

from __future__ import annotations

#: Activations whose derivative can be taken from their output, in the order of their C++ codes.
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid")
#: Cells by their C++ codes (csrc/common/sweep.h): an Elman cell is its activation.
CELLS = (*ACTIVATIONS, "gru", "lstm")

#: Of a gated cell, the gate that keeps what is carried, and the one that adds to it where it is not
#: the rest of the first (z, and 1 - z, of a gru; f and i of an lstm).
KEEP_AND_ADD = {"gru": (1, None), "lstm": (1, 0)}


def gates(cell: int) -> int:
    """G: rows of the weights for each of H units, in torch's order (r, z, n; i, f, g, o)."""
    return {"gru": 3, "lstm": 4}.get(CELLS[cell], 1)


def bias_rows(cell: int) -> int:
    """Rows of a bias in one piece: a gru's new gate has one for the input and one for the state."""
    return 4 if CELLS[cell] == "gru" else gates(cell)


def saved(cell: int) -> int:
    """Values that a forward leaves for its backward for each of H units, beside h."""
    return 0 if cell < len(ACTIVATIONS) else 5
