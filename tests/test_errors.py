"""Each wrong argument: one ArgumentError that says where, what was expected and what came."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import strnn_kernels as sk

B, N, D, C, H, K = 2, 6, 4, 3, 5, 7
GRID, CHAIN = sk.Topology.grid(2, 3), sk.Topology.chain(N)

SHAPES = {
    "sweep": {"u": "B N D H", "w": "D H H", "mask": "B N", "h0": "B D H"},
    "gated_sweep": {"g": "B N D H", "gate": "B N D H", "w": "D H H"},
    "sparse_projection": {"h": "B N D H", "weight": "D K N"},
    "spatial_rnn": {
        "x": "B N C",
        "w_ih": "D H C",
        "w_hh": "D H H",
        "bias": "D H",
        "mask": "B N",
        "projection": "D K N",
    },
    "temporal_rnn": {
        "x": "B T C",
        "w_ih": "D H C",
        "w_hh": "D H H",
        "bias": "D H",
        "h0": "B D H",
        "projection": "D K T",
    },
}
OPTIONAL = {"mask", "h0", "bias", "projection", "lengths"}
WITH_TOPOLOGY = ("sweep", "gated_sweep", "spatial_rnn")
WITH_ACTIVATION = ("sweep", "spatial_rnn", "temporal_rnn")
EVERY = [(f, a) for f, shapes in SHAPES.items() for a in shapes]
every_argument = pytest.mark.parametrize("function, argument", EVERY)


def sizes_of(function, argument):
    sizes = {"B": B, "N": N, "T": N, "D": 2 if function == "temporal_rnn" else D}
    sizes |= {"C": C, "H": H, "K": K}
    return [sizes[letter] for letter in SHAPES[function][argument].split()]


def arguments(function):
    """A call that is right."""
    made = {
        name: torch.ones(sizes_of(function, name), dtype=torch.bool)
        if name == "mask"
        else torch.randn(sizes_of(function, name))
        for name in SHAPES[function]
    }
    if function in WITH_TOPOLOGY:
        made["topology"] = GRID
    return made


def refusal(call, *parts):
    """The message of the one ArgumentError that call raises; each part is in it."""
    with pytest.raises(sk.ArgumentError) as caught:
        call()
    error = caught.value
    assert isinstance(error, ValueError) and isinstance(error, TypeError)
    assert error.__cause__ is None and error.__context__ is None, "one exception, not a chain"
    message = str(error)
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"
    return message


def refused(function, *parts, **wrong):
    made = arguments(function) | wrong
    return refusal(lambda: getattr(sk, function)(**made), f"{function}: ", *parts)


@pytest.mark.parametrize("function", SHAPES)
def test_the_right_call_is_accepted(function):
    getattr(sk, function)(**arguments(function))


# Shapes

NAMED_SHAPE = re.compile(
    r"^\w+: (\w+) must have shape \(([A-Z](?:, [A-Z])*)\)"
    r"( = \(\d+(?:, \d+)*,?\)| with D = [12] \(bidirectional=(?:True|False)\))?, got \([\d, ]*\)$"
)
NAMED_GRAPH = re.compile(
    r"^\w+: topology must have .*\(N, D\).* = \(\d+, \d+\), "
    r"got \(\d+, \d+\) from Topology\(.*\)$",
    re.DOTALL,
)


@every_argument
def test_a_size_that_is_one_too_large(function, argument):
    """For every axis of every argument: letters and numbers of what was expected, and what came."""
    right = arguments(function)
    names = list(SHAPES[function])
    for axis in range(right[argument].dim()):
        shape = list(right[argument].shape)
        shape[axis] += 1
        wrong = right[argument].new_zeros(shape)
        if "K" in SHAPES[function][argument].split()[axis]:
            getattr(sk, function)(**right | {argument: wrong})  # K is free
            continue
        if argument == "h" and axis in (0, 3):
            getattr(sk, function)(**right | {argument: wrong})  # so are B and H of a projection
            continue
        message = refused(function, **{argument: wrong})
        found = NAMED_SHAPE.match(message)
        if found is None:
            assert NAMED_GRAPH.match(message), message
            continue
        blamed = found[1]
        letters = SHAPES[function][blamed].split()
        assert found[2] == ", ".join(letters)
        came = tuple(wrong.shape) if blamed == argument else tuple(right[blamed].shape)
        assert message.endswith(f"got {came}")
        # An argument is judged by those before it, so only a later one can be blamed instead.
        assert names.index(blamed) >= names.index(argument)


@every_argument
def test_a_wrong_number_of_dimensions(function, argument):
    right = arguments(function)[argument]
    letters = ", ".join(SHAPES[function][argument].split())
    for wrong in (right[None], right[0], right.new_zeros(())):
        message = refused(function, argument, f"({letters})", **{argument: wrong})
        assert message.endswith(f"got {tuple(wrong.shape)}")


@pytest.mark.parametrize("function", SHAPES)
def test_an_empty_axis(function):
    """Only B may be zero."""
    name, letters = next(iter(SHAPES[function].items()))
    right = arguments(function)[name]
    for axis, letter in enumerate(letters.split()):
        shape = list(right.shape)
        shape[axis] = 0
        wrong = right.new_zeros(shape)
        if letter == "B":
            continue
        message = refused(function, name, letter, **{name: wrong})
        assert message.endswith(f"got {tuple(shape)}")
    for projection in ("projection", "weight"):
        if projection in SHAPES[function]:
            shape = sizes_of(function, projection)
            shape[1] = 0
            refused(function, projection, "K", "positive", **{projection: torch.zeros(shape)})


# Dtype, device, kind


@every_argument
def test_another_dtype(function, argument):
    right = arguments(function)
    names = list(SHAPES[function])
    if argument == "mask":
        for dtype in (torch.uint8, torch.int64, torch.float32):
            wrong = right["mask"].to(dtype)
            name = str(dtype).removeprefix("torch.")
            refused(function, "mask must have dtype bool", f"got {name}", mask=wrong)
        return
    for dtype in (torch.float64, torch.bfloat16, torch.int32, torch.bool, torch.complex64):
        message = refused(function, **{argument: right[argument].to(dtype)})
        name = str(dtype).removeprefix("torch.")
        if argument != names[0]:
            assert message.startswith(f"{function}: {argument} must have ")
            assert message.endswith(f"got {name}") and "dtype" in message
        elif dtype.is_floating_point:  # then the first to disagree is the next argument
            assert f"must have dtype {name}, the dtype of {names[0]}, got float32" in message
        else:
            assert message == f"{function}: {names[0]} must have a floating dtype, got {name}"


@every_argument
def test_another_device(function, argument):
    right = arguments(function)
    first = next(iter(SHAPES[function]))
    message = refused(function, **{argument: right[argument].to("meta")})
    if argument == first:
        assert f"must be on the device of {first} (meta), got cpu" in message
    else:
        expected = f"{function}: {argument} must be on the device of {first} (cpu), got meta"
        assert message == expected


@pytest.mark.parametrize("function", SHAPES)
def test_tensors_without_data_give_one(function):
    """Shapes alone, as torch's own layers do."""
    given = arguments(function)
    made = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    actual, expected = getattr(sk, function)(**made), getattr(sk, function)(**given)
    assert actual.is_meta and actual.shape == expected.shape and actual.dtype == expected.dtype


