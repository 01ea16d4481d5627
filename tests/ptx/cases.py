"""Cases beside the shared table: what between them reaches every branch of the kernels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import strnn_kernels as sk
from strnn_kernels import testing

#: What STRNN runs: the electrodes of SEED, projected.
SEED = testing.find("cap-small").smooth()
SMALL = tuple(
    testing.find(name)
    for name in (
        "corner-mask", "corner-sparse", "corner-4x3-states", "cross-4x4", "diamond",
        "chain-tanh-h0", "chain-lengths-h0", "chain-lengths-k", "sweep-mask-h0", "gated-diamond",
        "project",
    )
)  # fmt: skip


def widened(name: str, H: int) -> testing.Case:
    return testing.find(name).smooth(name=f"{name}-h{H}", H=H)


#: Every shape of the row family (one to four warps), with what it makes itself and what it leaves:
#: inputs, rows of the projection, sums.
ROWS = tuple(
    testing.Case(
        f"row-h{H}-c{C}-k{K}", "spatial_rnn", partial(sk.Topology.grid, 3, 3), B=5, C=C, H=H, K=K,
        activation="tanh", has_mask=True,
    )
    for H, C, K in (
        (31, 31, 0), (32, 32, 16), (33, 3, 4), (64, 33, 17), (65, 5, 3), (100, 40, 0), (128, 2, 0),
    )
)  # fmt: skip
#: What CI runs of gated cells and means: compiling them takes most of the time.
GATED = (
    "gru-line-mask", "gru-sum-no-bias", "lstm-corner-mask", "lstm-sum", "elman-mean", "gru-t9",
    "lstm-states", "lstm-lengths", "lstm-carry-lengths",
)  # fmt: skip
#: Every cell over units in one tile and in several, one to four predecessors, and every option.
CELLS = tuple(
    testing.find(name)
    for name in (
        "gru-corner", "gru-line-mask", "gru-sum-no-bias", "gru-lengths-h0", "lstm-corner-mask",
        "lstm-sum", "lstm-states", "lstm-lengths", "elman-mean",
    )
)  # fmt: skip
GATED_IN_16_BITS = ("gru-causal", "lstm-states", "lstm-sum")
#: Gated cells in every shape of the tensor_core family (1, 2, 4 and 8 units of columns), rows of
#: each alignment, one to four predecessors, and every option.
GATED_TENSOR = (
    widened("lstm-corner-mask", 16), widened("gru-line-mask", 30), widened("lstm-sum", 33),
    widened("lstm-states", 62), widened("gru-corner", 40), widened("gru-lengths-h0", 100),
    widened("lstm-carry-lengths", 128),
    replace(widened("gru-sum-no-bias", 7), graph=testing.find("diamond").graph),
)  # fmt: skip
#: Gated cells in the row family: one to four predecessors, and every option.
GATED_ROWS = (
    testing.find("gru-corner"), testing.find("gru-line-mask"), testing.find("gru-lengths-h0"),
    testing.find("gru-sum-no-bias"), testing.find("lstm-corner-mask"), testing.find("lstm-sum"),
    widened("lstm-states", 32), testing.find("lstm-lengths"),
    replace(widened("gru-corner", 11), graph=testing.find("diamond").graph),
)  # fmt: skip
#: Every shape of the tensor_core family (1, 2, 4, 8 and 16 units of columns), rows of each
#: alignment, one to four predecessors, and every option of the ops.
TENSOR = (
    widened("corner-mask", 16), widened("corner-3x4-h30", 30), widened("corner-4x3-states", 33),
    widened("sweep-mask-h0", 62), widened("chain-lengths-h0", 64), widened("line-3x5", 65),
    widened("diamond", 70), widened("gated-corner", 40), widened("corner-no-bias", 128),
    widened("chain-tanh-h0", 130), widened("gated-diamond", 136),
)  # fmt: skip
