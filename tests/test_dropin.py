"""sk.RNN, sk.GRU and sk.LSTM in the place of torch.nn's: whatever a user does with a layer."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import strnn_kernels as sk

C, H, B, T = 3, 4, 5, 6
LENGTHS = torch.tensor([3, 6, 1, 3, 5])
NAMES = ("RNN", "GRU", "LSTM")
each = pytest.mark.parametrize("name", NAMES)


def pair(name, *sizes, dtype=torch.float64, **options):
    """A layer of torch.nn and ours with the same weights."""
    theirs = getattr(nn, name)(*(sizes or (C, H)), dtype=dtype, **options)
    ours = getattr(sk, name)(*(sizes or (C, H)), dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def ours_of(name, *sizes, dtype=torch.float64, **options):
    return getattr(sk, name)(*(sizes or (C, H)), dtype=dtype, **options)


def first_states(name, randn, *shape):
    return (randn(*shape), randn(*shape)) if name == "LSTM" else randn(*shape)


def flat(value):
    """All tensors in what a layer takes or gives."""
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value or () for t in flat(v)]


def total(result):
    """A number that depends on all results, each with weights of its own."""
    return sum((t * torch.linspace(1, 2, t.numel()).view_as(t)).sum() for t in flat(result))


def equal_results_and_gradients(theirs, ours, arguments, tolerance=1e-12):
    found = []
    leaves = [t for t in flat(arguments) if t.requires_grad and t.is_leaf]
    for layer in (theirs, ours):
        torch.manual_seed(5)
        result = layer(*arguments)
        wanted = [*leaves, *layer.parameters()]
        grads = torch.autograd.grad(total(result), wanted, materialize_grads=True)
        found.append((flat(result), grads))
    for a, e in zip(found[1][0], found[0][0], strict=True):
        assert_close(a, e, rtol=tolerance, atol=tolerance)
    for a, e in zip(found[1][1], found[0][1], strict=True):
        assert_close(a, e, rtol=tolerance, atol=tolerance)


# 1. Constructor


@each
def test_constructor_attributes_and_repr(name):
    options = ({}, {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True})
    for option in (*options, {"num_layers": 3, "dropout": 0.25}):
        theirs, ours = (getattr(m, name)(C, H, **option) for m in (nn, sk))
        assert repr(ours) == repr(theirs)
        keys = "mode input_size hidden_size num_layers bias batch_first dropout bidirectional"
        for key in (*keys.split(), "proj_size", *(["nonlinearity"] if name == "RNN" else [])):
            assert getattr(ours, key) == getattr(theirs, key), key
        assert [[tuple(w.shape) for w in ws] for ws in ours.all_weights] == [
            [tuple(w.shape) for w in ws] for ws in theirs.all_weights
        ]
        assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
        assert ours.flatten_parameters() is None
    assert isinstance(ours, nn.RNNBase) and not isinstance(ours, nn.RNN | nn.GRU | nn.LSTM)


def test_positional_arguments():
    ours, theirs = (
        sk.RNN(C, H, 2, "relu", False, True, 0.5, True),
        nn.RNN(C, H, 2, "relu", False, True, 0.5, True),
    )
    assert repr(ours) == repr(theirs) and ours.nonlinearity == "relu"
    assert ours.mode == theirs.mode == "RNN_RELU"
    for name in ("GRU", "LSTM"):
        ours, theirs = (getattr(m, name)(C, H, 2, False, True, 0.5, True) for m in (sk, nn))
        assert repr(ours) == repr(theirs)


WRONG = (
    *({key: value} for key in ("input_size", "hidden_size", "num_layers") for value in (0, -1)),
    *({key: "3"} for key in ("input_size", "hidden_size", "dropout", "bias", "batch_first")),
    *({"dropout": value} for value in (-0.1, 1.1, True)),
    {"proj_size": -1},
    {"proj_size": H},
    {"hidden_size": 2.0},
    {"unknown": 1},
)


@each
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_wrong_options_raise_what_torch_raises(name, wrong):
    options = {"input_size": C, "hidden_size": H, **wrong}
    with pytest.raises(Exception) as theirs:
        getattr(nn, name)(**options)
    with pytest.raises(theirs.type):
        getattr(sk, name)(**options)


def test_what_is_refused_says_why():
    with pytest.raises(sk.ArgumentError, match="proj_size must be 0, got 2"):
        sk.LSTM(C, H, proj_size=2)
    with pytest.raises(ValueError, match="nonlinearity must be 'tanh' or 'relu', got 'gelu'"):
        sk.RNN(C, H, nonlinearity="gelu")
    for name in NAMES:
        with pytest.warns(UserWarning, match="dropout"):
            getattr(sk, name)(C, H, dropout=0.5)


# 2. State


@each
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_both_ways(name, assign):
    options = {"num_layers": 2, "bidirectional": True}
    torch.manual_seed(3)
    theirs = getattr(nn, name)(C, H, **options)
    torch.manual_seed(3)
    ours = getattr(sk, name)(C, H, **options)
    for (k, v), (key, value) in zip(
        theirs.state_dict().items(), ours.state_dict().items(), strict=True
    ):
        assert k == key and torch.equal(v, value), "names, order and start"
    assert not list(ours.buffers()) and len(list(ours.modules())) == 1
    other, x = getattr(sk, name)(C, H, **options), torch.randn(T, B, C)
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True), strict=True, assign=assign)
    assert_close(flat(other(x)), flat(theirs(x)))
    theirs.load_state_dict(getattr(sk, name)(C, H, **options).state_dict(), assign=assign)
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict(getattr(nn, name)(C, H).state_dict())


# 3. Results and gradients


@each
@pytest.mark.parametrize("is_batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_results_and_gradients(name, is_batch_first, bidirectional, bias, layers, randn):
    options = {"batch_first": is_batch_first, "bidirectional": bidirectional, "bias": bias}
    more = {"nonlinearity": "relu"} if name == "RNN" and bias else {}
    theirs, ours = pair(name, num_layers=layers, **options, **more)
    hx = first_states(name, randn, layers * (1 + bidirectional), B, H)
    x = randn(*((B, T, C) if is_batch_first else (T, B, C)))
    for arguments in ((x,), (x, hx)):
        result, expected = ours(*arguments), theirs(*arguments)
        assert [t.shape for t in flat(result)] == [t.shape for t in flat(expected)]
        assert type(result[1]) is type(expected[1])
        equal_results_and_gradients(theirs, ours, arguments)
    if not is_batch_first:
        assert result[0].is_contiguous()


@each
def test_odd_inputs(name, randn):
    theirs, ours = pair(name, num_layers=2, bidirectional=True)
    strided = randn(C, B, 2 * T).permute(2, 1, 0)[::2]
    hx = first_states(name, randn, H, B, 4)
    hx = tuple(s.permute(2, 1, 0) for s in hx) if name == "LSTM" else hx.permute(2, 1, 0)
    equal_results_and_gradients(theirs, ours, (strided, hx))
    equal_results_and_gradients(theirs, ours, (randn(T, C),))
    equal_results_and_gradients(theirs, ours, (randn(T, C), first_states(name, randn, 4, H)))
    equal_results_and_gradients(theirs, ours, (randn(1, B, C),))
    equal_results_and_gradients(theirs, ours, (randn(T, 0, C),))
    equal_results_and_gradients(*pair(name, 1, 1), (randn(T, B, 1),))
    with pytest.raises(RuntimeError):
        ours(randn(0, B, C))


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(name, dtype):
    exact, ours = pair(name, bidirectional=True)
    ours.to(dtype)
    x = torch.randn(T, B, C, dtype=torch.float64)
    result, expected = ours(x.to(dtype)), exact(x)
    total(result).backward()
    assert all(p.grad.dtype == dtype for p in ours.parameters())
    tolerance = 8 * torch.finfo(dtype).eps
    for a, e in zip(flat(result), flat(expected), strict=True):
        assert a.dtype == dtype
        assert_close(a.double(), e, rtol=tolerance, atol=tolerance)


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_sequence(name, bad, randn):
    theirs, ours = pair(name, bidirectional=True)
    x = randn(T, B, C, grad=False)
    x[2, 1, 0] = bad
    for a, e in zip(flat(ours(x)), flat(theirs(x)), strict=True):
        others = [b for b in range(B) if b != 1]
        assert_close(a[:, others], e[:, others])
        assert torch.equal(a.isfinite(), e.isfinite())


# 4. PackedSequence


@each
@pytest.mark.parametrize("is_batch_first", [False, True])
@pytest.mark.parametrize("kind", ["unsorted", "sorted", "by hand", "full"])
def test_packed_sequences(name, kind, is_batch_first, randn):
    theirs, ours = pair(name, num_layers=2, bidirectional=True, batch_first=is_batch_first)
    x, hx = randn(B, T, C), first_states(name, randn, 4, B, H)
    lengths = {"unsorted": LENGTHS, "full": torch.full((B,), T)}.get(kind)
    if lengths is None:
        lengths = LENGTHS.sort(descending=True).values
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=kind != "unsorted")
    if kind == "by hand":
        packed = PackedSequence(packed.data, packed.batch_sizes)
    for arguments in ((packed,), (packed, hx)):
        equal_results_and_gradients(theirs, ours, arguments)
        (result, _), (expected, _) = ours(*arguments), theirs(*arguments)
        assert isinstance(result, PackedSequence)
        assert torch.equal(result.batch_sizes, expected.batch_sizes)
        for key in ("sorted_indices", "unsorted_indices"):
            a, e = getattr(result, key), getattr(expected, key)
            assert (a is None) == (e is None) and (a is None or torch.equal(a, e))


@each
def test_lengths_and_packed_sequences_equal_the_sequences_alone(name, randn):
    ours = ours_of(name, num_layers=2, bidirectional=True, batch_first=True)
    x, hx = randn(B, T, C), first_states(name, randn, 4, B, H)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)
    output, last = ours(packed, hx)
    output = pad_packed_sequence(output, batch_first=True)[0]
    padded, same = ours(x, hx, lengths=LENGTHS)
    assert_close([padded, *flat(same)], [output, *flat(last)])
    for b, n in enumerate(LENGTHS):
        own = [s[:, b : b + 1] for s in flat(hx)]
        alone, ends = ours(x[b : b + 1, :n], tuple(own) if name == "LSTM" else own[0])
        assert_close(padded[b : b + 1, :n], alone)
        assert not padded[b, n:].any()
        assert_close([s[:, b : b + 1] for s in flat(last)], flat(ends))


# 5. Errors


@each
def test_wrong_arguments_raise_what_torch_raises(name, randn):
    theirs, ours = pair(name)
    x, good = randn(T, B, C), first_states(name, randn, 1, B, H)
    packed = pack_padded_sequence(x, torch.tensor([6, 5, 3, 3, 1]))

    def wrap(state):
        return (state, state) if name == "LSTM" else state

    for arguments in (
        (x[None],),
        (x[0, 0],),
        (x[..., 1:],),
        (x.float(),),
        (x, wrap(randn(1, B, H + 1))),
        (x, wrap(randn(1, B + 1, H))),
        (x, wrap(randn(2, B, H))),
        (x, wrap(randn(B, H))),
        (x[:, 0], good),
        (packed, wrap(randn(1, B + 1, H))),
        (PackedSequence(packed.data[:, 1:], packed.batch_sizes),),
        *([(x, randn(2, B, H)), (x, (good[0], randn(1, B, H + 1)))] if name == "LSTM" else []),
    ):
        with pytest.raises(Exception) as expected:
            theirs(*arguments)
        with pytest.raises(expected.type):
            ours(*arguments)
        with pytest.raises(sk.ArgumentError, match=name):
            ours(*arguments)
    for arguments, lengths in (((x,), [1] * (B + 1)), ((x[:, 0],), [T]), ((packed,), [1] * B)):
        with pytest.raises(sk.ArgumentError, match=name):
            ours(*arguments, lengths=lengths)


# 6. Dropout


@each
def test_dropout_draws_as_torch_does(name, randn):
    for options in ({}, {"batch_first": True, "bidirectional": True}):
        theirs, ours = pair(name, num_layers=3, dropout=0.4, **options)
        x = randn(B, T, C) if options else randn(T, B, C)
        packed = pack_padded_sequence(randn(B, T, C), LENGTHS, True, enforce_sorted=False)
        for given in (x, packed):
            equal_results_and_gradients(theirs, ours, (given,))
        for changed in (1.0, 0.0, 0.7):
            theirs.dropout = ours.dropout = changed
            equal_results_and_gradients(theirs, ours, (x,))
        assert not torch.equal(ours(x)[0], ours(x)[0])
        assert torch.equal(ours.eval()(x)[0], ours(x)[0])
        equal_results_and_gradients(theirs.eval(), ours, (x,))


# 7. Memory


@each
@pytest.mark.parametrize("is_batch_first", [False, True])
@pytest.mark.parametrize("has_grad", [False, True])
def test_no_result_shares_memory(name, is_batch_first, has_grad, randn):
    ours = ours_of(name, batch_first=is_batch_first)
    for x in (randn(T, B, C), randn(1, 1, C), randn(T, C)):
        size = x.shape[0 if is_batch_first else 1]
        hx = first_states(name, randn, *((1, H) if x.dim() == 2 else (1, size, H)))
        with torch.set_grad_enabled(has_grad):
            output, last = ours(x, hx)
            storages = {t.untyped_storage().data_ptr() for t in (x, output, *flat(hx), *flat(last))}
            assert len(storages) == 2 + 2 * len(flat(hx))
            before = output.detach().clone()
            for state in flat(last):
                assert state.untyped_storage().nbytes() == state.numel() * state.element_size()
                with torch.no_grad():
                    state.zero_()
            assert torch.equal(output, before)


@each
@pytest.mark.parametrize("is_batch_first", [False, True])
def test_outputs_may_be_changed_in_place(name, is_batch_first, randn):
    for layers, time in ((1, T), (2, T), (1, 1)):
        x = randn(time, B, C)
        found = []
        for layer in pair(name, num_layers=layers, batch_first=is_batch_first):
            output, last = layer(x)
            output += 2
            nn.functional.relu_(output[:, 1:])
            for state in flat(last):
                state.mul_(3)
            found.append(torch.autograd.grad(total((output, last)), [x, *layer.parameters()]))
        assert_close(found[1], found[0])


# 8. Weights are read through attributes


def change(layer, how):
    if how == "data":
        layer.weight_hh_l0.data = layer.weight_hh_l0.data * 0.5
    elif how == "optimizer":
        for p in layer.parameters():
            p.grad = torch.ones_like(p)
        torch.optim.SGD(layer.parameters(), 0.1).step()
    elif how == "load":
        layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})
    elif how == "apply":
        layer._apply(lambda t: t * 1.5)
    elif how == "swap":
        layer.weight_ih_l0 = nn.Parameter(layer.weight_ih_l0.detach() * 2)
    elif how == "weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(layer, "weight_hh_l0")
        layer.weight_hh_l0_g.data.mul_(0.5)
    elif how == "spectral_norm":
        layer.eval()
        parametrizations.spectral_norm(layer, "weight_hh_l0")
    elif how == "old_spectral_norm":
        nn.utils.spectral_norm(layer, "weight_hh_l0")
        layer.eval()
    elif how == "parametrized_weight_norm":
        parametrizations.weight_norm(layer, "weight_ih_l0")
        layer.parametrizations.weight_ih_l0.original0.data.mul_(2)
    elif how == "orthogonal":
        parametrizations.orthogonal(layer, "weight_hh_l0", orthogonal_map="householder")
    elif how == "prune":
        prune.l1_unstructured(layer, "weight_hh_l0", amount=0.5)
    elif how == "tied":
        layer.weight_hh_l0_reverse = layer.weight_hh_l0
    elif how == "hypernetwork":
        weight = layer.weight_hh_l0.detach()
        del layer.weight_hh_l0
        layer.scale = nn.Parameter(torch.tensor(0.5, dtype=weight.dtype))
        layer.weight_hh_l0 = weight * layer.scale
    return layer


HOW = (
    "data", "optimizer", "load", "apply", "swap", "weight_norm", "spectral_norm", "tied",
    "old_spectral_norm", "parametrized_weight_norm", "orthogonal", "prune", "hypernetwork",
)  # fmt: skip


@each
@pytest.mark.parametrize("how", HOW)
def test_weights_are_read_at_every_call(name, how, randn):
    # Something to be orthogonal has to be square, or taller than wide, as all of these are.
    theirs, ours = pair(name, bidirectional=True)
    temporal = sk.TemporalRNN.from_rnn(nn.RNN(C, H, bidirectional=True, dtype=torch.float64))
    same_as_temporal = temporal.to_rnn()
    for oracle, layer in ((theirs, ours), (same_as_temporal, temporal)):
        x = randn(T, B, C)
        before = layer(x)[0].detach()
        for one in (oracle, layer):
            torch.manual_seed(7)
            change(one, how)
        equal_results_and_gradients(oracle, layer, (x,))
        assert not torch.equal(layer(x)[0], before)


@each
def test_functional_calls_and_replicas(name, randn):
    theirs, ours = pair(name, num_layers=2)
    x = randn(T, B, C)
    other = {k: v.detach() * 0.5 for k, v in ours.named_parameters()}
    expected = functional_call(theirs, other, (x,))
    before = ours(x)[0]
    assert_close(flat(functional_call(ours, other, (x,))), flat(expected))
    assert torch.equal(ours(x)[0], before)
    replica = ours._replicate_for_data_parallel()
    for key, value in other.items():
        setattr(replica, key, value)
    assert_close(flat(replica(x)), flat(expected))
    assert torch.equal(ours(x)[0], before)


def test_stacked_parameters_are_those_in_use(randn):
    for how in HOW:
        layer = sk.TemporalRNN(C, H, dtype=torch.float64)
        change(layer, how)
        x = randn(B, T, C)
        output = layer(x)[0].unflatten(2, (2, H))  # a forward, before which hooks make weights
        assert_close(sk.temporal_rnn(x, *layer.stacked_parameters()), output)


# 9. The protocol of modules


@each
def test_copies(name, randn):
    ours = ours_of(name, num_layers=2, bidirectional=True)
    ours.note = {"of": "the user"}
    x = randn(T, B, C)
    expected = ours(x)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (
        copy.copy(ours),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
    ):
        assert twin.note == ours.note and type(twin) is type(ours)
        assert_close(flat(twin(x)), flat(expected))
    parametrizations.weight_norm(ours, "weight_hh_l1")
    assert_close(flat(copy.deepcopy(ours)(x)), flat(ours(x)))


@each
def test_a_layer_is_freed_when_it_is_dropped(name):
    ours = ours_of(name)
    total(ours(torch.randn(T, B, C, dtype=torch.float64))).backward()
    gone, weight = weakref.ref(ours), weakref.ref(ours.weight_hh_l0)
    gc.disable()
    try:
        del ours
        assert gone() is None and weight() is None, "without the collector"
    finally:
        gc.enable()


@each
def test_meta_and_fake_tensors(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours = getattr(sk, name)(C, H, 2, device="meta", bidirectional=True)
    output, last = ours(torch.randn(T, B, C, device="meta"))
    assert output.shape == (T, B, 2 * H) and output.is_meta
    assert all(s.shape == (4, B, H) and s.is_meta for s in flat(last))
    ours.to_empty(device="cpu").reset_parameters()
    assert ours(torch.randn(T, B, C))[0].isfinite().all()
    with FakeTensorMode():
        fake = getattr(sk, name)(C, H, bidirectional=True)
        for lengths in (None, torch.ones(B, dtype=torch.long)):
            output, last = fake(torch.randn(T, B, C), lengths=lengths)
            assert output.shape == (T, B, 2 * H)
            total((output, last)).backward()
        assert fake.weight_hh_l0.grad.shape == fake.weight_hh_l0.shape


@each
def test_hooks(name, randn):
    ours = ours_of(name)
    x, seen = randn(T, B, C), []
    ours.register_forward_pre_hook(lambda m, a: seen.append("before"))
    ours.register_forward_hook(lambda m, a, out: seen.append(out[0].shape))
    ours.register_full_backward_hook(lambda m, gi, go: seen.append(gi[0].shape))
    ours.register_state_dict_pre_hook(lambda *a: seen.append("state"))
    ours.weight_hh_l0.register_hook(lambda g: seen.append(g.shape))
    ours(x)[0].sum().backward()
    ours.state_dict()
    assert seen[:2] == ["before", (T, B, H)] and seen[-1] == "state"
    assert set(seen[2:-1]) == {(T, B, C), tuple(ours.weight_hh_l0.shape)}


# 10. Autograd


def as_function(layer, hx=None, **options):
    """The layer as a function of its input and parameters, that gives a tuple of tensors."""
    names = [k for k, _ in layer.named_parameters()]

    def call(x, *values):
        given = (x,) if hx is None else (x, hx)
        return tuple(
            flat(functional_call(layer, dict(zip(names, values, strict=True)), given, options))
        )

    return call, [p for _, p in layer.named_parameters()]


# Torch's own, at the first use of its formulas for forward mode.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@each
@forward_mode
@pytest.mark.parametrize("lengths", [None, [2, 3]], ids=["full", "lengths"])
def test_gradcheck(name, lengths, randn):
    layer = ours_of(name, 2, 2, num_layers=2, bidirectional=name == "RNN")
    call, parameters = as_function(layer, lengths=lengths)
    x = randn(3, 2, 2)
    values = [x, *parameters]
    torch.autograd.gradcheck(call, values, fast_mode=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, values, fast_mode=True)
    torch.autograd.gradcheck(call, values, fast_mode=True, check_forward_ad=True)


@each
@forward_mode
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # linearize's own
@pytest.mark.parametrize("lengths", [None, torch.tensor([1, 3])], ids=["full", "lengths"])
def test_function_transforms(name, lengths, randn):
    B, T = 2, 3
    _, ours = pair(name, 2, 2)
    call, parameters = as_function(ours, lengths=lengths)
    values = [p.detach() for p in parameters]
    x, t = randn(T, B, 2, grad=False), randn(T, B, 2, grad=False)

    def output(x):
        return call(x, *values)[0]

    expected, tangent = torch.autograd.functional.jvp(output, x, t)
    got = jvp(output, (x,), (t,))
    assert_close(got, (expected, tangent))
    if name != "GRU":  # it takes seconds, and what it calls is what it calls of an LSTM
        linear, push = torch.func.linearize(output, x)
        assert_close((linear, push(t)), (expected, tangent))
    assert_close(jacfwd(output)(x), jacrev(output)(x))
    assert_close(torch.func.functionalize(output)(x), expected)
    w = values[1]

    def loss(w):
        return call(x, values[0], w, *values[2:])[0].pow(2).sum()

    _, expected = torch.autograd.functional.hvp(loss, w, torch.ones_like(w))
    assert_close(jvp(torch.func.grad(loss), (w,), (torch.ones_like(w),))[1], expected)
    if name == "RNN":  # of gated cells the same, of a size at which it takes seconds
        assert_close(hessian(loss)(w).sum((2, 3)), expected)


@each
def test_gradients_of_some(name, randn):
    theirs, ours = pair(name, num_layers=2, bidirectional=True)
    x = randn(T, B, C)
    for choose in (lambda r: r[0], lambda r: flat(r[1])[0], lambda r: flat(r[1])[-1]):
        found = [
            torch.autograd.grad(
                total(choose(m(x))), [x, *m.parameters()], materialize_grads=True, allow_unused=True
            )
            for m in (theirs, ours)
        ]
        assert_close(found[1], found[0])
    for m in (theirs, ours):
        m.weight_hh_l0.requires_grad_(False)
        m.bias_ih_l1.requires_grad_(False)
        total(m(x.detach())).backward()
        assert m.weight_hh_l0.grad is None and m.bias_ih_l1.grad is None
    for a, e in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_close(a.grad, e.grad)
    for p in ours.parameters():
        p.requires_grad_(False)
    assert not ours(x.detach())[0].requires_grad


@each
def test_repeated_is_the_same_to_the_bit(name):
    ours = getattr(sk, name)(C, 33, 2, bidirectional=True)
    x = torch.randn(T, B, C, requires_grad=True)
    found = []
    for _ in range(2):
        result = ours(x)
        found.append([*flat(result), *torch.autograd.grad(total(result), [x, *ours.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@each
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_saved_tensors_hooks_checkpoints_and_anomalies(name, randn):
    theirs, ours = pair(name, num_layers=2, dropout=0.5)
    x = randn(T, B, C)

    def gradients(layer, run):
        torch.manual_seed(1)
        return torch.autograd.grad(total(run(layer, x)), [x, *layer.parameters()])

    expected = gradients(theirs, lambda layer, x: layer(x))
    again = gradients(ours, lambda m, x: checkpoint(m, x, use_reentrant=False))
    assert_close(again, expected)
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        assert_close(gradients(ours, lambda layer, x: layer(x)), expected)


# 11. Modes


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    ours = getattr(sk, name)(C, H, 2, bidirectional=True)
    x = torch.randn(T, B, C, requires_grad=True)
    hx = torch.randn(4, B, H)
    hx = (hx, hx) if name == "LSTM" else hx
    exact = ours(x, hx)
    with torch.autocast("cpu", dtype=dtype):
        result = ours(x, hx)
        twice = ours(x.to(dtype), hx)
    assert all(t.dtype == dtype for t in flat(result))
    assert_close(flat(twice), flat(result))
    for a, e in zip(flat(result), flat(exact), strict=True):
        assert_close(a.float(), e, rtol=0.05, atol=0.05)
    total(result).backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    with torch.autocast("cpu", dtype=dtype, enabled=False):
        assert ours(x)[0].dtype == torch.float32


@each
def test_inference_and_threads(name, randn):
    ours = ours_of(name, num_layers=2)
    x = randn(T, B, C, grad=False)
    expected = flat(ours(x))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert all(torch.equal(a, e) for a, e in zip(flat(ours(x)), expected, strict=True))
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(lambda _: ours(x), range(8)):
            assert torch.equal(result[0], expected[0])


class Tagged(torch.Tensor):
    pass


@each
def test_tensor_subclasses_are_kept(name):
    ours = getattr(sk, name)(C, H, 2, bidirectional=True)
    result = ours(torch.randn(T, B, C).as_subclass(Tagged))
    assert all(type(t) is Tagged for t in flat(result))


@each
def test_learned_first_states_and_truncated_backpropagation(name, randn):
    theirs, ours = pair(name)
    starts = [randn(1, 1, H), randn(1, 1, H)]
    found = []
    for layer in (theirs, ours):
        expanded = tuple(s.expand(1, B, H) for s in starts)
        state, losses = expanded if name == "LSTM" else expanded[0], []
        x = torch.ones(T, B, C, dtype=torch.float64)
        for piece in x.split(2):
            output, state = layer(piece, state)
            losses.append(total(output))
            state = tuple(s.detach() for s in state) if name == "LSTM" else state.detach()
        used = starts if name == "LSTM" else starts[:1]
        found.append(torch.autograd.grad(sum(losses), [*used, *layer.parameters()]))
    assert_close(found[1], found[0])


# 12. Beyond torch


@pytest.fixture
def graphs():
    """A compiler that counts what it is given."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


