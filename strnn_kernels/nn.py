"""Modules over :mod:`strnn_kernels.functional`."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from . import checks, functional
from .topology import Topology

__all__ = ["SparseProjection", "SpatialRNN", "TemporalRNN"]


def _positive(function: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise checks.ArgumentError(f"{function}: {name} must be a positive int, got {value!r}")
    return value


class SparseProjection(nn.Module):
    """s[b, d, k] = sum over n of weight[d, k, n] h[b, n, d].

    An L1 penalty with a proximal step makes exact zeros.

    Args:
        num_directions: D.
        num_nodes: N.
        projection_size: K.
        device: of the weight.
        dtype: of the weight.

    Attributes:
        weight: (D, K, N), uniform in +-1 / sqrt(N) at first, as nn.Linear over the nodes would be.

    Source: the sparse projection of STRNN (Zhang et al., IEEE Trans. Cybernetics 49(3), 2019).
    """

    def __init__(
        self, num_directions: int, num_nodes: int, projection_size: int, *, device=None, dtype=None
    ):
        super().__init__()
        name = type(self).__name__
        D = _positive(name, "num_directions", num_directions)
        N = _positive(name, "num_nodes", num_nodes)
        K = _positive(name, "projection_size", projection_size)
        self.weight = nn.Parameter(torch.empty((D, K, N), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight anew."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Projects h (B, N, D, H) to (B, D, K, H)."""
        return functional.sparse_projection(h, self.weight)

    def penalty(self) -> torch.Tensor:
        """The L1 norm of the weight, a scalar with a gradient."""
        return self.weight.abs().sum()

    def proximal_step_(self, amount: float) -> None:
        """Shrinks every entry by amount (learning rate x penalty) and stops at exact zero."""
        functional.soft_threshold_(self.weight, amount)

    def density(self) -> float:
        """The share of entries that are not exactly zero."""
        return torch.count_nonzero(self.weight.detach()).item() / self.weight.numel()

    def extra_repr(self) -> str:
        """The sizes."""
        D, K, N = self.weight.shape
        return f"num_directions={D}, num_nodes={N}, projection_size={K}"


