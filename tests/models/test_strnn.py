"""STRNN against its twin made of reference loops, in float64, over all options."""

from __future__ import annotations

import copy
import importlib

import pytest
import strnn_models
import strnn_models.reference
import torch

import strnn_kernels as sk

B, T = 3, 4
SMALL = {
    "in_channels": 2,
    "num_classes": 4,
    "sample_length": T,
    "sp_hidden": 5,
    "tp_hidden": 6,
    "sp_projection": 3,
    "tp_projection": 2,
}
HOLES = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)


def pair(**options):
    """The model and its twin with the same parameters, all of them random, in float64."""
    torch.manual_seed(0)
    if not {"topology", "mask", "num_electrodes"} & set(options):
        options["topology"] = sk.Topology.grid(3, 4)
    twin = strnn_models.reference.STRNN(**(SMALL | options)).double()
    model = strnn_models.STRNN(**(SMALL | options)).double()
    model.load_state_dict(twin.state_dict())
    return model, twin


def assert_twins(model, twin, x, **inputs):
    """Same scores, same gradients of everything."""
    results = []
    for net in (model, twin):
        leaf = x.clone().requires_grad_()
        net.zero_grad()
        scores = net(leaf, **inputs)
        loss = scores.mul(torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum()
        (loss + net.penalty()).backward()
        grads = {name: p.grad for name, p in net.named_parameters()} | {"x": leaf.grad}
        results.append((scores, grads))
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():  # inference takes another way through the kernels
        torch.testing.assert_close(model(x, **inputs), results[1][0])


def clips(model, *shape):
    torch.manual_seed(2)
    shape = shape or (model.topology.num_nodes, model.in_channels)
    return torch.randn(B, T, *shape, dtype=torch.float64)


@pytest.mark.parametrize("combine", ["full", "scalar"])
@pytest.mark.parametrize("head", ["full", "rank1"])
@pytest.mark.parametrize("bias", ["recurrent", "all", "none"])
def test_the_twin_agrees_on_every_form(combine, head, bias):
    model, twin = pair(combine=combine, head=head, bias=bias, activation="tanh")
    assert_twins(model, twin, clips(model))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "identity"])
@pytest.mark.parametrize(
    "graph",
    [
        {"topology": sk.Topology.grid(2, 3, neighbourhood="line")},
        {"topology": sk.Topology.cells([(1, 1), (0, 0), (2, 1), (0, 1)])},
        {"topology": sk.Topology.dag([[[], [0], [0, 1]], [[1, 2], [2], []]])},
        {"mask": HOLES},
        {"mask": HOLES, "neighbourhood": "cross"},
    ],
    ids=["line", "cells", "dag", "mask", "cross"],
)
def test_the_twin_agrees_on_every_graph(graph, activation):
    model, twin = pair(**graph, activation=activation)
    assert_twins(model, twin, clips(model))


@pytest.mark.parametrize("cell", ["gru", "lstm", ("lstm", "elman"), ("elman", "gru")], ids=str)
@pytest.mark.parametrize("bias", ["recurrent", "none"])
def test_the_twin_agrees_on_every_cell(cell, bias):
    model, twin = pair(cell=cell, bias=bias)
    assert_twins(model, twin, clips(model))
    assert_twins(model, twin, clips(model), lengths=torch.tensor([4, 0, 3]))


def test_the_cap_of_seed_is_the_default():
    model, twin = pair(num_electrodes=62)
    assert model.topology == sk.Topology.montage("seed-62")
    assert_twins(model, twin, clips(model))
    cross = strnn_models.STRNN(neighbourhood="cross")
    assert cross.topology == sk.Topology.montage("seed-62", neighbourhood="cross")


@pytest.mark.parametrize("lengths", [[4, 1, 3], [0, 4, 2]])
def test_lengths(lengths):
    model, twin = pair(activation="tanh", bias="all")
    x, lengths = clips(model), torch.tensor(lengths)
    assert_twins(model, twin, x, lengths=lengths)
    padded = x.clone()
    for b, length in enumerate(lengths):
        padded[b, length:] = float("nan")
    assert_twins(model, twin, padded, lengths=lengths)
    torch.testing.assert_close(model(padded, lengths=lengths), model(x, lengths=lengths))
    for b, length in enumerate(lengths):
        if length:
            alone = model(x[b : b + 1, :length])
            torch.testing.assert_close(model(x, lengths=lengths)[b : b + 1], alone)


def test_electrodes_left_out():
    model, twin = pair(activation="sigmoid")
    x, N = clips(model), model.topology.num_nodes
    mask = torch.arange(B * T * N).view(B, T, N) % 5 != 0
    x[~mask] = float("inf")
    assert_twins(model, twin, x, mask=mask)
    assert_twins(model, twin, x, mask=mask, lengths=torch.tensor([2, 4, 1]))
    torch.testing.assert_close(
        model(x, mask=mask[:, 0] & mask.all(1)),
        model(x, mask=mask.all(1, keepdim=True).expand(B, T, N)),
    )


@pytest.mark.parametrize(
    "graph",
    [
        {"topology": sk.Topology.grid(3, 4)},
        {"mask": HOLES},
        {"topology": sk.Topology.cells([(1, 1), (0, 0), (2, 1), (0, 1)])},
        {"num_electrodes": 62},
    ],
    ids=["full", "mask", "cells", "cap"],
)
def test_grid_input(graph):
    model, twin = pair(**graph)
    x = clips(model, model.in_channels, *model.grid_size)
    assert_twins(model, twin, x)
    row, col = torch.tensor(model.topology.positions.tolist()).unbind(1)
    torch.testing.assert_close(model(x), model(x[..., row, col].transpose(2, 3)))