@each
def test_compiled_in_one_graph_for_all_lengths(name, graphs, randn):
    ours = ours_of(name, num_layers=2, bidirectional=True, batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, backend=graphs)
    for time in range(1, 17):
        x = randn(B, time, C, grad=False)
        assert_close(flat(compiled(x)), flat(ours(x)))
    assert graphs.frame_count <= 3


@each
def test_compiled_in_one_graph_for_all_batches_and_trained(name, graphs, randn):
    ours = ours_of(name, batch_first=True)
    compiled = torch.compile(ours, fullgraph=True, backend=graphs)
    for size in range(1, 13):
        x, lengths = randn(size, T, C), torch.arange(size) % T + 1
        found = []
        for call in (compiled, ours):
            output, last = call(x, lengths=lengths)
            output += 1
            found.append(torch.autograd.grad(total((output, last)), [x, *ours.parameters()]))
        assert_close(found[0], found[1])
    assert graphs.frame_count <= 3


@each
def test_export_for_any_time(name, randn):
    ours = ours_of(name, bidirectional=True, batch_first=True).eval()
    dynamic = {"input": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    program = torch.export.export(ours, (randn(B, T, C, grad=False),), dynamic_shapes=dynamic)
    for size, time in ((2, 3), (7, 40)):
        x = randn(size, time, C, grad=False)
        assert_close(flat(program.module()(x)), flat(ours(x)))


@each
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_for_any_time(name, randn):
    ours = ours_of(name, num_layers=2, bidirectional=True)
    traced = torch.jit.trace(ours, randn(T, B, C))
    x = randn(T + 3, B, C)
    found = [torch.autograd.grad(total(m(x)), [x, *ours.parameters()]) for m in (traced, ours)]
    assert_close(found[0], found[1])


@each
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_also_over_lengths(name, randn):
    ours = ours_of(name, batch_first=True)
    x, lengths = (
        randn(3, B, T, C, grad=False),
        torch.tensor([[1, 2, 3, 4, 5], [6] * 5, [0, 3, 1, 6, 2]]),
    )

    def call(x, lengths=None):
        return tuple(flat(ours(x, lengths=lengths)))

    for given in ((x,), (x, lengths)):
        each_alone = [call(*one) for one in zip(*given, strict=True)]
        assert_close(
            vmap(call)(*given), tuple(torch.stack(t) for t in zip(*each_alone, strict=True))
        )
    assert_close(vmap(call, (None, 0))(x[0], lengths)[0][1], call(x[0], lengths[1])[0])


# 13. replace_rnns


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(C, C), nn.LSTM(C, H, 2, batch_first=True))
        self.gru = nn.GRU(H, H, bidirectional=True)
        self.same = self.gru
        self.out = nn.ModuleDict({"rnn": nn.RNN(2 * H, H, nonlinearity="relu")})

    def forward(self, x):
        x = self.same(self.front(x)[0].transpose(0, 1))[0]
        return self.out["rnn"](x)[0].transpose(0, 1)


