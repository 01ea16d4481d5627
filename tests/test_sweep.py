"""sweep, gated_sweep and spatial_rnn: oracles, identities that hold for any kernel, edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strnn_kernels as sk
from strnn_kernels.notation import ACTIVATIONS

ACT = {"identity": lambda a: a, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
DAG = [
    [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0]],
    [[5], [], [1], [2, 1], [], []],
    [[], [], [], [], [], []],
]
TOPOLOGIES = {
    "corner": lambda: sk.Topology.grid(5, 7),
    "line": lambda: sk.Topology.grid(4, 3, neighbourhood="line"),
    "cross": lambda: sk.Topology.grid(3, 6, neighbourhood="cross"),
    "one": lambda: sk.Topology.grid(1, 1),
    "dag": lambda: sk.Topology.dag(DAG),
    "chain": lambda: sk.Topology.chain(11),
}


def sizes(topology):
    return topology.num_nodes, topology.num_directions


def weight(randn, D, H, P=3):
    return randn(D, H, H, scale=1 / (P * H**0.5))


# A direction starts in the corner (or side) it is named after: its predecessors lie that way.
OFFSETS = {
    "corner": [[(r, 0), (0, c), (r, c)] for r in (-1, 1) for c in (-1, 1)],
    "cross": [[(r, 0), (0, c)] for r in (-1, 1) for c in (-1, 1)],
    "line": [[(0, -1)], [(0, 1)], [(-1, 0)], [(1, 0)]],
}


def loop_over_cells(u, w, present, neighbourhood, act):
    """The recurrence cell by cell, on coordinates: shares nothing with Topology."""
    rows, cols = present.shape
    number = {}
    for r in range(rows):
        for c in range(cols):
            if present[r, c]:
                number[r, c] = len(number)
    h = {}
    for d, offsets in enumerate(OFFSETS[neighbourhood]):
        down = all(dr <= 0 for dr, _ in offsets)
        right = all(dc <= 0 for _, dc in offsets)
        for r in range(rows) if down else reversed(range(rows)):
            for c in range(cols) if right else reversed(range(cols)):
                if (r, c) not in number:
                    continue
                total = torch.zeros_like(u[:, 0, 0])
                for dr, dc in offsets:
                    total = total + h.get((d, r + dr, c + dc), 0)
                h[d, r, c] = ACT[act](u[:, number[r, c], d] + total @ w[d].T)
    D = len(OFFSETS[neighbourhood])
    return torch.stack([torch.stack([h[(d, *cell)] for cell in number], 1) for d in range(D)], 2)


@pytest.mark.parametrize("shape", [(4, 5), (1, 6), (6, 1), (3, 3)])
@pytest.mark.parametrize("has_holes", [False, True])
@pytest.mark.parametrize("neighbourhood", ["corner", "cross", "line"])
def test_equals_an_explicit_loop_over_cells(neighbourhood, has_holes, shape, randn, gradients):
    present = torch.ones(shape, dtype=torch.bool)
    if has_holes:
        present.view(-1)[[0, shape[0] * shape[1] // 2]] = False
    t = sk.Topology.grid(*shape, neighbourhood=neighbourhood, mask=present)
    N, D = sizes(t)
    u, w = randn(3, N, D, 7), weight(randn, D, 7)
    expected = loop_over_cells(u, w, present, neighbourhood, "tanh")
    actual = sk.sweep(u, w, t, activation="tanh")
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    for a, e in zip(gradients(actual, (u, w)), gradients(expected, (u, w)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("B", [1, 5])
@pytest.mark.parametrize("H", [1, 30, 33, 64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_sweep(name, activation, H, B, randn, agree):
    t = TOPOLOGIES[name]()
    N, D = sizes(t)
    mask = torch.rand(B, N) > 0.3
    inputs = randn(B, N, D, H), weight(randn, D, H), randn(B, D, H)
    agree(lambda m, u, w, h0: m.sweep(u, w, t, activation=activation), *inputs)
    agree(lambda m, u, w, h0: m.sweep(u, w, t, activation=activation, mask=mask, h0=h0), *inputs)


@pytest.mark.parametrize("H", [1, 30, 33, 64, 130])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_gated_sweep(name, H, randn, agree):
    t = TOPOLOGIES[name]()
    N, D = sizes(t)
    g, gate, w = randn(4, N, D, H), randn(4, N, D, H), weight(randn, D, H)
    agree(lambda m, g, gate, w: m.gated_sweep(g, gate, w, t), g, gate, w)


@pytest.mark.parametrize("C", [1, 5, 17, 70])
@pytest.mark.parametrize("projection_size", [0, 1, 3, 11])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_spatial_rnn(name, projection_size, C, randn, agree):
    t = TOPOLOGIES[name]()
    (N, D), B, H = sizes(t), 5, 18
    mask = torch.rand(B, N) > 0.3
    x, w_ih, w_hh, bias = randn(B, N, C), randn(D, H, C), weight(randn, D, H), randn(D, H)
    G = randn(D, projection_size, N, grad=False) if projection_size else None
    if projection_size:
        G[G.abs() < 0.5] = 0
        G.requires_grad_()
    for options in ({}, {"mask": mask}):
        agree(
            lambda m, x, w_ih, w_hh, bias, G, o=options: m.spatial_rnn(
                x, w_ih, w_hh, bias, t, activation="tanh", projection=G, **o
            ),
            *(x, w_ih, w_hh, bias, G),
        )
    agree(lambda m, x, wi, w, G: m.spatial_rnn(x, wi, w, None, t, projection=G), x, w_ih, w_hh, G)


def test_each_gradient_alone_equals_that_of_all(randn, gradients):
    """Frozen inputs change nothing for the others, and get none."""
    t = sk.Topology.grid(4, 4)
    made = [randn(6, 16, 3), randn(4, 9, 3), weight(randn, 4, 9), randn(4, 9), randn(4, 2, 16)]

    def run(inputs):
        return sk.spatial_rnn(*inputs[:4], t, activation="tanh", projection=inputs[4])

    together = gradients(run(made), made)
    for i, expected in enumerate(together):
        alone = [m.detach() for m in made]
        alone[i].requires_grad_()
        (only,) = gradients(run(alone), [alone[i]])
        torch.testing.assert_close(only, expected, rtol=1e-12, atol=1e-12)
        assert all(m.grad is None for m in made)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_adjoint_identity(name, randn):
    """<du, v> = <dh, sweep'(v)>: the backward is the transpose of the linearised forward."""
    t = TOPOLOGIES[name]()
    N, D = sizes(t)
    u, w = randn(3, N, D, 13), weight(randn, D, 13)
    h = sk.sweep(u, w, t, activation="tanh")
    dh, v = randn(3, N, D, 13, grad=False), randn(3, N, D, 13, grad=False)
    (du,) = torch.autograd.grad(h, u, dh)
    with torch.no_grad():
        pushed = sk.gated_sweep(v, 1 - h * h, w, t)
    torch.testing.assert_close((du * v).sum(), (dh * pushed).sum(), rtol=1e-12, atol=1e-12)
    # sweep'(v) itself, by a central difference.
    with torch.no_grad():
        up, down = (sk.sweep(u + e * v, w, t, activation="tanh") for e in (1e-5, -1e-5))
    torch.testing.assert_close(pushed, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_gradient_is_a_gated_sweep_on_the_reversed_topology(name, randn):
    t = TOPOLOGIES[name]()
    N, D = sizes(t)
    u, w = randn(2, N, D, 6), weight(randn, D, 6)
    h = sk.sweep(u, w, t, activation="sigmoid")
    dh = randn(2, N, D, 6, grad=False)
    (du,) = torch.autograd.grad(h, u, dh)
    expected = sk.gated_sweep(dh, h * (1 - h), w.transpose(1, 2), t.reversed())
    torch.testing.assert_close(du, expected, rtol=1e-12, atol=1e-12)


def on_grid(t, rows, cols):
    return t.unflatten(1, (rows, cols))


@pytest.mark.parametrize("neighbourhood", ["corner", "cross"])
def test_flips_permute_the_directions(neighbourhood, randn):
    rows, cols = 4, 6
    t = sk.Topology.grid(rows, cols, neighbourhood=neighbourhood)
    x, w_ih, w = randn(2, rows * cols, 3), randn(4, 5, 3), weight(randn, 4, 5)
    h = on_grid(sk.spatial_rnn(x, w_ih, w, None, t), rows, cols)
    # (cells flipped, which direction plays which): top-left, top-right, bottom-left, bottom-right
    for axes, swap in (([2], [1, 0, 3, 2]), ([1], [2, 3, 0, 1]), ([1, 2], [3, 2, 1, 0])):
        flipped = on_grid(x, rows, cols).flip(axes).flatten(1, 2)
        turned = on_grid(sk.spatial_rnn(flipped, w_ih[swap], w[swap], None, t), rows, cols)
        torch.testing.assert_close(turned.flip(axes)[:, :, :, swap], h, rtol=1e-12, atol=1e-12)


def test_transposing_the_grid_swaps_two_corners(randn):
    rows, cols, swap = 3, 5, [0, 2, 1, 3]
    x, w_ih, w = randn(2, rows * cols, 3), randn(4, 5, 3), weight(randn, 4, 5)
    h = on_grid(sk.spatial_rnn(x, w_ih, w, None, sk.Topology.grid(rows, cols)), rows, cols)
    x_t = on_grid(x, rows, cols).transpose(1, 2).flatten(1, 2)
    h_t = sk.spatial_rnn(x_t, w_ih[swap], w[swap], None, sk.Topology.grid(cols, rows))
    back = on_grid(h_t, cols, rows).transpose(1, 2)[:, :, :, swap]
    torch.testing.assert_close(back, h, rtol=1e-12, atol=1e-12)


def test_the_number_of_a_node_does_not_matter(randn):
    positions = [(r, c) for r in range(4) for c in range(5) if (r, c) != (1, 2)]
    order = torch.randperm(len(positions))
    u, w = randn(3, len(positions), 4, 6), weight(randn, 4, 6)
    h = sk.sweep(u, w, sk.Topology.cells(positions))
    shuffled = sk.Topology.cells([positions[i] for i in order])
    torch.testing.assert_close(sk.sweep(u[:, order], w, shuffled), h[:, order])


@pytest.mark.parametrize("neighbourhood", ["corner", "cross", "line"])
def test_masking_a_node_equals_leaving_it_out(neighbourhood, randn, gradients):
    present = torch.rand(5, 6) > 0.3
    full = sk.Topology.grid(5, 6, neighbourhood=neighbourhood)
    holes = sk.Topology.grid(5, 6, neighbourhood=neighbourhood, mask=present)
    keep = present.flatten()
    u, w = randn(3, 30, 4, 8), weight(randn, 4, 8)
    masked = sk.sweep(u, w, full, activation="sigmoid", mask=keep.expand(3, 30))
    smaller = sk.sweep(u[:, keep], w, holes, activation="sigmoid")
    torch.testing.assert_close(masked[:, keep], smaller)
    assert (masked[:, ~keep] == 0).all()
    for a, e in zip(gradients(masked[:, keep], (u, w)), gradients(smaller, (u, w)), strict=True):
        torch.testing.assert_close(a, e)


def test_sequences_do_not_see_each_other(randn):
    """A row of the batch gives the same alone, in any company and in any order."""
    t = sk.Topology.grid(4, 5)
    u, w, h0, mask = randn(37, 20, 4, 9), weight(randn, 4, 9), randn(37, 4, 9), torch.rand(37, 20)
    mask = mask > torch.rand(37, 1)
    together = sk.sweep(u, w, t, mask=mask, h0=h0)
    for b in (0, 17, 36):
        alone = sk.sweep(u[b : b + 1], w, t, mask=mask[b : b + 1], h0=h0[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-13, atol=1e-13)
    order = torch.randperm(37)
    permuted = sk.sweep(u[order], w, t, mask=mask[order], h0=h0[order])
    torch.testing.assert_close(permuted, together[order], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("projection_size", [0, 2])
def test_what_a_masked_node_holds_does_not_leak(projection_size, bad, randn, gradients):
    """Neither into outputs nor into gradients, also where a tile is masked in part."""
    t = sk.Topology.grid(4, 5)
    mask = torch.rand(9, 20) > 0.4
    mask[3] = False
    x, w_ih, w, bias = randn(9, 20, 6), randn(4, 10, 6), weight(randn, 4, 10), randn(4, 10)
    G = randn(4, projection_size, 20) if projection_size else None
    leaves = [v for v in (x, w_ih, w, bias, G) if v is not None]
    spoilt = torch.where(mask[..., None], x, bad).detach().requires_grad_()
    found = []
    for inputs in (x, spoilt):
        h = sk.spatial_rnn(inputs, w_ih, w, bias, t, activation="tanh", mask=mask, projection=G)
        found.append([h, *gradients(h, [inputs, *leaves[1:]])])
    for clean, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, clean)
    assert (found[1][1][~mask] == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_masked_pre_activation_or_cotangent_does_not_leak(bad, randn):
    t = sk.Topology.grid(4, 5)
    mask = torch.rand(9, 20) > 0.4
    live = mask[:, :, None, None]
    u, w, h0 = randn(9, 20, 4, 10), weight(randn, 4, 10), randn(9, 4, 10)
    spoilt = torch.where(live, u, bad).detach().requires_grad_()
    dh = randn(9, 20, 4, 10, grad=False)
    clean = sk.sweep(u, w, t, mask=mask, h0=h0)
    actual = sk.sweep(spoilt, w, t, mask=mask, h0=h0)
    torch.testing.assert_close(actual, clean)
    expected = torch.autograd.grad(clean, (u, w, h0), torch.where(live, dh, 0))
    got = torch.autograd.grad(actual, (spoilt, w, h0), torch.where(live, dh, bad))
    for a, e in zip(got, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_a_live_nan_reaches_every_descendant_and_no_other(randn):
    t = sk.Topology.grid(4, 5)
    u, w = randn(2, 20, 4, 3, grad=False), weight(randn, 4, 3)
    u[0, 7, :, 1] = float("nan")  # row 1, column 2
    for activation in ACTIVATIONS:
        h = sk.sweep(u, w, t, activation=activation).detach().unflatten(1, (4, 5))
        assert h[1].isfinite().all()
        reached = h[0].isnan().any(-1)
        expected = torch.zeros(4, 5, 4, dtype=torch.bool)
        for d, (r, c) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
            expected[1:, 2:, d] |= (r, c) == (-1, -1)
            expected[1:, :3, d] |= (r, c) == (-1, 1)
            expected[:2, 2:, d] |= (r, c) == (1, -1)
            expected[:2, :3, d] |= (r, c) == (1, 1)
        assert torch.equal(reached, expected)


def test_everything_masked(randn):
    t = sk.Topology.grid(3, 3)
    u, w, h0 = randn(2, 9, 4, 5), weight(randn, 4, 5), randn(2, 4, 5)
    h = sk.sweep(u, w, t, activation="sigmoid", mask=torch.zeros(2, 9, dtype=torch.bool), h0=h0)
    h.sum().backward()
    assert all((v == 0).all() for v in (h, u.grad, w.grad, h0.grad))


def test_states_do_not_alias_and_a_change_in_place_is_noticed(randn):
    t = sk.Topology.grid(3, 3)
    u, w = randn(2, 9, 4, 5), weight(randn, 4, 5)
    kept = u.detach().clone()
    h = sk.sweep(u, w, t, activation="identity")
    h.mul_(2)
    assert torch.equal(u, kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


@st.composite
def dags(draw):
    """Two directions over up to 9 nodes, each in a random order of its own."""
    N = draw(st.integers(1, 9))
    directions = []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(N)))
        before = {n: order[:i] for i, n in enumerate(order)}
        subsets = [
            draw(st.lists(st.sampled_from(before[n]), unique=True)) if before[n] else []
            for n in range(N)
        ]
        directions.append(subsets)
    return sk.Topology.dag(directions)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(t=dags(), B=st.integers(0, 20), H=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_dag(t, B, H, seed):
    make = torch.Generator().manual_seed(seed)
    N, D = sizes(t)

    def normal(*shape):
        return torch.randn(*shape, generator=make, dtype=torch.float64)

    inputs = [normal(B, N, D, H), normal(D, H, H) / (9 * H**0.5), normal(B, D, H)]
    mask = normal(B, N) > -0.5
    dh = normal(B, N, D, H)
    found = []
    for module in (sk, sk.reference):
        leaves = [v.clone().requires_grad_() for v in inputs]
        h = module.sweep(*leaves[:2], t, activation="tanh", mask=mask, h0=leaves[2])
        options = {"allow_unused": True, "materialize_grads": True}
        found.append([h, *torch.autograd.grad(h, leaves, dh, **options)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
