"""Modules over :mod:`strnn_kernels.functional`."""

from .projection import SparseProjection as SparseProjection
from .recurrent import GRU as GRU
from .recurrent import LSTM as LSTM
from .recurrent import RNN as RNN
from .recurrent import TemporalRNN as TemporalRNN
from .replace import replace_rnns as replace_rnns
from .spatial import SpatialRNN as SpatialRNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SparseProjection",
    "SpatialRNN",
    "TemporalRNN",
    "replace_rnns",
]
