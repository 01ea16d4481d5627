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
T      time steps
====== =====================================================================

Grid extents are ``rows, cols``. An index is the lower-case letter, a gradient is ``d`` + name
(``dh``, ``du``, ``dw``). Pre-activation ``u``, state ``h``, recurrent weight ``w``.
"""

from __future__ import annotations

#: Activations whose derivative can be taken from their output, in the order of their C++ codes.
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid")
