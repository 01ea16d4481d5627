"""STRNN: a four-direction spatial RNN in each slice, then a bidirectional temporal RNN.

Zhang, Zheng, Cui, Zong, Li, "Spatial-Temporal Recurrent Neural Network for Emotion Recognition",
arXiv 1705.04515, IEEE Transactions on Cybernetics 49(3), 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

import strnn_kernels as sk


class STRNN(nn.Module):
    """Class scores of a clip of T slices, each a graph of N electrodes or cells with C features.

    With r one of the D = 4 directions of space, f and b the two of time, K the rows of a sparse
    projection::

        h[r,n] = act(U[r] x[n] + W[r] (sum of h[r,p] over the predecessors p of n) + b[r])
        s[r,k] = sum over n of G[r,k,n] h[r,n]
        m[t]   = sum over r of P[r] vec(s[r]), for each slice t
        h[f,t] = act(R[f] m[t] + V[f] h[f,t-1] + b[f]); h[b,t] likewise from h[b,t+1]
        q[f,k] = sum over t of Q[f,k,t] h[f,t]; q[b,k] likewise
        scores = F[f] vec(q[f]) + F[b] vec(q[b])
        loss   = cross-entropy + lambda1 * sum of |G| + lambda2 * sum of |Q|

    Where the defaults come from: "paper" is our recollection of its equations, not yet checked
    against its text; "LibEER" is the re-implementation in the public library of that name; "ours"
    is a choice that neither settles.

    Args:
        num_electrodes: N; 62, the SEED cap, unless `topology` or `mask` says otherwise.
        in_channels: C, the features of an electrode or cell; 5 frequency bands (LibEER).
        num_classes: 3, as in SEED.
        sample_length: T, the most slices in a clip; 9 (LibEER).
        sp_hidden: H of the spatial RNN and width of m; 30 (LibEER).
        tp_hidden: H of the temporal RNN; 30 (LibEER).
        sp_projection: K of the spatial sparse projection; 10 (LibEER).
        tp_projection: K of the temporal sparse projection; 5 (LibEER).
        topology: any `Topology`, in place of the SEED cap.
        mask: bool (rows, cols), the cells that exist, in place of `topology`. An absent cell is no
            vertex (LibEER); whether it is one of zeros, as in a mask of True alone, the paper
            leaves open.
        neighbourhood: "corner", three predecessors: vertical, horizontal and diagonal (paper,
            LibEER); or "cross", without the diagonal. A `topology` has its own.
        activation: of both RNNs: "relu" (LibEER; the paper's is not known), "tanh", "sigmoid" or
            "identity".
        combine: "full", a matrix P[r] for each direction (paper); or "scalar", one number for each
            (r, k), shared by the hidden units (LibEER).
        head: "full", a matrix F for each direction of time (paper); or "rank1", F made of one
            vector over hidden units and one matrix (class, k) (LibEER).
        bias: "recurrent", only b[r], b[f] and b[b] (paper); "all", also one on each of G, P, Q and
            F (LibEER); or "none".
        cell: "elman" (paper), "gru" or "lstm" (ours), of both RNNs; or a pair, space and time.
        lambda1: weight of the L1 norm of G; ours, the paper's is not known.
        lambda2: weight of the L1 norm of Q; ours, the paper's is not known.

    Raises:
        ArgumentError: an option is unknown, or nothing says how the electrodes are connected.
    """

    def __init__(
        self,
        num_electrodes: int | None = None,
        in_channels: int = 5,
        num_classes: int = 3,
        sample_length: int = 9,
        sp_hidden: int = 30,
        tp_hidden: int = 30,
        sp_projection: int = 10,
        tp_projection: int = 5,
        *,
        topology: sk.Topology | None = None,
        mask: ArrayLike | None = None,
        neighbourhood: str = "corner",
        activation: str = "relu",
        combine: str = "full",
        head: str = "full",
        bias: str = "recurrent",
        cell: str | tuple[str, str] = "elman",
        lambda1: float = 1e-3,
        lambda2: float = 1e-3,
    ) -> None:
        super().__init__()
        _one_of("combine", combine, ("full", "scalar"))
        _one_of("head", head, ("full", "rank1"))
        _one_of("bias", bias, ("recurrent", "all", "none"))
        of_space, of_time = (cell, cell) if isinstance(cell, str) else cell
        for each in (of_space, of_time):
            _one_of("cell", each, ("elman", "gru", "lstm"))
        self.topology = electrodes(num_electrodes, topology, mask, neighbourhood)
        self.in_channels, self.sample_length = in_channels, sample_length
        self.lambda1, self.lambda2 = lambda1, lambda2
        self.grid_size, cells = _cells(self.topology, mask)
        self.cells: Tensor | None
        self.register_buffer("cells", cells, persistent=False)
        D, recurrent, everywhere = self.topology.num_directions, bias != "none", bias == "all"
        self.spatial = sk.SpatialRNN(
            in_channels,
            sp_hidden,
            self.topology,
            activation=activation,
            bias=recurrent,
            projection_size=sp_projection,
            cell=of_space,
        )
        self.spatial_bias = _zeros(everywhere, D, sp_projection)
        self.combine = Combine(combine, D, sp_projection, sp_hidden, everywhere)
        make: Callable[..., Any] = sk.TemporalRNN
        options: dict[str, Any] = {"activation": activation}
        if of_time != "elman":
            make = {"gru": sk.GRU, "lstm": sk.LSTM}[of_time]
            options = {"batch_first": True, "bidirectional": True}
        self.temporal_cell = of_time
        self.temporal = make(sp_hidden, tp_hidden, bias=recurrent, **options)
        self.temporal_projection = sk.SparseProjection(2, sample_length, tp_projection)
        self.temporal_bias = _zeros(everywhere, 2, tp_projection)
        self.head = Head(head, 2, tp_projection, tp_hidden, num_classes, everywhere)
        # SpatialRNN starts W from the identity, for long ways over big grids; on grids of this
        # size a start that mixes the hidden units learns better (ours; the paper's is not known).
        if of_space == "elman":
            with torch.no_grad():
                for w in self.spatial.weight_hh:
                    nn.init.orthogonal_(w).div_(max(1, self.topology.max_predecessors))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Class scores, (batch, num_classes), before the softmax.

        Args:
            x: (batch, time, electrodes, bands), or (batch, time, bands, rows, cols) where the
                topology is laid out on a grid; time is at most `sample_length`.
            lengths: int (batch,), the number of slices of each clip; what comes after is not
                looked at. None: every clip is full.
            mask: bool (batch, electrodes) or (batch, time, electrodes), False at electrodes to
                leave out. None: none.

        Raises:
            ArgumentError: a shape does not fit the model.
        """
        x = self._nodes(x)
        B, T, N, C = x.shape
        mask = self._mask(x, lengths, mask)
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
            mask = mask.expand(B, T, N).reshape(B * T, N)
        s = self.spatial(x.reshape(B * T, N, C), mask=mask)  # (B T, D, K, H)
        if self.spatial_bias is not None:
            s = s + self.spatial_bias[..., None]
        m = self.combine(s).unflatten(0, (B, T))
        q = self._temporal(m, lengths)  # (B, 2, K, H)
        if self.temporal_bias is not None:
            q = q + self.temporal_bias[..., None]
        return self.head(q)

    def projections(self) -> tuple[sk.SparseProjection, sk.SparseProjection]:
        """The sparse projections G, of space, and Q, of time."""
        return cast(sk.SparseProjection, self.spatial.projection), self.temporal_projection

    def penalty(self, lambda1: float | None = None, lambda2: float | None = None) -> Tensor:
        """``lambda1 * sum of |G| + lambda2 * sum of |Q|``, a term of the loss.

        Use this or `proximal_step_`, not both: only the latter makes exact zeros.

        Args:
            lambda1: weight of the spatial term; the constructor's if None.
            lambda2: weight of the temporal term; the constructor's if None.
        """
        lambda1 = self.lambda1 if lambda1 is None else lambda1
        lambda2 = self.lambda2 if lambda2 is None else lambda2
        G, Q = self.projections()
        return lambda1 * G.penalty() + lambda2 * Q.penalty()

    def proximal_step_(self, lr: float) -> None:
        """Move every entry of G by lr * lambda1, of Q by lr * lambda2, towards 0 and no further.

        After a gradient step of size `lr` on the loss without `penalty`, this is the proximal
        gradient method for the penalised loss. After another optimiser's step it is a soft
        threshold all the same.
        """
        G, Q = self.projections()
        G.proximal_step_(lr * self.lambda1)
        Q.proximal_step_(lr * self.lambda2)

    def sparsity(self) -> dict[str, float]:
        """Share of exact zeros in G ("spatial") and in Q ("temporal")."""
        G, Q = self.projections()
        return {"spatial": 1 - float(G.density()), "temporal": 1 - float(Q.density())}

    def _nodes(self, x: Tensor) -> Tensor:
        """The input as (B, T, N, C)."""
        T, N, C = self.sample_length, self.topology.num_nodes, self.in_channels
        if x.ndim > 1 and 1 <= x.shape[1] <= T:
            if x.shape[2:] == (N, C):
                return x
            if self.grid_size is not None and x.shape[2:] == (C, *self.grid_size):
                x = x.flatten(3).transpose(2, 3)
                return x if self.cells is None else x[:, :, self.cells]
        expected = f"(batch, time, electrodes, bands) = (.., 1 to {T}, {N}, {C})"
        if self.grid_size is not None:
            rows, cols = self.grid_size
            expected += (
                f" or (batch, time, bands, rows, cols) = (.., 1 to {T}, {C}, {rows}, {cols})"
            )
        raise sk.ArgumentError(f"STRNN: x must have shape {expected}, got {tuple(x.shape)}")

    def _mask(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Where there is something to look at: bool, (B, T, N) up to broadcasting."""
        B, T, N, _ = x.shape
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape not in ((B, N), (B, T, N)):
                raise sk.ArgumentError(
                    f"STRNN: mask must be bool of shape (batch, electrodes) = {(B, N)} or "
                    f"(batch, time, electrodes) = {(B, T, N)}, got {mask.dtype} {tuple(mask.shape)}"
                )
            mask = mask if mask.ndim == 3 else mask[:, None]
        if lengths is not None:
            if lengths.is_floating_point() or lengths.shape != (B,):
                raise sk.ArgumentError(
                    f"STRNN: lengths must be int of shape (batch,) = ({B},), "
                    f"got {lengths.dtype} {tuple(lengths.shape)}"
                )
            inside = torch.arange(T, device=x.device) < lengths.to(x.device)[:, None]
            mask = inside[..., None] if mask is None else mask & inside[..., None]
        return mask

    def _temporal(self, m: Tensor, lengths: Tensor | None) -> Tensor:
        """The temporal RNN and its projection, (B, T, H) -> (B, 2, K, H)."""
        projection = self.temporal_projection.weight[..., : m.shape[1]]
        return cast(Tensor, self.temporal.project(m, projection, lengths=lengths))


class Combine(nn.Module):
    """m = sum over r of P[r] vec(s[r]), from s (B, D, K, H)."""

    def __init__(self, kind: str, D: int, K: int, H: int, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(D * K * H, H, bias) if kind == "full" else nn.Linear(D * K, 1, bias)

    def forward(self, s: Tensor) -> Tensor:
        """m, (B, H)."""
        if self.kind == "full":
            return self.linear(s.flatten(1))
        return self.linear(s.flatten(1, 2).mT).squeeze(-1)


class Head(nn.Module):
    """Class scores, the sum over r of F[r] vec(q[r]), from q (B, D, K, H)."""

    def __init__(self, kind: str, D: int, K: int, H: int, num_classes: int, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        if kind == "full":
            self.linear = nn.Linear(D * K * H, num_classes, bias)
        else:
            self.hidden = nn.ModuleList(nn.Linear(H, 1, bias=False) for _ in range(D))
            self.linear = nn.Linear(D * K, num_classes, bias)

    def forward(self, q: Tensor) -> Tensor:
        """Scores, (B, num_classes)."""
        if self.kind == "rank1":
            q = torch.stack([hidden(q[:, d]) for d, hidden in enumerate(self.hidden)], dim=1)
        return self.linear(q.flatten(1))


def electrodes(
    num_electrodes: int | None,
    topology: sk.Topology | None,
    mask: ArrayLike | None,
    neighbourhood: str,
) -> sk.Topology:
    """The topology that the arguments of `STRNN` ask for."""
    _one_of("neighbourhood", neighbourhood, ("corner", "cross"))
    if topology is not None:
        if mask is not None or neighbourhood != "corner":
            raise sk.ArgumentError(
                "STRNN: mask and neighbourhood are those of topology: pass it alone"
            )
    elif mask is not None:
        shape = tuple(np.shape(mask))
        if len(shape) != 2:
            raise sk.ArgumentError(f"STRNN: mask must have shape (rows, cols), got {shape}")
        topology = sk.Topology.grid(*shape, neighbourhood=neighbourhood, mask=mask)
    elif num_electrodes in (None, 62):
        topology = sk.Topology.montage("seed-62", neighbourhood=neighbourhood)
    else:
        raise sk.ArgumentError(
            f"STRNN: the layout of {num_electrodes} electrodes is not known: pass topology=, "
            "such as Topology.cells(positions), or mask=; only the 62 of SEED are"
        )
    if num_electrodes not in (None, topology.num_nodes):
        raise sk.ArgumentError(
            f"STRNN: num_electrodes is {num_electrodes}, but the topology has {topology.num_nodes}"
        )
    return topology


def _cells(
    topology: sk.Topology, mask: ArrayLike | None
) -> tuple[tuple[int, int] | None, Tensor | None]:
    """Extent of the grid under the topology; the cell of each node, unless that is its number."""
    if topology.positions is None:
        return None, None
    rows, cols = (topology.positions.max(axis=0) + 1).tolist() if mask is None else np.shape(mask)
    cells = torch.from_numpy(topology.positions @ np.array([cols, 1]))
    return (rows, cols), None if cells.tolist() == list(range(rows * cols)) else cells


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise sk.ArgumentError(f"STRNN: {name} must be one of {', '.join(known)}, got {value!r}")


def _zeros(wanted: bool, *shape: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(shape)) if wanted else None