@every_argument
def test_something_that_is_no_tensor(function, argument):
    right = arguments(function)[argument]
    wrong = {"list": right.tolist(), "ndarray": np.asarray(right), "str": "x", "int": 3}
    if argument not in OPTIONAL:
        wrong["NoneType"] = None
    for kind, value in wrong.items():
        refused(function, f"{argument} must be a torch.Tensor", kind, **{argument: value})


# Names and graphs


@pytest.mark.parametrize("function", WITH_ACTIVATION)
@pytest.mark.parametrize("value", ["ReLU", "gelu", "", None, 1, ["relu"], torch.relu])
def test_an_unknown_activation(function, value):
    message = refused(function, activation=value)
    assert message == (
        f"{function}: activation must be one of identity, relu, tanh, sigmoid, got {value!r}"
    )


@pytest.mark.parametrize("function", WITH_TOPOLOGY)
def test_a_topology_that_does_not_fit(function):
    for wrong in (sk.Topology.grid(3, 3), CHAIN, sk.Topology.grid(2, 2)):
        got = f"got ({wrong.num_nodes}, {wrong.num_directions})"
        refused(function, "topology", f"({N}, {D})", got, repr(wrong), topology=wrong)
    for value in (None, "corner", [[[]]], sk.Topology, 3):
        kind = type(value).__name__
        refused(function, "topology must be a Topology", kind, topology=value)


