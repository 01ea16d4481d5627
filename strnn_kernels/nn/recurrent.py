"""Recurrent layers over time, drop-ins for ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM``.

Torch's own base class gives the constructor, the parameters, their names and start, and the manners
of a module; the sweep of a chain (:func:`strnn_kernels.functional.layer`) gives the states. A cell
is its number, so all classes share one forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from strnn_kernels import checks, composed, functional
from strnn_kernels.notation import ACTIVATIONS, CELLS

from . import bound

#: Cells by torch's attribute ``mode``; torch's own modes and, of TemporalRNN, two more activations.
_CELLS = {
    (f"RNN_{cell}" if cell in ACTIVATIONS else cell).upper(): code
    for code, cell in enumerate(CELLS)
}


class Recurrent(nn.RNNBase):
    """Stacked recurrent layers of any cell: what the classes below share.

    Not a subclass of ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``, at which ``torch.compile`` breaks
    graphs. Weights are read through their attributes at every call, so whatever puts tensors there
    works: parametrizations, weight norm, pruning, ``torch.func.functional_call``, replicas.
    """

    #: The class of torch.nn that it stands in for, and its argument of forward in messages.
    torch_class: type[nn.RNNBase]
    _input_name = "input"
    _bound: bound.Bound | None = None

    # Torch's base class keeps a copy of the weights up to date here; ours cannot be out of date.
    __setattr__ = nn.Module.__setattr__

    @property
    def _flat_weights(self) -> list[torch.Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value) -> None:
        """Nothing: torch's base class sets it in a replica."""

    def _init_flat_weights(self) -> None:
        """Nothing: see ``_flat_weights``."""

    def _update_flat_weights(self) -> None:
        """Nothing: see ``_flat_weights``."""

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read each weight where it is."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.proj_size:
            raise checks.ArgumentError(
                f"{type(self).__name__}: proj_size must be 0, got {self.proj_size}: no kernel "
                "projects its states; torch.nn.LSTM does"
            )

    @classmethod
    def from_rnn(cls, rnn: nn.RNNBase) -> Recurrent:
        """A copy of a layer of torch.nn, or of one like it, in which every call means the same.

        Options (``batch_first`` and the others), mode, hooks and ``requires_grad`` are kept; for a
        layer inside a model, sharing its parameters, see :func:`strnn_kernels.replace_rnns`.

        Raises:
            ArgumentError: rnn is of another class, or projects its states.
        """
        reason = cls._refusal(rnn)
        if reason:
            raise checks.ArgumentError(f"{cls.__name__}.from_rnn: {reason}")
        return cls._adopt(copy.deepcopy(rnn))

    def to_rnn(self) -> nn.RNNBase:
        """The same layer as one of torch.nn, with copied parameters."""
        twin = copy.deepcopy(self)
        twin.__class__ = self.torch_class
        twin._init_flat_weights()
        return twin

    def stacked_parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What ``temporal_rnn`` takes: w_ih (D, G * H, C), w_hh (D, G * H, H), and bias or None.

        Raises:
            ArgumentError: there is more than one layer.
        """
        if self.num_layers != 1:
            raise checks.ArgumentError(
                f"{type(self).__name__}.stacked_parameters: num_layers must be 1, "
                f"got {self.num_layers}"
            )
        w_ih, w_hh, *biases = zip(*self.all_weights, strict=True)
        bias = [of_one for pair in zip(*biases, strict=True) for of_one in pair]
        cell = _CELLS[self.mode]
        return torch.stack(w_ih), torch.stack(w_hh), composed.stacked(cell, bias, bias=True)

    @classmethod
    def _refusal(cls, rnn: object) -> str | None:
        """Why a layer cannot become one of this class."""
        if type(rnn) not in (cls.torch_class, cls):
            wanted = f"nn.{cls.torch_class.__name__}"
            return f"rnn must be an {wanted}, got {type(rnn).__name__}"
        if rnn.proj_size:
            return f"rnn must have proj_size = 0, got {rnn.proj_size}"
        return None

    @classmethod
    def _adopt(cls, rnn: nn.RNNBase) -> Recurrent:
        """Makes a layer of torch.nn one of this class: the same object, with all it holds."""
        rnn.__class__ = cls
        rnn.__dict__.pop("_flat_weights", None)
        return rnn

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ):
        """Runs the layers.

        Args:
            input: (T, B, C), with batch_first (B, T, C), unbatched (T, C), or a PackedSequence,
                which gives a PackedSequence back.
            hx: first states, (L * D, B, H), or (L * D, H) for an unbatched input; of an LSTM a pair
                (h_0, c_0) of such. None: zero.
            lengths: integers in 0..T, (B,), for a padded input; the output is zero past the end, as
                that of packed sequences padded again.

        Returns:
            output, (T, B, D * H) as input is laid out, and h_n (L * D, B, H), of an LSTM
            (h_n, c_n): the states after the last valid step of each direction, the first states for
            a sequence of length 0. Tensors of their own.

        Raises:
            ArgumentError: an argument has the wrong type, shape, dtype, device or value.
        """
        found = None if lengths is not None else bound.call(self, _CELLS[self.mode], input, hx)
        if found is not None:
            return found
        name = type(self).__name__
        if isinstance(input, PackedSequence):
            return self._forward_packed(name, input, hx, lengths)
        is_batched = self._check_input(name, input, lengths)
        is_time_first = is_batched and not self.batch_first
        x = input if is_batched else input[None]
        if is_time_first:
            x = x.transpose(0, 1)
        starts = self._starts(name, x, hx, is_batched)

        def noise():
            # In the order in which torch draws.
            B, T, _ = x.shape
            ones = x.new_ones((T, B, self.hidden_size * (1 + self.bidirectional)))
            return dropout(ones, self.dropout).transpose(0, 1)

        h, last = self._layers(name, x, starts, lengths, noise)
        output = _own((h.transpose(0, 1) if is_time_first else h).flatten(2))
        if not is_batched:
            output, last = output[0], [state[:, 0] for state in last]
        return output, self._as_hx(last)

    def step(
        self,
        x_t: torch.Tensor,
        state: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
    ):
        """One step of causal layers: calling it for every t equals the whole-sequence call.

        Args:
            x_t: (B, C), the inputs of this moment.
            state: what the last step returned, (L, B, H), of an LSTM a pair; None at the start.

        Returns:
            output (B, H) of the last layer, and the new state.

        Raises:
            ArgumentError: the layer is bidirectional, so a step would need the future; or an
                argument is wrong.
        """
        name = f"{type(self).__name__}.step"
        if self.bidirectional:
            raise checks.ArgumentError(
                f"{name}: a bidirectional layer needs the whole sequence; "
                "build it with bidirectional=False"
            )
        found = bound.call(self, _CELLS[self.mode], x_t, state, is_step=True)
        if found is not None:
            return found
        checks.dims(name, "x_t", checks.tensor(name, "x_t", x_t), "B C")
        checks.last_size(name, "x_t", x_t, "B C", self.input_size)
        x = x_t.unsqueeze(1)
        starts = self._starts(name, x, state, True)
        h, last = self._layers(
            name, x, starts, None,
            lambda: dropout(x_t.new_ones((len(x_t), 1, self.hidden_size)), self.dropout),
        )  # fmt: skip
        return _own(h.flatten(1)), self._as_hx(last)

    def project(
        self,
        input: torch.Tensor,
        projection: torch.Tensor,
        *,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """s[b, d, k] = sum over t of projection[d, k, t] h[b, t, d], of the states of one layer.

        The two in one call: in inference h is never stored.

        Args:
            input: as forward takes it, with a batch.
            projection: (D, K, T).
            lengths: as forward takes them; states past the end are zero.

        Returns:
            s, (B, D, K, H).

        Raises:
            ArgumentError: there is more than one layer, or an argument is wrong.
        """
        name = f"{type(self).__name__}.project"
        if self.num_layers != 1:
            raise checks.ArgumentError(f"{name}: num_layers must be 1, got {self.num_layers}")
        letters = "B T C" if self.batch_first else "T B C"
        checks.dims(name, self._input_name, checks.tensor(name, self._input_name, input), letters)
        checks.last_size(name, self._input_name, input, letters, self.input_size)
        x = input if self.batch_first else input.transpose(0, 1)
        checks.tensor(name, "projection", projection)
        _, K, _ = checks.dims(name, "projection", projection, "D K T")
        D, T = 1 + self.bidirectional, x.shape[1]
        dtype = projection.dtype if functional.is_autocast(x) else None
        first = (self._input_name, x)
        checks.like(name, "projection", projection, "D K T", (D, K, T), first, dtype)
        w_ih, w_hh, bias = self._weights(0)
        self._check_dtype(name, x, w_ih[0])
        cell = _CELLS[self.mode]
        return functional.layer(
            name, x, w_ih, bias, w_hh, cell, lengths, projection=projection
        ).output

    def _layers(
        self,
        name: str,
        x: torch.Tensor,
        starts: Sequence[torch.Tensor],
        lengths: torch.Tensor | None,
        noise: Callable[[], torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """States (B, T, D, H) of the last layer, and what (h_n, c_n) are made of.

        ``noise`` (B, T, D * H) scales what a layer in training passes on to the next.
        """
        D, L = 1 + self.bidirectional, self.num_layers
        lasts = []
        for layer in range(L):
            w_ih, w_hh, bias = self._weights(layer)
            if not layer:
                self._check_dtype(name, x, w_ih[0])
            own = starts if L == 1 else [s[layer * D : (layer + 1) * D] for s in starts]
            states = functional.layer(
                name,
                x,
                w_ih,
                bias,
                w_hh,
                _CELLS[self.mode],
                lengths,
                *[start.transpose(0, 1) for start in own],
                keep_last=True,
            )
            lasts.append((states.h_n, states.c_n))
            if layer < L - 1:
                x = states.output.flatten(2)
                if self.dropout and self.training:
                    x = x * noise()
        kinds = lasts[0] if self._carries else lasts[0][:1]
        if L > 1:
            kinds = [torch.cat([last[k] for last in lasts]) for k in range(len(kinds))]
        return states.output, list(kinds)

    def _weights(self, layer: int) -> tuple[list[torch.Tensor], ...]:
        """w_ih, w_hh of each direction of a layer, and b_ih and b_hh of each in turn."""
        known, D = self._parameters, 1 + self.bidirectional
        w_ih, w_hh, biases = [], [], []
        for names in self._all_weights[layer * D : (layer + 1) * D]:
            # What is no parameter any more (a parametrization, weight norm) is an attribute.
            found = [known[n] if n in known else getattr(self, n) for n in names]
            w_ih.append(found[0])
            w_hh.append(found[1])
            biases += found[2:]
        return w_ih, w_hh, biases

    def _forward_packed(self, name, packed, hx, lengths):
        if lengths is not None:
            raise checks.ArgumentError(
                f"{name}: lengths come with a padded {self._input_name}, got a PackedSequence"
            )

        def padded(data):
            return pad_packed_sequence(PackedSequence(data, packed.batch_sizes), batch_first=True)

        x, counts = padded(packed.data)
        checks.last_size(name, self._input_name, x, "B T C", self.input_size)
        starts = self._starts(name, x, hx, True)
        if packed.sorted_indices is not None:
            starts = [state.index_select(1, packed.sorted_indices) for state in starts]

        def noise():
            width = self.hidden_size * (1 + self.bidirectional)
            return padded(dropout(x.new_ones((len(packed.data), width)), self.dropout))[0]

        is_full = int(counts[-1]) == x.shape[1]
        h, last = self._layers(name, x, starts, None if is_full else counts, noise)
        if packed.unsorted_indices is not None:
            last = [state.index_select(1, packed.unsorted_indices) for state in last]
        data = pack_padded_sequence(h.flatten(2), counts, batch_first=True).data
        return PackedSequence(data, *packed[1:]), self._as_hx(last)

    @property
    def _carries(self) -> bool:
        """Whether there is a c beside h."""
        return self.mode == "LSTM"

    def _as_hx(self, states):
        return tuple(states) if self._carries else states[0]

    def _check_input(self, name, x, lengths) -> bool:
        """Whether the input has a batch; refuses what is none."""
        checks.tensor(name, self._input_name, x)
        is_batched = x.dim() != 2 or lengths is not None
        letters = ("B T C" if self.batch_first else "T B C") if is_batched else "T C"
        checks.dims(name, self._input_name, x, letters)
        checks.last_size(name, self._input_name, x, letters, self.input_size)
        return is_batched

    def _check_dtype(self, name, x, w):
        if (x.dtype != w.dtype or x.device != w.device) and not functional.is_autocast(x):
            raise checks.ArgumentError(
                f"{name}: {self._input_name} must have the dtype and device of the weights, "
                f"{w.dtype} on {w.device}, got {x.dtype} on {x.device}"
            )

    def _starts(self, name, x, hx, is_batched) -> list[torch.Tensor]:
        """First states (L * D, B, H) of x (B, T, C): none, h_0, or h_0 and c_0."""
        if hx is None:
            return []
        names = ("hx",)
        if self._carries:
            names = ("hx[0]", "hx[1]")
            if not isinstance(hx, tuple | list | torch.Tensor) or len(hx) != 2:
                raise checks.ArgumentError(
                    f"{name}: hx must be a pair (h_0, c_0), got {type(hx).__name__}"
                )
        given = list(hx) if self._carries else [hx]
        size = self.num_layers * (1 + self.bidirectional)
        layers = "D" if self.num_layers == 1 else "L*D"
        letters, sizes = f"{layers} H", (size, self.hidden_size)
        if is_batched:
            letters, sizes = f"{layers} B H", (size, x.shape[0], self.hidden_size)
        is_autocast = functional.is_autocast(x)
        for name_of, state in zip(names, given, strict=True):
            # Under autocast the dtypes are made equal.
            dtype = state.dtype if is_autocast and isinstance(state, torch.Tensor) else None
            checks.like(name, name_of, state, letters, sizes, (self._input_name, x), dtype)
        return given if is_batched else [state[:, None] for state in given]


def _own(output: torch.Tensor) -> torch.Tensor:
    """An output as the caller gets it: what a backward will read is not handed out, but a copy.

    So that a caller may change it in place, as the output of torch's own layers.
    """
    if output.requires_grad or torch.jit.is_tracing():
        return output.clone(memory_format=torch.contiguous_format)
    return output.contiguous()


class RNN(Recurrent):
    """h[t] = act(W_ih x[t] + b_ih + W_hh h[t - 1] + b_hh): a drop-in for ``torch.nn.RNN``.

    Both directions of a layer run in one call. Constructor, attributes, parameters, state_dict,
    results and the draw of dropout are torch's; beside PackedSequence there is ``lengths=``.

    Args:
        input_size: C.
        hidden_size: H.
        num_layers: L.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether input and output are (B, T, ..), not (T, B, ..).
        dropout: between layers, in training.
        bidirectional: whether there is a second direction.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError, TypeError: an option is wrong, as in torch.nn.
    """

    torch_class = nn.RNN

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise checks.ArgumentError("RNN: proj_size belongs to torch.nn.LSTM alone")
        nonlinearity = args[3] if len(args) > 3 else kwargs.pop("nonlinearity", "tanh")
        if nonlinearity not in ("tanh", "relu"):
            raise checks.ArgumentError(
                f"RNN: nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}"
            )
        self.nonlinearity = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", *args[:3], *args[4:], **kwargs)


class GRU(Recurrent):
    """h[t] = (1 - z) * n + z * h[t - 1]: a drop-in for ``torch.nn.GRU``.

    r, z = sigmoid(W_ih x[t] + b_ih + W_hh h[t - 1] + b_hh) and n = tanh(W_in x[t] + b_in +
    r * (W_hn h[t - 1] + b_hn)), each of its rows. Otherwise as :class:`RNN`, without nonlinearity.
    """

    torch_class = nn.GRU

    def __init__(self, *args, **kwargs):
        if "proj_size" in kwargs:
            raise checks.ArgumentError("GRU: proj_size belongs to torch.nn.LSTM alone")
        super().__init__("GRU", *args, **kwargs)


class LSTM(Recurrent):
    """c[t] = f * c[t - 1] + i * g, h[t] = o * tanh(c[t]): a drop-in for ``torch.nn.LSTM``.

    i, f, o = sigmoid and g = tanh of W_ih x[t] + b_ih + W_hh h[t - 1] + b_hh, each of its rows.
    Otherwise as :class:`RNN`, without nonlinearity; hx and what comes back are pairs. A proj_size
    is refused.
    """

    torch_class = nn.LSTM

    def __init__(self, *args, **kwargs):
        super().__init__("LSTM", *args, **kwargs)


class TemporalRNN(Recurrent):
    """One layer of Elman cells over time, (B, T, C) to (B, T, D * H) and h_n.

    h[t] = act(W_ih x[t] + b_ih + W_hh h[t - 1] + b_hh), and the same from the end for the other
    direction. What :class:`RNN` is with one layer, batch first, with two more activations.

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

    torch_class = nn.RNN
    _input_name = "x"

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
        name = type(self).__name__
        checks.positive(name, "input_size", input_size)
        checks.positive(name, "hidden_size", hidden_size)
        checks.activation(name, activation)
        super().__init__(
            "RNN_TANH",
            input_size,
            hidden_size,
            bias=bool(bias),
            batch_first=True,
            bidirectional=bool(bidirectional),
            device=device,
            dtype=dtype,
        )
        self.mode, self.nonlinearity = f"RNN_{activation.upper()}", activation

    @property
    def activation(self) -> str:
        """The activation's name."""
        return self.nonlinearity

    @classmethod
    def _refusal(cls, rnn):
        reason = super()._refusal(rnn)
        if reason is None and rnn.num_layers != 1:
            return f"rnn must have num_layers = 1, got {rnn.num_layers}; strnn_kernels.RNN has more"
        return reason

    def to_rnn(self) -> nn.RNN:
        """The same layer as an ``nn.RNN`` with copied parameters.

        Raises:
            ArgumentError: the activation is neither "relu" nor "tanh".
        """
        if self.activation not in ("relu", "tanh"):
            raise checks.ArgumentError(
                f"TemporalRNN.to_rnn: nn.RNN has only relu and tanh, "
                f"got activation={self.activation!r}"
            )
        return super().to_rnn()

    def forward(
        self,
        x: torch.Tensor | PackedSequence,
        hx: torch.Tensor | None = None,
        *,
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | PackedSequence, torch.Tensor]:
        """Runs the layer on x (B, T, C), (T, C) or packed; hx and lengths as in :class:`RNN`."""
        return super().forward(x, hx, lengths=lengths)

    def extra_repr(self) -> str:
        """The sizes and options."""
        time_first = "" if self.batch_first else ", batch_first=False"
        return (
            f"{self.input_size}, {self.hidden_size}, activation={self.activation}, "
            f"bias={self.bias}, bidirectional={self.bidirectional}{time_first}"
        )
