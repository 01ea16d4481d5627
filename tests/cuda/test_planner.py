"""The planner of the CUDA backend: a pure function of sizes and limits."""

import json
import re
from pathlib import Path

import pytest

_planner = pytest.importorskip("strnn_kernels._planner", reason="_planner was not compiled")

H200 = (90, 132, 232448, 233472)
A100 = (80, 108, 166912, 167936)


def plan(device=H200, **changes):
    sizes = dict(B=288, N=62, D=4, C=5, H=30, K=10, groups=13, slots=14)
    kind = dict(dtype="float32", is_backward=False)
    return _planner.plan_cuda_sweep(**(sizes | kind | changes), device=device)


@pytest.mark.parametrize("device", [H200, A100])
@pytest.mark.parametrize("H", [1, 30, 33, 64, 128, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("is_backward", [False, True])
def test_every_width_fits(H, dtype, is_backward, device):
    found = plan(device, H=H, dtype=dtype, is_backward=is_backward)
    assert found["shared_bytes"] <= device[2]
    assert found["threads"] % 32 == 0 and found["threads"] <= 256


@pytest.mark.parametrize("is_backward", [False, True])
def test_float32_goes_by_rows_while_registers_hold_the_weights(is_backward):
    for device in (H200, A100):
        for H, width in [(1, 32), (32, 32), (33, 64), (65, 96), (128, 128)]:
            found = plan(device, H=H, is_backward=is_backward)
            assert found["family"] == "row"
            assert found["threads"] == width * found["rows"] and found["threads"] <= 128
            assert (found["rows"] > 1) == (H <= 32)
        assert plan(device, H=129, is_backward=is_backward)["family"] == "level"
        assert plan(device, dtype="float64", is_backward=is_backward)["family"] == "level"


def test_rows_take_few_inputs_and_project_few_rows():
    assert plan(H=128, C=32)["takes_x"] and not plan(C=33)["takes_x"]
    assert plan(H=64, K=16)["projects"]
    assert not plan(H=64, K=17)["projects"] and not plan(H=65)["projects"]


def test_rows_in_turn():
    """So that the sums that each CTA leaves are few."""
    assert plan(B=7, H=64)["ctas"] == 7
    for is_backward in (False, True):
        found = plan(B=5000, H=64, is_backward=is_backward)
        assert found["ctas"] == found["ctas_per_sm"] * H200[1] // 4 < 5000
    assert plan(B=5000)["ctas"] * plan(B=5000)["rows"] < 5000


def test_rows_of_a_cta_fill_registers():
    """The field's backward in one wave: CTAs of two rows, of which five fit; of four, two would."""
    found = plan(is_backward=True)
    assert (found["rows"], found["ctas_per_sm"]) == (2, 5)
    assert found["ctas"] * found["rows"] == 288
    assert plan(is_backward=True, B=5000)["rows"] == 4  # all rounds are full


def test_registers_are_what_the_compiler_took():
    """Of each kernel as planned, and by no more than two steps of eight too many."""
    budget = json.loads(Path(__file__).with_name("budget.json").read_text())
    most: dict[tuple, int] = {}
    for kernels in budget.values():
        for name, used in kernels.items():
            kind, *words = re.findall(r"\w+", name)
            if kind == "sweep_row_kernel":
                is_gated = words[0].startswith("Cell")
                key = ("row", int(words[-1]), "Backward" in words[0], is_gated, False)
            elif kind == "sweep_gated_tensor_kernel":
                # A plan of a cell and pass is one of all.
                key = ("tensor_core", 16 * int(words[-1]), None, True, False)
            elif kind in ("sweep_forward_tensor_kernel", "sweep_backward_tensor_kernel"):
                projects = words[-1] == "true"
                key = ("tensor_core", 16 * int(words[2]), "backward" in kind, False, projects)
            else:
                continue
            most[key] = max(most.get(key, 0), used)
    for (family, H, is_backward, is_gated, projects), used in most.items():
        found = plan(
            H=H, dtype="float32" if family == "row" else "bfloat16", K=10 if projects else 0,
            is_backward=bool(is_backward), cell=5 if is_gated else 0, B=1,
        )  # fmt: skip
        assert (found["family"], found["projects"]) == (family, projects)
        assert used <= found["registers"] < used + 24, (family, H, is_backward, is_gated, projects)
    assert len(most) == 6 + 2 + 4 + 20


def test_two_ctas_share_a_multiprocessor_where_they_can():
    long = dict(N=5000, D=2, C=0, K=0, groups=5000, slots=1, H=128)
    assert 2 * (plan(**long)["shared_bytes"] + 1024) <= H200[3]
    found = plan(**long | dict(N=10_000, groups=10_000))
    assert found["family"] == "row" and 2 * found["shared_bytes"] > H200[3]


def test_too_wide_is_an_error_with_the_limit():
    with pytest.raises(RuntimeError, match=r"H = 100000 needs .* the device has 16384"):
        plan(device=(80, 108, 16384, 16384), H=100_000)


@pytest.mark.parametrize("size", [0, -1, 2**31, 2**62, -(2**63)])
@pytest.mark.parametrize("name", ["N", "D", "H", "groups", "slots"])
def test_sizes_that_none_can_have(name, size):
    with pytest.raises(ValueError, match="plan_cuda_sweep: N, D, H, groups, slots"):
        plan(**{name: size})


@pytest.mark.parametrize("at", range(4))
def test_limits_that_no_device_has(at):
    with pytest.raises(ValueError, match="the other limits in 0"):
        plan(tuple(-1 if i == at else limit for i, limit in enumerate(H200)))
    with pytest.raises(ValueError, match="multiprocessors"):
        plan((90, 0, *H200[2:]))


def test_too_many_pairs_are_an_error():
    with pytest.raises(RuntimeError, match=r"N = 65536 and B = 65536 has more than 2\*\*31 - 1"):
        plan(B=2**16, N=2**16, H=1, C=0, K=0, dtype="float64")


def test_a_product_of_sizes_that_wraps():
    with pytest.raises(ValueError, match="up to 2"):
        plan(B=2**31 - 1, N=2**31 - 1)


WIDE = dict(B=64, N=512, D=2, C=0, H=1024, K=0, groups=512, slots=1, dtype="bfloat16")


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("H, cluster", [(257, 8), (512, 8), (513, 16), (1024, 16)])
def test_wide_16_bit_states_take_the_smallest_cluster(H, cluster, dtype, is_backward):
    found = plan(**WIDE | dict(H=H, dtype=dtype, is_backward=is_backward))
    assert (found["family"], found["cluster"]) == ("cluster", cluster)
    assert found["shared_bytes"] <= H200[2]


def test_a_part_of_a_device_has_smaller_clusters():
    assert plan(**WIDE, max_cluster=8)["family"] == "level"
    assert plan(**WIDE | dict(H=512), max_cluster=8)["family"] == "cluster"


def test_half_tiles_while_every_cta_has_a_multiprocessor():
    for B, H, rows in [(64, 1024, 16), (32, 1024, 8), (64, 512, 8), (65, 512, 16), (1, 300, 8)]:
        assert plan(**WIDE | dict(B=B, H=H))["rows"] == rows


def test_half_tiles_while_all_clusters_run_at_once():
    """Clusters of a size may leave some of the multiprocessors over, as the device says."""
    kind = WIDE | dict(B=32)
    assert plan(**kind)["rows"] == 8
    assert plan(**kind, clusters=(66, 33, 16, 8))["rows"] == 8
    assert plan(**kind, clusters=(66, 33, 16, 7))["rows"] == 16
    assert plan(**kind | dict(H=512), clusters=(66, 33, 16, 7))["rows"] == 8


def test_two_ctas_of_a_narrow_cluster_share_a_multiprocessor():
    assert 2 * (plan(**WIDE | dict(H=512))["shared_bytes"] + 1024) <= H200[3]


def test_nodes_of_a_chunk_are_bounded_by_groups_and_memory():
    grid = dict(N=1024, groups=63, slots=34, D=4)
    assert plan(**WIDE | dict(H=257) | grid)["nodes"] == 4
    assert plan(**WIDE | grid)["nodes"] == 1
    assert plan(**WIDE | grid | dict(slots=200))["family"] == "level"


@pytest.mark.parametrize(
    "changes",
    [
        dict(H=1025),
        dict(dtype="float32"),
        dict(dtype="float64", H=512),
        dict(device=A100),
        dict(H=20_000, dtype="float32"),
    ],
    ids=str,
)
def test_without_a_cluster_wide_states_go_level_by_level(changes):
    found = plan(**WIDE | changes)
    assert (found["family"], found["cluster"]) == ("level", 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("cell", [4, 5])
def test_gated_cells_of_16_bits_go_to_the_tensor_core(cell, is_backward, dtype):
    kind = dict(dtype=dtype, is_backward=is_backward, cell=cell, mean=True)
    for H, warps in [(1, 1), (16, 1), (17, 2), (33, 4), (65, 8), (128, 8)]:
        found = plan(H=H, **kind)
        assert (found["family"], found["threads"]) == ("tensor_core", 32 * warps), H
        assert not found["takes_x"] and not found["projects"]
        assert found["ctas"] * 4 <= found["ctas_per_sm"] * H200[1]
    assert plan(H=129, **kind)["family"] == "level"


def test_gated_cells_that_do_not_fit_go_level_by_level():
    """What is carried and inputs of all gates take shared memory."""
    kind = dict(dtype="bfloat16", cell=5, mean=True, H=128, is_backward=True, C=64, K=0)
    for length, families in [(128, "tensor_core"), (8192, "level")]:
        chain = dict(N=length, D=2, groups=length, slots=1)
        assert plan(**kind, **chain)["family"] == families
    assert plan(A100, **kind, N=128, D=2, groups=128, slots=1)["family"] == "tensor_core"
    assert plan(**kind, N=1024, D=4, groups=63, slots=200)["family"] == "level"


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("cell", [4, 5])
def test_narrow_gated_cells_of_float32_go_by_rows(cell, is_backward):
    kind = dict(is_backward=is_backward, cell=cell, mean=True)
    for device in (H200, A100):
        for H in (1, 30, 32):
            found = plan(device, H=H, **kind)
            assert (found["family"], found["threads"]) == ("row", 128)
            assert not found["takes_x"] and not found["projects"]
        assert plan(device, H=33, **kind)["family"] == "level"
        assert plan(device, dtype="float64", **kind)["family"] == "level"


@pytest.mark.parametrize("dtype, H", [("float32", 60), ("bfloat16", 512)])
@pytest.mark.parametrize("is_backward", [False, True])
def test_what_other_families_lack_goes_level_by_level(dtype, H, is_backward):
    kind = dict(dtype=dtype, H=H, is_backward=is_backward)
    assert plan(**kind)["family"] != "level"
    lstm, mean = plan(**kind, cell=5), plan(**kind, mean=True)
    assert lstm["family"] == mean["family"] == "level"
    # Forward, a tile has a quarter of the units.
    assert (lstm["ctas"] > mean["ctas"]) == (not is_backward and mean["ctas"] < 132)


@pytest.mark.parametrize("is_backward", [False, True])
def test_means_of_elman_cells_go_level_by_level(is_backward):
    kind = dict(dtype="bfloat16", H=30, is_backward=is_backward)
    assert plan(**kind)["family"] != "level"
    assert plan(**kind, mean=True)["family"] == "level"


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
        assert plan(device, H=257, dtype=dtype, is_backward=is_backward)["family"] != "tensor_core"
    turing = (75, 40, 65536, 65536)
    assert plan(turing, dtype=dtype, is_backward=is_backward)["family"] == "level"


@pytest.mark.parametrize("is_backward", [False, True])
def test_tensor_core_projects_where_its_sums_fit(is_backward):
    """Up to 16 rows of the weight, in tiles of few rows of B; a kernel of its own beyond."""
    kind = dict(dtype="bfloat16", is_backward=is_backward)
    assert plan(**kind)["projects"] and plan(**kind)["rows"] <= 2
    assert plan(**kind, K=16)["projects"] and not plan(**kind, K=17)["projects"]
    assert not plan(**kind, K=0)["projects"]
    many = dict(N=128, D=2, C=0, H=128, groups=128, slots=1, B=4096)
    assert not plan(**kind, **many)["projects"] and plan(**kind, **many)["rows"] == 16
    assert plan(**kind, **many | dict(B=8))["projects"]


def test_rows_follow_the_width_of_a_group():
    """Half a product of a chain is half the work; a grid's diagonal fills one with few rows."""
    chain = dict(dtype="bfloat16", N=512, D=2, C=0, K=0, groups=512, slots=1)
    assert plan(B=64, H=128, **chain)["rows"] == 8
    assert plan(B=4096, H=128, **chain)["rows"] == 16
    grid = dict(dtype="bfloat16", N=1024, D=4, C=128, K=0, groups=63, slots=34)
    assert plan(B=64, H=128, **grid)["rows"] <= 2


@pytest.mark.parametrize(
    "dtype, family, most", [("bfloat16", "tensor_core", 8192), ("float32", "row", 12_000)]
)
def test_long_chains_have_no_table_in_shared_memory(dtype, family, most):
    chain = dict(dtype=dtype, H=64, D=2, C=0, K=0, slots=1)
    assert plan(N=most, groups=most, **chain)["family"] == family
    assert plan(N=40_000, groups=40_000, **chain)["family"] == "level"