def test_replace_rnns(randn):
    model = Model().double()
    model.gru.weight_hh_l0.requires_grad_(False)
    model.gru.weight_ih_l0_reverse = model.gru.weight_ih_l0
    model.front[1].eval()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.out["rnn"], "weight_hh_l0")
    calls = []
    model.gru.register_forward_hook(lambda *a: calls.append(a))
    x = randn(B, T, C)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model(x).pow(2).sum().backward()
    optimizer.step()
    expected, parameters = model(x), dict(model.named_parameters())
    keys = list(model.state_dict())
    assert sk.replace_rnns(model) == ["front.1", "gru", "out.rnn"]
    assert type(model.front[1]) is sk.LSTM and type(model.out["rnn"]) is sk.RNN
    assert model.same is model.gru and type(model.gru) is sk.GRU
    assert list(model.state_dict()) == keys
    assert all(p is parameters[k] for k, p in model.named_parameters())
    assert not model.front[1].training and model.training
    assert not model.gru.weight_hh_l0.requires_grad
    assert model.gru.weight_ih_l0_reverse is model.gru.weight_ih_l0
    before = len(calls)
    assert_close(model(x), expected)
    assert len(calls) == before + 1
    optimizer.zero_grad()
    model(x).pow(2).sum().backward()
    optimizer.step()
    assert not torch.allclose(model(x), expected), "the optimizer goes on"
    assert sk.replace_rnns(model) == []


