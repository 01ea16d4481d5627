"""Where electrodes sit on the grids that the literature uses.

A montage is a dict from electrode name to (row, column), in the channel order of the data set:
``Topology.montage("seed-62")`` or ``Topology.cells(MONTAGES["seed-62"])``.
"""

from __future__ import annotations

# The channels of SEED and SEED-IV are numbered in reading order of this picture.
_SEED_62 = """
     .    .    .  FP1  FPZ  FP2    .    .    .
     .    .    .  AF3    .  AF4    .    .    .
    F7   F5   F3   F1   FZ   F2   F4   F6   F8
   FT7  FC5  FC3  FC1  FCZ  FC2  FC4  FC6  FT8
    T7   C5   C3   C1   CZ   C2   C4   C6   T8
   TP7  CP5  CP3  CP1  CPZ  CP2  CP4  CP6  TP8
    P7   P5   P3   P1   PZ   P2   P4   P6   P8
     .  PO7  PO5  PO3  POZ  PO4  PO6  PO8    .
     .    .  CB1   O1   OZ   O2  CB2    .    .
"""

_DEAP_32 = """
     .    .    .  FP1    .  FP2    .    .    .
     .    .    .  AF3    .  AF4    .    .    .
    F7    .   F3    .   FZ    .   F4    .   F8
     .  FC5    .  FC1    .  FC2    .  FC6    .
    T7    .   C3    .   CZ    .   C4    .   T8
     .  CP5    .  CP1    .  CP2    .  CP6    .
    P7    .   P3    .   PZ    .   P4    .   P8
     .    .    .  PO3    .  PO4    .    .    .
     .    .    .   O1   OZ   O2    .    .    .
"""
# DEAP's channels go down the left side, then down the right.
_DEAP_ORDER = """
    FP1 AF3 F3 F7 FC5 FC1 C3 T7 CP5 CP1 P3 P7 PO3 O1 OZ PZ
    FP2 AF4 FZ F4 F8 FC6 FC2 CZ C4 T8 CP6 CP2 P4 P8 PO4 O2
"""


def _read(picture: str) -> dict[str, tuple[int, int]]:
    return {
        name: (row, col)
        for row, line in enumerate(picture.strip().splitlines())
        for col, name in enumerate(line.split())
        if name != "."
    }


#: name of the montage -> electrode -> (row, column)
MONTAGES: dict[str, dict[str, tuple[int, int]]] = {
    "seed-62": _read(_SEED_62),
    "deap-32": {name: _read(_DEAP_32)[name] for name in _DEAP_ORDER.split()},
}