class SpatialRNN(nn.Module):
    """h[b, n, d] = act(W_ih[d] x[b, n] + bias[d] + W_hh[d] sum of h[b, p, d] over p in pred(d, n)).

    The recurrent weight starts as the identity divided by P, the largest number of predecessors. A
    sum over P predecessors with gain 1 each would grow with the number of paths, that is
    exponentially with the grid; with gain 1 / P a ReLU state is the mean of its predecessors plus
    its input, which grows at most by one input per level, and the gradient from corner to corner of
    a 32 x 32 grid stays above a hundredth.

    Args:
        input_size: C.
        hidden_size: H.
        topology: the graph, N nodes and D directions.
        activation: "identity", "relu", "tanh" or "sigmoid".
        bias: whether there is a bias (D, H); it starts at zero.
        projection_size: K, or None for no projection.
        device: of the parameters.
        dtype: of the parameters.

    Shapes:
        x (B, N, C) -> h (B, N, D, H), or with projection_size s (B, D, K, H).

    Raises:
        ArgumentError: an argument has the wrong type or value.

    Source: the spatial layer of STRNN; the start after Le et al., arXiv 1504.00941, divided by P.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        topology: Topology,
        *,
        activation: str = "relu",
        bias: bool = True,
        projection_size: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        name = type(self).__name__
        C, H = (
            _positive(name, "input_size", input_size),
            _positive(name, "hidden_size", hidden_size),
        )
        checks.activation(name, activation)
        self.topology = checks.topology(name, topology)
        self.activation = activation
        D, like = topology.num_directions, {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty((D, H, C), **like))
        self.weight_hh = nn.Parameter(torch.empty((D, H, H), **like))
        self.bias = nn.Parameter(torch.empty((D, H), **like)) if bias else None
        self.projection = (
            None
            if projection_size is None
            else SparseProjection(D, topology.num_nodes, projection_size, **like)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew."""
        bound = 1 / math.sqrt(self.weight_ih.shape[2])
        nn.init.uniform_(self.weight_ih, -bound, bound)
        eye = torch.eye(self.weight_hh.shape[1]) / max(1, self.topology.max_predecessors)
        with torch.no_grad():
            self.weight_hh.copy_(eye)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if self.projection is not None:
            self.projection.reset_parameters()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Sweeps x (B, N, C); mask: bool (B, N), states of False nodes are zero."""
        checks.last_size("SpatialRNN", "x", x, "B N C", self.weight_ih.shape[2])
        return functional.spatial_rnn(
            x,
            self.weight_ih,
            self.weight_hh,
            self.bias,
            self.topology,
            activation=self.activation,
            mask=mask,
            projection=None if self.projection is None else self.projection.weight,
        )

    def extra_repr(self) -> str:
        """The sizes and options."""
        _, H, C = self.weight_ih.shape
        return (
            f"{C}, {H}, {self.topology!r}, activation={self.activation}, "
            f"bias={self.bias is not None}"
        )


class TemporalRNN(nn.Module):
    """One Elman layer over time, a drop-in for ``nn.RNN(num_layers=1, batch_first=True)``.

    h[t] = act(W_ih x[t] + b_ih + W_hh h[t - 1] + b_hh), and the same from the end for the other
    direction. Both directions run in one call. Parameters have nn.RNN's names, shapes and start, so
    either state_dict loads the other.

    Args:
        input_size: C.
        hidden_size: H.
        activation: "relu" (default), "tanh", "identity" or "sigmoid".
        bias: whether there are biases.
        bidirectional: whether there is a second direction.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ArgumentError: an argument has the wrong type or value.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str = "relu",
        bias: bool = True,
        bidirectional: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        name = type(self).__name__
        self.input_size = _positive(name, "input_size", input_size)
        self.hidden_size = _positive(name, "hidden_size", hidden_size)
        checks.activation(name, activation)
        self.activation, self.bidirectional = activation, bool(bidirectional)
        C, H, like = input_size, hidden_size, {"device": device, "dtype": dtype}
        shapes = {"weight_ih": (H, C), "weight_hh": (H, H)}
        if bias:
            shapes |= {"bias_ih": (H,), "bias_hh": (H,)}
        self._suffixes = ("_l0", "_l0_reverse") if bidirectional else ("_l0",)
        self._has_bias = bool(bias)
        for suffix in self._suffixes:
            for key, shape in shapes.items():
                self.register_parameter(key + suffix, nn.Parameter(torch.empty(shape, **like)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, uniform in +-1 / sqrt(H) as nn.RNN does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def from_rnn(cls, rnn: nn.RNN) -> TemporalRNN:
        """A copy of a one-layer ``nn.RNN``; batch_first and dropout do not matter.

        Raises:
            ArgumentError: rnn is not an nn.RNN or has more than one layer.
        """
        if type(rnn) is not nn.RNN:
            raise checks.ArgumentError(
                f"TemporalRNN.from_rnn: rnn must be an nn.RNN, got {type(rnn).__name__}"
            )
        if rnn.num_layers != 1:
            raise checks.ArgumentError(
                f"TemporalRNN.from_rnn: rnn must have num_layers = 1, got {rnn.num_layers}; "
                "stack TemporalRNN"
            )
        layer = cls(
            rnn.input_size,
            rnn.hidden_size,
            activation=rnn.nonlinearity,
            bias=rnn.bias,
            bidirectional=rnn.bidirectional,
            device=rnn.weight_ih_l0.device,
            dtype=rnn.weight_ih_l0.dtype,
        )
        layer.load_state_dict(rnn.state_dict())
        return layer.train(rnn.training)

    def to_rnn(self) -> nn.RNN:
        """The same layer as an ``nn.RNN(batch_first=True)`` with copied parameters.

        Raises:
            ArgumentError: the activation is neither "relu" nor "tanh".
        """
        if self.activation not in ("relu", "tanh"):
            raise checks.ArgumentError(
                f"TemporalRNN.to_rnn: nn.RNN has only relu and tanh, "
                f"got activation={self.activation!r}"
            )
        rnn = nn.RNN(
            self.input_size,
            self.hidden_size,
            nonlinearity=self.activation,
            bias=self._has_bias,
            batch_first=True,
            bidirectional=self.bidirectional,
            device=self.weight_ih_l0.device,
            dtype=self.weight_ih_l0.dtype,
        )
        rnn.load_state_dict(self.state_dict())
        return rnn.train(self.training)

    def stacked_parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """w_ih (D, H, C), w_hh (D, H, H), bias (D, H) or None: what ``temporal_rnn`` takes."""

        def of(name):
            return [self._parameters[name + suffix] for suffix in self._suffixes]

        bias = None
        if self._has_bias:
            # Added one by one: the gradient of a sum of stacks would be one memory for both biases,
            # into which a second backward would add twice.
            pairs = zip(of("bias_ih"), of("bias_hh"), strict=True)
            bias = torch.stack([b_ih + b_hh for b_ih, b_hh in pairs])
        return torch.stack(of("weight_ih")), torch.stack(of("weight_hh")), bias

    def forward(
        self,
        x: torch.Tensor | PackedSequence,
        hx: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | PackedSequence, torch.Tensor]:
        """Runs the layer.

        Args:
            x: (B, T, C), (T, C), or a PackedSequence, which gives a PackedSequence back.
            hx: first states, (D, B, H), or (D, H) for an unbatched x.
            lengths: integers in 0..T, (B,), for a padded x; the output is zero past the end.

        Returns:
            output (B, T, D * H) and h_n (D, B, H), the state after the last valid step of each
            direction, as ``nn.RNN(batch_first=True)``; a sequence of length 0 ends in its first
            state.
        """
        if isinstance(x, PackedSequence):
            return self._forward_packed(x, hx, lengths)
        checks.last_size("TemporalRNN", "x", x, "B T C", self.input_size)
        if isinstance(x, torch.Tensor) and x.dim() == 2 and lengths is None:
            checks.last_size("TemporalRNN", "x", x, "T C", self.input_size)
            if hx is not None:
                D, H = len(self._suffixes), self.hidden_size
                checks.like("TemporalRNN", "hx", hx, "D H", (D, H), ("x", x))
                hx = hx[:, None]
            output, h_n = self(x[None], hx)
            return output[0], h_n[:, 0]
        h0 = None if hx is None else self._first_states(x, hx)
        h = functional.temporal_rnn(
            x,
            *self.stacked_parameters(),
            activation=self.activation,
            lengths=lengths,
            h0=h0,
            bidirectional=self.bidirectional,
        )
        return h.flatten(2), self._last_states(h, h0, lengths)

    def step(
        self, x_t: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of a causal layer: calling it for every t equals the whole-sequence call.

        Args:
            x_t: (B, C), the inputs of this moment.
            state: (1, B, H), what the last step returned; None at the start.

        Returns:
            output (B, H) and the new state (1, B, H).

        Raises:
            ArgumentError: the layer is bidirectional, so a step would need the future.
        """
        if self.bidirectional:
            raise checks.ArgumentError(
                "TemporalRNN.step: a bidirectional layer needs the whole sequence; "
                "build it with bidirectional=False"
            )
        checks.dims("TemporalRNN.step", "x_t", checks.tensor("TemporalRNN.step", "x_t", x_t), "B C")
        output, state = self(x_t[:, None], state)
        return output[:, 0], state

    def _first_states(self, x, hx):
        name = type(self).__name__
        checks.dims(name, "x", checks.tensor(name, "x", x), "B T C")
        shape = (len(self._suffixes), x.shape[0], self.hidden_size)
        checks.like(name, "hx", hx, "D B H", shape, ("x", x), getattr(hx, "dtype", None))
        return hx.transpose(0, 1)

    def _last_states(self, h, h0, lengths):
        B, _, D, H = h.shape
        if lengths is None:
            last = h[:, -1, :1]
        else:
            lengths = torch.as_tensor(lengths).to(h.device).long()
            at = (lengths - 1).clamp(min=0)[:, None, None, None]
            last = h[:, :, :1].gather(1, at.expand(B, 1, 1, H))[:, 0]
        states = torch.cat([last, h[:, 0, 1:]], 1) if D == 2 else last
        if lengths is not None and h0 is not None:
            states = torch.where((lengths > 0)[:, None, None], states, h0)
        return states.transpose(0, 1)

    def _forward_packed(self, x, hx, lengths):
        if lengths is not None:
            raise checks.ArgumentError(
                "TemporalRNN: lengths come with a padded x, got a PackedSequence"
            )
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        output, h_n = self(padded, hx, lengths=lengths)
        if x.sorted_indices is not None:
            output, lengths = output[x.sorted_indices], lengths[x.sorted_indices.cpu()]
        data = pack_padded_sequence(output, lengths, batch_first=True).data
        packed = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
        return packed, h_n

    def extra_repr(self) -> str:
        """The sizes and options."""
        return (
            f"{self.input_size}, {self.hidden_size}, activation={self.activation}, "
            f"bias={self._has_bias}, "
            f"bidirectional={self.bidirectional}"
        )