class Mine(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


def test_what_cannot_be_replaced_is_left_with_the_reason(randn):
    model = nn.ModuleDict(
        {
            "projected": nn.LSTM(C, H, proj_size=2),
            "mine": Mine(C, H),
            "parametrized": parametrizations.weight_norm(nn.GRU(C, H), "weight_hh_l0"),
            "cell": nn.LSTMCell(C, H),
            "plain": nn.GRU(C, H),
        }
    ).double()
    x = randn(T, B, C)
    expected = {k: flat(m(x[0] if k == "cell" else x)) for k, m in model.items()}
    replaced = sk.replace_rnns(model)
    assert replaced == ["plain"]
    assert set(replaced.left) == {"projected", "mine", "parametrized"}
    assert "proj_size = 0, got 2" in replaced.left["projected"]
    assert "got Mine" in replaced.left["mine"]
    for k, m in model.items():
        assert_close(flat(m(x[0] if k == "cell" else x)), expected[k])
    with pytest.raises(sk.ArgumentError, match="got str"):
        sk.replace_rnns("model")


@each
def test_a_bare_layer_is_replaced_too(name, randn):
    theirs = getattr(nn, name)(C, H, 2, dtype=torch.float64)
    weights, x = list(theirs.parameters()), randn(T, B, C)
    expected = theirs(x)
    assert sk.replace_rnns(theirs) == [""]
    assert type(theirs) is getattr(sk, name)
    assert all(a is b for a, b in zip(theirs.parameters(), weights, strict=True))
    assert_close(flat(theirs(x)), flat(expected))
    assert_close(flat(copy.deepcopy(theirs)(x)), flat(expected))


@each
def test_from_rnn_and_back_keep_what_a_call_means(name, randn):
    for options in ({}, {"batch_first": True, "bidirectional": True, "num_layers": 2}):
        theirs = getattr(nn, name)(2, H, dtype=torch.float64, **options).eval()
        theirs.weight_hh_l0.requires_grad_(False)
        ours = getattr(sk, name).from_rnn(theirs)
        back = ours.to_rnn()
        x = randn(2, 2, 2)  # a square: nothing fails when batch and time are swapped
        for layer in (ours, back):
            assert_close(flat(layer(x)), flat(theirs(x)))
            assert not layer.training and not layer.weight_hh_l0.requires_grad
            assert layer.weight_ih_l0 is not theirs.weight_ih_l0
        assert type(back) is type(theirs) and type(theirs) is getattr(nn, name)
        with pytest.raises(sk.ArgumentError, match="got Linear"):
            getattr(sk, name).from_rnn(nn.Linear(2, 2))


# 14. Costs and deployment


@each
def test_floating_point_operations_are_counted(name, randn):
    from torch.utils.flop_counter import FlopCounterMode

    ours = ours_of(name, num_layers=2, bidirectional=True)
    G = {"RNN": 1, "GRU": 3, "LSTM": 4}[name]
    once = 2 * T * B * G * 2 * H * ((C + H) + (2 * H + H))
    with FlopCounterMode(display=False) as counter:
        result = ours(randn(T, B, C))
        assert counter.get_total_flops() == once
        total(result).backward()
    assert counter.get_total_flops() == 3 * once


# step


@each
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("has_state", [False, True])
def test_steps_equal_the_whole_sequence(name, layers, has_state, randn):
    ours = ours_of(name, num_layers=layers)
    x, state = randn(T, B, C), first_states(name, randn, layers, B, H) if has_state else None
    output, last = ours(x, state)
    steps = []
    for x_t in x:
        y, state = ours.step(x_t, state)
        assert y.shape == (B, H) and flat(state)[0].shape == (layers, B, H)
        steps.append(y)
    stepped = (torch.stack(steps), state)
    assert_close(flat(stepped), flat((output, last)))
    weights = [x, *ours.parameters()]
    assert_close(
        torch.autograd.grad(total(stepped), weights),
        torch.autograd.grad(total((output, last)), weights),
    )
    for wrong in (x, x[0, 0], x[0, :, 1:]):
        with pytest.raises(sk.ArgumentError, match=f"{name}.step: x_t"):
            ours.step(wrong)
    with pytest.raises(sk.ArgumentError, match="bidirectional=False"):
        ours_of(name, bidirectional=True).step(x[0])
