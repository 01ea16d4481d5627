"""The planner of the CUDA backend: a pure function of sizes and limits."""

import pytest

_planner = pytest.importorskip("strnn_kernels._planner", reason="_planner was not compiled")

H200 = (90, 132, 232448, 233472)
A100 = (80, 108, 166912, 167936)


def plan(device=H200, **changes):
    sizes = dict(B=288, N=62, D=4, C=5, H=30, K=10, groups=13, slots=14)
    kind = dict(dtype="float32", is_backward=False, is_gated=False)
    return _planner.plan_cuda_sweep(**(sizes | kind | changes), device=device)


@pytest.mark.parametrize("device", [H200, A100])
@pytest.mark.parametrize("H", [1, 30, 33, 64, 128, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("is_backward", [False, True])
def test_every_width_fits(H, dtype, is_backward, device):
    found = plan(device, H=H, dtype=dtype, is_backward=is_backward)
    assert found["shared_bytes"] <= device[2]
    assert found["threads"] % 32 == 0 and found["threads"] <= 256


def test_weights_stay_on_chip_while_they_fit():
    assert plan(H=128)["weights_in_shared"]
    assert plan(H=192, C=0, B=8)["weights_in_shared"]
    assert not plan(H=1024)["weights_in_shared"]


def test_every_multiprocessor_has_a_tile():
    for B in (1, 9, 64, 288, 5000):
        found = plan(B=B, H=64)
        tiles = -(-B // found["rows"]) * 4
        assert found["rows"] == 1 or tiles >= H200[1]


def test_too_wide_is_an_error_with_the_limit():
    with pytest.raises(RuntimeError, match="the device has 232448"):
        plan(H=100_000)


def test_unknown_dtype():
    with pytest.raises(ValueError, match="dtype must be float32"):
        plan(dtype="int8")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_backward", [False, True])
def test_16_bit_types_go_to_the_tensor_core(is_backward, dtype):
    for device in (H200, A100):
        for H in (1, 30, 64, 128, 256):
            found = plan(device, H=H, dtype=dtype, is_backward=is_backward)
            assert found["family"] == "tensor_core", H
        assert plan(device, H=257, dtype=dtype, is_backward=is_backward)["family"] == "general"
    turing = (75, 40, 65536, 65536)
    assert plan(turing, dtype=dtype, is_backward=is_backward)["family"] == "general"


def test_float32_stays_exact():
    assert plan(H=64)["family"] == "general"


def test_rows_follow_the_width_of_a_group():
    """Half a product of a chain is half the work; a grid's diagonal fills one with few rows."""
    chain = dict(dtype="bfloat16", N=512, D=2, C=0, K=0, groups=512, slots=1)
    assert plan(B=64, H=128, **chain)["rows"] == 8
    assert plan(B=4096, H=128, **chain)["rows"] == 16
    grid = dict(dtype="bfloat16", N=1024, D=4, C=128, K=0, groups=63, slots=34)
    assert plan(B=64, H=128, **grid)["rows"] <= 2


def test_long_chains_have_no_table_in_shared_memory():
    chain = dict(dtype="bfloat16", H=64, D=2, C=0, K=0, slots=1)
    assert plan(N=4096, groups=4096, **chain)["family"] == "tensor_core"
    assert plan(N=40_000, groups=40_000, **chain)["family"] == "general"
