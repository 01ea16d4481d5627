"""Fused recurrent sweeps for PyTorch: four directions over a grid, both directions over time.

A recurrence is a topology, a weight and an activation; see :mod:`strnn_kernels.functional`.
"""

from . import reference as reference
from .backends import BackendError as BackendError
from .backends import backends as backends
from .backends import use_backend as use_backend
from .checks import ArgumentError as ArgumentError
from .functional import gated_sweep as gated_sweep
from .functional import soft_threshold_ as soft_threshold_
from .functional import sparse_projection as sparse_projection
from .functional import spatial_rnn as spatial_rnn
from .functional import sweep as sweep
from .functional import temporal_rnn as temporal_rnn
from .nn import GRU as GRU
from .nn import LSTM as LSTM
from .nn import RNN as RNN
from .nn import SparseProjection as SparseProjection
from .nn import SpatialRNN as SpatialRNN
from .nn import TemporalRNN as TemporalRNN
from .nn import replace_rnns as replace_rnns
from .topology import Topology as Topology


def __getattr__(name: str) -> str:
    """The version, from what the installer noted; a source tree that nobody installed has none."""
    if name == "__version__":
        from importlib.metadata import version

        return version("strnn-kernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