def test_nodes_of_a_masked_grid_are_its_true_cells_row_by_row():
    model, _ = pair(mask=HOLES)
    x = clips(model, model.in_channels, 3, 3)
    torch.testing.assert_close(model(x), model(x[..., HOLES].transpose(2, 3)))


def test_names_and_sizes_that_users_know():
    model = strnn_models.STRNN(62, 5, 3)
    assert model(torch.randn(2, 9, 62, 5)).shape == (2, 3)
    named = strnn_models.STRNN(
        num_electrodes=62,
        in_channels=5,
        num_classes=3,
        sample_length=9,
        sp_hidden=30,
        tp_hidden=30,
        sp_projection=10,
        tp_projection=5,
    )
    named.load_state_dict(model.state_dict())
    sizes = {name: tuple(p.shape) for name, p in named.named_parameters()}
    assert sizes["spatial.weight_ih"] == (4, 30, 5)
    assert sizes["spatial.projection.weight"] == (4, 10, 62)
    assert sizes["combine.linear.weight"] == (30, 4 * 10 * 30)
    assert sizes["temporal_projection.weight"] == (2, 5, 9)
    assert sizes["head.linear.weight"] == (3, 2 * 5 * 30)
    assert not any(
        "bias" in name for name in sizes if not name.startswith(("spatial.", "temporal."))
    )


def test_penalty_proximal_step_and_sparsity():
    model, _ = pair(lambda1=0.5, lambda2=2.0)
    G, Q = model.spatial.projection.weight, model.temporal_projection.weight
    before = copy.deepcopy((G.detach(), Q.detach()))
    torch.testing.assert_close(model.penalty(), 0.5 * G.abs().sum() + 2 * Q.abs().sum())
    torch.testing.assert_close(model.penalty(0, 1), Q.abs().sum())
    assert model.sparsity() == {"spatial": 0, "temporal": 0}
    model.proximal_step_(0.2)
    for weight, old, amount in ((G, before[0], 0.1), (Q, before[1], 0.4)):
        torch.testing.assert_close(weight.detach(), old.sign() * (old.abs() - amount).clamp(min=0))
    assert model.sparsity() == {
        "spatial": pytest.approx(float((G == 0).double().mean())),
        "temporal": pytest.approx(float((Q == 0).double().mean())),
    }
    assert 0 < model.sparsity()["spatial"] < 1


def test_gradients_accumulate():
    """No two parameters may share the memory of their gradients."""
    model, _ = pair(bias="all")
    x = clips(model)
    model(x).sum().backward()
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 2 * once[name], msg=lambda m, name=name: f"{name}: {m}")


def test_eval_copies_and_empty_batches():
    model, _ = pair()
    x = clips(model)
    clone = copy.deepcopy(model).eval()
    torch.testing.assert_close(clone(x), model(x))
    leaf = x.requires_grad_()
    clone(leaf).sum().backward()  # saliency: gradients of the input in eval mode
    assert leaf.grad.abs().sum() > 0
    assert clone(x[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_electrodes": 32}, "pass topology="),
        ({"num_electrodes": 5, "topology": sk.Topology.grid(2, 2)}, "num_electrodes is 5"),
        ({"mask": HOLES, "topology": sk.Topology.grid(3, 3)}, "pass it alone"),
        ({"mask": HOLES[0]}, r"mask must have shape \(rows, cols\), got \(3,\)"),
        ({"neighbourhood": "knight"}, "neighbourhood must be one of corner, cross"),
        ({"combine": "sum"}, "combine must be one of full, scalar, got 'sum'"),
        ({"head": "rank2"}, "head must be one of full, rank1"),
        ({"bias": True}, "bias must be one of recurrent, all, none"),
        ({"activation": "gelu"}, "gelu"),
        ({"cell": "tree"}, "cell must be one of elman, gru, lstm, got 'tree'"),
        ({"cell": ("gru", "tree")}, "cell must be one of elman, gru, lstm, got 'tree'"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(sk.ArgumentError, match=message):
        strnn_models.STRNN(**options)


def test_inputs_that_are_refused():
    model, _ = pair(topology=sk.Topology.grid(3, 4))
    good = clips(model)
    for x in (good[0], good[..., :1], good[:, :, 1:], torch.cat([good, good], 1), good[:, :0]):
        with pytest.raises(sk.ArgumentError, match=r"x must have shape .* 12, 2\) or .* 2, 3, 4\)"):
            model(x)
    with pytest.raises(sk.ArgumentError, match=r"lengths must be int of shape \(batch,\) = \(3,\)"):
        model(good, lengths=torch.tensor([1, 2]))
    with pytest.raises(sk.ArgumentError, match="lengths"):
        model(good, lengths=torch.tensor([1, 2, 5]))
    with pytest.raises(sk.ArgumentError, match="mask must be bool"):
        model(good, mask=torch.ones(B, 12))
    no_grid, _ = pair(topology=sk.Topology.dag([[[], [0]]]))
    with pytest.raises(sk.ArgumentError, match=r"= \(.., 1 to 4, 2, 2\), got"):
        no_grid(clips(no_grid, 2, 1, 2))


@pytest.mark.parametrize("name", ["strnn", "attention_pooling", "backbone", "losses"])
def test_modules_have_their_earlier_names_too(name):
    folder = "systems" if name in ("strnn", "attention_pooling") else "layers"
    earlier = importlib.import_module(f"strnn_models.{name}")
    assert earlier is importlib.import_module(f"strnn_models.{folder}.{name}")
    assert earlier is getattr(strnn_models, name)