@pytest.mark.parametrize("bidirectional, directions", [(True, 1), (False, 2), (True, 3)])
def test_directions_of_time(bidirectional, directions):
    made = {
        "w_ih": torch.randn(directions, H, C),
        "w_hh": torch.randn(directions, H, H),
        "bias": None,
        "h0": None,
        "projection": None,
    }
    wanted = f"D = {1 + bidirectional} (bidirectional={bidirectional})"
    came = f"got ({directions}, {H}, {C})"
    refused("temporal_rnn", "w_ih", wanted, came, bidirectional=bidirectional, **made)


# Lengths


@pytest.mark.parametrize(
    "lengths, came",
    [([7, 1], "1..7"), ([-1, 3], "-1..3"), ([6, 2**40], f"6..{2**40}"), ([-5, 99], "-5..99")],
)
@pytest.mark.parametrize("as_tensor", [True, False])
def test_lengths_out_of_range(lengths, came, as_tensor):
    value = torch.tensor(lengths) if as_tensor else lengths
    refused("temporal_rnn", "lengths", f"0..T = 0..{N}", f"got {came}", lengths=value)
    layer = sk.TemporalRNN(C, H)
    refusal(lambda: layer(torch.randn(B, N, C), lengths=value), "lengths", f"got {came}")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (0,)])
def test_lengths_of_the_wrong_shape(shape):
    value = torch.ones(shape, dtype=torch.long)
    expected = f"lengths must have shape (B,) = ({B},), got {shape}"
    refused("temporal_rnn", expected, lengths=value)
    refusal(lambda: sk.TemporalRNN(C, H)(torch.randn(B, N, C), lengths=value), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64, torch.bfloat16])
def test_lengths_of_the_wrong_dtype(dtype):
    name = str(dtype).removeprefix("torch.")
    value = torch.ones(B).to(dtype)
    refused("temporal_rnn", "lengths must be integers", f"got {name}", lengths=value)


@pytest.mark.parametrize("value", ["ab", [1, None], {"a": 1}, object(), [1.5, 2.0], [[1], [2, 3]]])
def test_lengths_that_are_none(value):
    refused("temporal_rnn", "lengths", lengths=value)


# soft_threshold_


@pytest.mark.parametrize("amount", [math.nan, -0.1, -math.inf, None, "x", [0.1], 1j])
def test_a_wrong_amount(amount):
    weight = torch.ones(3)
    refusal(
        lambda: sk.soft_threshold_(weight, amount),
        "soft_threshold_: amount must be",
        "at least 0",
        f"got {amount!r}",
    )
    refusal(lambda: sk.SparseProjection(1, 2, 1).proximal_step_(amount), "amount", "at least 0")
    assert (weight == 1).all()


@pytest.mark.parametrize("weight", [None, [1.0], np.ones(3), 2.0, torch.ones(3, dtype=torch.int64)])
def test_a_wrong_weight(weight):
    refusal(lambda: sk.soft_threshold_(weight, 0.1), "soft_threshold_: weight must ")


# Modules


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
@pytest.mark.parametrize(
    "make, name",
    [
        (lambda v: sk.SparseProjection(v, 2, 3), "SparseProjection: num_directions"),
        (lambda v: sk.SparseProjection(2, v, 3), "SparseProjection: num_nodes"),
        (lambda v: sk.SparseProjection(2, 2, v), "SparseProjection: projection_size"),
        (lambda v: sk.SpatialRNN(v, 3, GRID), "SpatialRNN: input_size"),
        (lambda v: sk.SpatialRNN(3, v, GRID), "SpatialRNN: hidden_size"),
        (lambda v: sk.TemporalRNN(v, 3), "TemporalRNN: input_size"),
        (lambda v: sk.TemporalRNN(3, v), "TemporalRNN: hidden_size"),
    ],
)
def test_sizes_of_modules(make, name, value):
    refusal(lambda: make(value), f"{name} must be a positive int, got {value!r}")


@pytest.mark.parametrize("value", [0, -1, 2.0, "3"])
def test_projection_size_of_a_spatial_layer(value):
    refusal(
        lambda: sk.SpatialRNN(3, 3, GRID, projection_size=value), "projection_size", repr(value)
    )


@pytest.mark.parametrize("value", ["ReLU", None, 3])
def test_activation_of_modules(value):
    refusal(lambda: sk.SpatialRNN(3, 3, GRID, activation=value), "SpatialRNN: activation", "relu")
    refusal(lambda: sk.TemporalRNN(3, 3, activation=value), "TemporalRNN: activation", "relu")


