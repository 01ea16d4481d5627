"""Inference calls of modules past the dispatcher: the same numbers, or the way through the ops."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import strnn_kernels as sk
from strnn_kernels.backends import native
from strnn_kernels.nn import bound
from strnn_kernels.nn.recurrent import _CELLS

C, H = 5, 19
CLASSES = (sk.RNN, sk.GRU, sk.LSTM)

pytestmark = pytest.mark.skipif(
    sk.backends()["cpu"] is not None, reason=f"no CPU kernels: {sk.backends()['cpu']}"
)


def quick(module, x, hx=None, **options):
    """What the quick way gives, or None."""
    with torch.no_grad():
        return bound.call(module, _CELLS[module.mode], x, hx, **options)


def general(module, x, hx=None):
    """What the ops give: in a trace, a record or a mode nothing goes past them."""
    with torch.no_grad(), torch.autograd.profiler.profile():
        assert quick(module, x, hx) is None
        return module(x, hx)


def flat(result):
    output, last = result
    return [output, *(last if isinstance(last, tuple) else [last])]


def assert_same(actual, expected):
    for a, e in zip(flat(actual), flat(expected), strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e)
        assert a.is_contiguous()


def states_of(module, B, dtype=torch.float32):
    D = 1 + module.bidirectional
    of_one = [torch.randn(module.num_layers * D, B, H, dtype=dtype) for _ in range(2)]
    return tuple(of_one) if isinstance(module, sk.LSTM) else of_one[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("options", "x_sizes"),
    [
        ({"batch_first": True}, (3, 7, C)),
        ({"batch_first": True, "bidirectional": True, "num_layers": 3}, (1, 7, C)),
        ({"bidirectional": True, "num_layers": 2, "bias": False}, (7, 1, C)),
        ({"num_layers": 2}, (1, 4, C)),
    ],
    ids=["batch", "deep", "time-first", "step"],
)
@pytest.mark.parametrize("has_hx", [False, True], ids=["", "hx"])
def test_same_as_through_the_ops(kind, options, x_sizes, has_hx, dtype):
    module = kind(C, H, **options, dtype=dtype)
    x = torch.randn(x_sizes, dtype=dtype)
    B = x_sizes[0] if options.get("batch_first") else x_sizes[1]
    hx = states_of(module, B, dtype) if has_hx else None
    expected = general(module, x, hx)
    found = quick(module, x, hx)
    assert found is not None
    assert_same(found, expected)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(module(x, hx), expected)


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "sigmoid"])
def test_temporal_rnn_too(activation):
    module = sk.TemporalRNN(C, H, activation=activation)
    x = torch.randn(4, 6, C)
    assert_same(quick(module, x), general(module, x))


def test_many_workers():
    module = sk.GRU(64, 64, batch_first=True, bidirectional=True)
    x = torch.randn(64, 60, 64)
    torch.set_num_threads(3)
    assert_same(quick(module, x), general(module, x))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_steps(kind):
    module = kind(C, H, num_layers=2, batch_first=True)
    x = torch.randn(3, 6, C)
    expected, last = general(module, x)
    state = None
    for t in range(6):
        found = quick(module, x[:, t].contiguous(), state, is_step=True)
        assert found is not None
        output, state = found
        torch.testing.assert_close(output, expected[:, t])
    for a, e in zip(flat((output, state)), flat((expected[:, -1], last)), strict=True):
        torch.testing.assert_close(a, e)


def test_outputs_are_the_callers_own():
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    first, last = quick(module, x)
    before = first.clone(), last.clone()
    quick(module, torch.randn(2, 3, C))
    assert torch.equal(first, before[0])
    last.zero_()
    assert torch.equal(first, before[0])


# What takes the way through the ops


@pytest.mark.parametrize(
    ("sizes", "options"),
    [((7, C), {}), ((4, 3, C), {}), ((0, 3, C), {"batch_first": True}), ((2, 3, C + 1), {})],
    ids=["unbatched", "time-first", "empty", "wrong size"],
)
def test_other_inputs(sizes, options):
    module = sk.RNN(C, H, **options)
    x = torch.randn(sizes)
    assert quick(module, x) is None
    if sizes[-1] == C and 0 not in sizes:
        with torch.no_grad():
            assert_same(module(x), general(module, x))


def test_views_and_wrappers():
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    quick(module, x)
    plain = general(module, -x)

    class Wrapped(torch.Tensor):
        pass

    others = {
        "strided": torch.randn(2, 3, 2 * C)[..., ::2],
        "negated": torch._neg_view(x),
        "subclass": x.as_subclass(Wrapped),
        "meta": x.to("meta"),
        "double": x.double(),
        "list": x.tolist(),
        "none": None,
    }
    for name, other in others.items():
        assert quick(module, other) is None, name
    with torch.no_grad():
        assert_same(module(others["negated"]), plain)


def test_freed_memory_is_an_error():
    module = sk.RNN(C, H, batch_first=True)
    x, hx = torch.randn(2, 3, C), torch.randn(1, 2, H)
    assert quick(module, x, hx) is not None
    for tensor, bytes_left in ((x, 8), (x, 0), (hx, 4)):
        tensor.untyped_storage().resize_(bytes_left)
        assert quick(module, x, hx) is None
        reason = "freed or is too short|out of bounds for storage"  # ours, or torch's of a view
        with torch.no_grad(), pytest.raises(RuntimeError, match=reason):
            module(x, hx)


def test_freed_weights_are_an_error():
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    assert quick(module, x) is not None
    module.weight_hh_l0.untyped_storage().resize_(0)
    assert quick(module, x) is None
    with torch.no_grad(), pytest.raises(RuntimeError, match="freed or is too short"):
        module(x)


@pytest.mark.parametrize("hx", [torch.zeros(1, 3, H), torch.zeros(1, 2, H).double(), "no", [0, 0]])
def test_wrong_states(hx):
    for module in (sk.RNN(C, H, batch_first=True), sk.LSTM(C, H, batch_first=True)):
        x = torch.randn(2, 3, C)
        assert quick(module, x, hx) is None
        with torch.no_grad(), pytest.raises(sk.ArgumentError, match="hx"):
            module(x, hx)


def test_states_of_two_directions_are_laid_out_anew():
    module = sk.GRU(C, H, batch_first=True, bidirectional=True)
    x, hx = torch.randn(3, 4, C), torch.randn(2, 3, H)
    assert quick(module, x, hx) is None
    assert quick(module, x) is not None
    with torch.no_grad():
        torch.testing.assert_close(module(x, hx), module.to_rnn()(x, hx))


def test_a_gradient_a_backend_or_a_mode():
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    cell = _CELLS[module.mode]
    assert quick(module, x) is not None
    assert bound.call(module, cell, x, None) is None  # gradients are wanted
    assert module(x)[0].requires_grad
    with torch.no_grad():
        with sk.use_backend("reference"):
            assert bound.call(module, cell, x, None) is None
        with torch.autocast("cpu"):
            assert bound.call(module, cell, x, None) is None
            assert module(x)[0].dtype == torch.bfloat16
        with torch.device("cpu"):
            assert bound.call(module, cell, x, None) is None
        assert torch.func.vmap(lambda row: module(row)[0])(x[None]).shape == (1, 2, 3, H)
        with torch.autograd.forward_ad.dual_level():
            assert bound.call(module, cell, x, None) is None
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            module(x)
        assert counter.get_total_flops() > 0


def test_dropout_in_training():
    module = sk.RNN(C, H, 2, dropout=0.5)
    x = torch.randn(1, 3, C)
    assert quick(module, x) is None
    assert quick(module.eval(), x) is not None


# The weights may change between calls


def _new_parameter(module):
    module.weight_hh_l0 = nn.Parameter(torch.randn(H, H))


def _new_data(module):
    module.weight_hh_l0.data = torch.randn(H, H)


def _transposed(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data.t()


def _in_place(module):
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)


def _no_parameter(module):
    weight = module.weight_hh_l0.detach().clone()
    del module.weight_hh_l0
    module.weight_hh_l0 = 3 * weight


def _weight_norm(module):
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")


def _state_dict(module):
    module.load_state_dict({n: 2 * v for n, v in module.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    "change",
    [_new_parameter, _new_data, _transposed, _in_place, _no_parameter, _weight_norm, _state_dict],
    ids=lambda change: change.__name__,
)
def test_weights_that_change(change):
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    before = quick(module, x)
    change(module)
    expected = general(module, x)
    with torch.no_grad():
        after = module(x)
    assert_same(after, expected)
    assert (before[0] - after[0]).abs().max() > 0 or change is _weight_norm


def _wrong_shape(module):
    module.weight_hh_l0 = nn.Parameter(torch.randn(H + 1, H))


def _wrong_size(module):
    module.hidden_size = H + 1


@pytest.mark.parametrize("change", [_wrong_shape, _wrong_size], ids=lambda change: change.__name__)
def test_weights_that_do_not_fit(change):
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    assert quick(module, x) is not None
    change(module)
    assert quick(module, x) is None


def test_a_dtype_without_kernels():
    module = sk.RNN(C, H, batch_first=True).to(torch.float8_e5m2)
    x = torch.randn(2, 3, C).to(torch.float8_e5m2)
    assert quick(module, x) is None
    with torch.no_grad(), pytest.raises(sk.BackendError, match="float8_e5m2"):
        module(x)


def test_no_memory_to_bind_with(monkeypatch):
    _, run, unbind = native._bound_functions()
    monkeypatch.setattr(native, "_bound_functions", lambda: (lambda *_: None, run, unbind))
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    assert quick(module, x) is None
    with torch.no_grad():
        assert_same(module(x), general(module, x))


def test_another_cell():
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    quick(module, x)
    module.mode = "RNN_RELU"
    assert_same(quick(module, x), general(module, x))


def test_dtypes_that_change():
    module = sk.LSTM(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    quick(module, x)
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        module.to(dtype)
        assert_same(quick(module, x.to(dtype)), general(module, x.to(dtype)))
        assert quick(module, x.to(torch.float16)) is None


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: m.to_rnn()],
    ids=["deepcopy", "copy", "pickle", "to_rnn"],
)
def test_copies_have_weights_of_their_own(copied):
    module = sk.RNN(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    expected = quick(module, x)
    twin = copied(module)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), expected)
        if copied is not copy.copy:
            twin.weight_hh_l0.zero_()
            assert_same(module(x), expected)
            assert (twin(x)[0] - expected[0]).abs().max() > 0
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.no_grad():
        assert_same(torch.load(file, weights_only=False)(x), expected)


def test_compiled_and_exported_calls_keep_the_op():
    module = sk.GRU(C, H, batch_first=True)
    x = torch.randn(2, 3, C)
    expected = quick(module, x)
    with torch.no_grad():
        program = torch.export.export(module, (x,))
    assert any("sweep_fwd" in str(node.target) for node in program.graph.nodes)
    assert_same(program.module()(x), expected)
