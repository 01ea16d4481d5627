"""Which backend takes a call, and what happens if none does: nothing falls back in silence."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch

import strnn_kernels as sk
from strnn_kernels.backends import select

CPU = torch.device("cpu")


def used():
    """The backend that a call would run on, by its name."""
    return select("test", CPU, torch.float32).name


def call():
    return sk.sweep(torch.ones(1, 2, 2, 1), torch.ones(2, 1, 1), sk.Topology.chain(2))


@pytest.fixture
def count_reference(monkeypatch):
    """How often the reference was called."""
    calls = []
    original = sk.reference.sweep
    monkeypatch.setattr(sk.reference, "sweep", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


def test_backends_lists_all_with_reasons():
    found = sk.backends()
    assert list(found) == ["reference", "cpu", "triton", "cuda"]
    assert found["reference"] is None and found["cpu"] is None
    for name in ("triton", "cuda"):
        assert found[name] is None or (isinstance(found[name], str) and found[name])


def test_the_fastest_is_the_default(count_reference):
    assert used() == "cpu"
    call()
    assert count_reference == []


def test_use_backend(count_reference):
    with sk.use_backend("reference"):
        assert used() == "reference"
        call()
        assert len(count_reference) == 1
        with sk.use_backend("cpu"):
            assert used() == "cpu"
            call()
        assert used() == "reference"
    assert used() == "cpu"
    call()
    assert len(count_reference) == 1


def test_use_backend_ends_with_an_exception():
    with pytest.raises(KeyError), sk.use_backend("reference"):
        raise KeyError
    assert used() == "cpu"
    with sk.use_backend("reference"):
        with pytest.raises(sk.BackendError), sk.use_backend("nonsense"):
            pass
        assert used() == "reference"
    assert used() == "cpu"


def test_use_backend_is_of_its_thread():
    seen = []
    with sk.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(used()))
        thread.start()
        thread.join()
        assert used() == "reference"
    assert seen == ["cpu"]


def test_use_backend_as_a_decorator():
    assert sk.use_backend("reference")(used)() == "reference"
    assert used() == "cpu"


def test_environment(monkeypatch, count_reference):
    monkeypatch.setenv("STRNN_BACKEND", "reference")
    assert used() == "reference"
    call()
    assert len(count_reference) == 1
    with sk.use_backend("cpu"):
        assert used() == "cpu"
    monkeypatch.setenv("STRNN_BACKEND", "")
    assert used() == "cpu"


@pytest.mark.parametrize("name", ["nonsense", "CPU", "gpu"])
def test_unknown_backend(name, monkeypatch):
    expected = f"must be one of cuda, triton, cpu, reference, got '{name}'"
    with pytest.raises(sk.BackendError, match=expected), sk.use_backend(name):
        pass
    monkeypatch.setenv("STRNN_BACKEND", name)
    with pytest.raises(sk.BackendError, match=expected):
        call()


@pytest.mark.parametrize("name", [None, "", 3, ["cpu"], torch.device("cpu")])
def test_a_name_that_is_none(name):
    with pytest.raises(sk.BackendError, match="must be one of"), sk.use_backend(name):
        pass


def test_an_unavailable_backend_says_why(monkeypatch):
    for name, reason in sk.backends().items():
        if reason is None:
            continue
        with pytest.raises(sk.BackendError) as caught, sk.use_backend(name):
            pass
        assert name in str(caught.value) and reason in str(caught.value)
        monkeypatch.setenv("STRNN_BACKEND", name)
        with pytest.raises(sk.BackendError) as caught:
            call()
        assert reason in str(caught.value)


def call_elsewhere():
    """What a call of sweep asks, on a device that no backend takes."""
    return select("sweep", torch.device("xpu"), torch.float32)


def test_refusals_name_every_backend(count_reference):
    with pytest.raises(sk.BackendError) as caught:
        call_elsewhere()
    lines = str(caught.value).splitlines()
    assert lines[0] == "sweep: no backend accepts this call"
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(
        ("cuda", "triton", "cpu", "reference")
    )
    assert "takes cpu tensors, got xpu" in lines[3] and "use_backend" in lines[4]
    assert count_reference == []


def test_a_requested_backend_that_refuses_is_not_replaced(count_reference):
    with sk.use_backend("cpu"), pytest.raises(sk.BackendError, match="got xpu") as caught:
        call_elsewhere()
    assert "reference" not in str(caught.value)
    assert count_reference == []


def test_a_dtype_that_no_backend_takes():
    u, w = torch.ones(1, 2, 2, 1), torch.ones(2, 1, 1)
    dtype = torch.float8_e4m3fn
    with pytest.raises(sk.BackendError, match="takes float32, float64, bfloat16, float16"):
        sk.sweep(u.to(dtype), w.to(dtype), sk.Topology.chain(2))


@pytest.mark.parametrize("first, second", [("cpu", "reference"), ("reference", "cpu")])
def test_backward_may_happen_under_another_backend(first, second, randn):
    """The backward belongs to the forward's graph, whatever is asked for when it runs."""
    t = sk.Topology.grid(3, 4)
    u, w = randn(2, 12, 4, 5), randn(4, 5, 5, scale=0.2)
    with sk.use_backend(first):
        y = sk.sweep(u, w, t, activation="tanh")
    with sk.use_backend(second):
        crossed = torch.autograd.grad(y.pow(2).sum(), (u, w))
    y = sk.sweep(u, w, t, activation="tanh")
    plain = torch.autograd.grad(y.pow(2).sum(), (u, w))
    for a, e in zip(crossed, plain, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_every_function_obeys_the_request(monkeypatch, randn):
    h, gate, G = randn(1, 2, 2, 1), randn(1, 2, 2, 1), randn(2, 1, 2)
    x, w_ih, w = randn(1, 2, 1), randn(2, 1, 1), randn(2, 1, 1)
    t = sk.Topology.chain(2)
    calls = {
        "sweep": (h, w, t),
        "gated_sweep": (h, gate, w, t),
        "sparse_projection": (h, G),
        "spatial_rnn": (x, w_ih, w, None, t),
        "temporal_rnn": (x, w_ih, w, None),
    }
    for name, arguments in calls.items():
        seen = []
        monkeypatch.setattr(sk.reference, name, lambda *a, seen=seen, **k: seen.append(1))
        getattr(sk, name)(*arguments)
        assert seen == []
        with sk.use_backend("reference"):
            getattr(sk, name)(*arguments)
        assert seen == [1], name


# A machine where nothing was compiled, or where the library is broken.

WITHOUT = """
    import sys, torch
    # An editable install finds modules of the package wherever the package itself lies.
    sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
    import strnn_kernels as sk
    print(sk.backends()["cpu"])
    u, w, t = torch.ones(1, 2, 2, 1), torch.ones(2, 1, 1), sk.Topology.chain(2)
    for attempt in (lambda: sk.sweep(u, w, t), lambda: sk.use_backend("cpu").__enter__()):
        try:
            attempt()
        except sk.BackendError as error:
            print(error)
        else:
            print("accepted")
    with sk.use_backend("reference"):
        print(sk.sweep(u, w, t).flatten().tolist())
"""


@pytest.mark.parametrize("library", [None, b"not a library"])
def test_without_a_compiled_library(library, tmp_path, run_python):
    source = Path(sk.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(source, tmp_path / "strnn_kernels", ignore=ignore)
    if library:
        (tmp_path / "strnn_kernels" / "_C.abi3.so").write_bytes(library)
    done = run_python(WITHOUT, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reason = "does not load" if library else "was not compiled"
    lines = done.stdout.splitlines()
    assert reason in lines[0]
    assert done.stdout.count(reason) >= 3 and "accepted" not in done.stdout
    assert "sweep: no backend accepts this call" in done.stdout
    assert 'use_backend("reference")' in done.stdout
    assert lines[-1] == "[1.0, 2.0, 2.0, 1.0]"