def test_topology_of_a_spatial_layer():
    refusal(lambda: sk.SpatialRNN(3, 3, "corner"), "SpatialRNN: topology must be", "str")
    refusal(lambda: sk.SpatialRNN(3, 3, (2, 3)), "SpatialRNN: topology must be", "tuple")


def test_inputs_of_a_spatial_layer():
    layer = sk.SpatialRNN(C, H, GRID)
    refusal(lambda: layer(torch.randn(B, N + 1, C)), "topology", f"({N + 1}, {D})", f"({N}, {D})")
    refusal(lambda: layer(torch.randn(B, C, 2, 3)), "x must have shape (B, N, C)")
    refusal(lambda: layer(torch.randn(B, N, C), torch.ones(B, N)), "mask must have dtype bool")
    refusal(lambda: layer(torch.randn(B, N, C).double()), "float32", "float64")
    # The layer's weight has the right shape: it is x that is wrong.
    refusal(lambda: layer(torch.randn(B, N, C + 1)), f"({B}, {N}, {C})", f"({B}, {N}, {C + 1})")


def test_inputs_of_a_temporal_layer():
    layer = sk.TemporalRNN(C, H)
    x = torch.randn(B, N, C)
    refusal(lambda: layer(x[None]), "x must have shape (B, T, C)", f"got (1, {B}, {N}, {C})")
    refusal(lambda: layer(x[0, 0]), "x must have shape", f"got ({C},)")
    refusal(lambda: layer([x]), "x must be a torch.Tensor", "list")
    refusal(lambda: layer(x[0], lengths=[3]), "x must have shape (B, T, C)", f"got ({N}, {C})")
    refusal(lambda: layer(x[..., 1:]), f"({B}, {N}, {C})", f"({B}, {N}, {C - 1})")


def test_first_states_of_a_temporal_layer():
    layer = sk.TemporalRNN(C, H)
    x, right = torch.randn(B, N, C), torch.randn(2, B, H)
    layer(x, right)
    for wrong in (right[:1], right.transpose(0, 1)[:, :1], right[..., 1:], right[0]):
        expected = f"hx must have shape (D, B, H) = (2, {B}, {H}), got {tuple(wrong.shape)}"
        refusal(lambda w=wrong: layer(x, w), expected)
    refusal(lambda: layer(x, [right]), "hx must be a torch.Tensor", "list")
    refusal(lambda: layer(x, right.to("meta")), "hx must be on the device", "got meta")
    refusal(lambda: layer(x, right.double()), "float32", "got float64")
    # Unbatched: (D, H), and the message shows what the caller passed.
    layer(x[0], right[:, 0])
    refusal(lambda: layer(x[0], right), "hx must have shape", f"got (2, {B}, {H})")
    refusal(lambda: layer(x[0], [right]), "hx must be a torch.Tensor", "list")


def test_packed_sequences():
    layer = sk.TemporalRNN(C, H)
    packed = pack_padded_sequence(torch.randn(B, N, C), torch.tensor([6, 2]), batch_first=True)
    refusal(lambda: layer(packed, lengths=[6, 2]), "TemporalRNN: lengths", "PackedSequence")
    refusal(lambda: layer(packed, torch.randn(2, 3, H)), "hx must have shape", f"got (2, 3, {H})")


def test_steps():
    layer = sk.TemporalRNN(C, H, bidirectional=False)
    refusal(lambda: layer.step(torch.randn(B, 1, C)), "TemporalRNN.step: x_t", "(B, C)")
    refusal(lambda: layer.step([1.0]), "TemporalRNN.step: x_t must be a torch.Tensor", "list")
    state = torch.randn(1, 3, H)
    refusal(lambda: layer.step(torch.randn(B, C), state), f"(1, {B}, {H})", f"got (1, 3, {H})")
    refusal(lambda: sk.TemporalRNN(C, H).step(torch.randn(B, C)), "TemporalRNN.step: ")


def test_from_and_to_rnn():
    refusal(lambda: sk.TemporalRNN.from_rnn(nn.RNN(3, 4, 2)), "from_rnn", "num_layers = 1", "got 2")
    refusal(lambda: sk.TemporalRNN.from_rnn(nn.LSTM(3, 4)), "from_rnn", "nn.RNN", "got LSTM")
    refusal(lambda: sk.TemporalRNN.from_rnn(None), "from_rnn", "NoneType")
    for activation in ("sigmoid", "identity"):
        layer = sk.TemporalRNN(3, 4, activation=activation)
        refusal(layer.to_rnn, "TemporalRNN.to_rnn", "relu and tanh", repr(activation))
