"""The categorical and dimensional model against its twin, in all its modes and cells."""

from __future__ import annotations

import pytest
import torch
from strnn_models.layers.losses import CombinedLoss
from strnn_models.reference import categorical_dimensional as twin
from strnn_models.systems.categorical_dimensional import CategoricalDimensional, category_map

import strnn_kernels as sk

LENGTHS = torch.tensor([4, 0, 3])


def model(small_cnn, **options):
    options = {"fc_size": 5, "dropout": 0.0, "hidden_size": 4, "backbone": small_cnn} | options
    return CategoricalDimensional(3, 2, **options).double()


def clips():
    return torch.randn(3, 4, 2, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("cell", ["gru", "elman", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_twin_agrees_on_every_cell(small_cnn, same_gradients, lengths, cell, bidirectional):
    net = model(small_cnn, cell=cell, bidirectional=bidirectional)
    same_gradients(
        net,
        lambda x: net(x, lengths),
        lambda x: twin.categorical_dimensional(net, x, lengths),
        clips(),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "categorical", "per": "clip"},
        {"mode": "dimensional", "bounded": True},
        {"mode": "combined", "per": "clip", "activation": "relu", "num_layers": 1},
        {"fc_size": 0, "pool": "flatten", "feature_size": 6, "num_layers": 3},
    ],
    ids=["categorical", "dimensional", "combined", "no fc"],
)
def test_the_twin_agrees_on_every_form(small_cnn, same_gradients, options):
    net = model(small_cnn, cell="elman", **options)
    same_gradients(
        net,
        lambda x: net(x, LENGTHS),
        lambda x: twin.categorical_dimensional(net, x, LENGTHS),
        clips(),
    )


def test_each_mode_has_its_heads(small_cnn):
    x = clips()
    categorical, dimensional, combined = (
        model(small_cnn, mode=mode)(x) for mode in ("categorical", "dimensional", "combined")
    )
    assert categorical.scores.shape == combined.scores.shape == (3, 4, 3)
    assert dimensional.values.shape == combined.values.shape == (3, 4, 2)
    assert categorical.values is None
    assert dimensional.scores is None
    assert model(small_cnn, per="clip")(x).scores.shape == (3, 3)


def test_a_causal_model_does_not_see_the_future(small_cnn):
    net, x = model(small_cnn), clips()
    later = x.clone()
    later[:, 3] = 9
    torch.testing.assert_close(net(later).values[:, :3], net(x).values[:, :3])
    assert not torch.allclose(net(later).values[:, 3], net(x).values[:, 3])


def test_it_learns_both_readings_from_stored_features():
    torch.manual_seed(3)
    net = CategoricalDimensional(2, 2, fc_size=0, hidden_size=16, num_layers=1, cell="elman")
    x = torch.randn(8, 6, 128)
    labels = (x[..., 0] > 0).long()
    targets = torch.stack([x[..., 0], -x[..., 1]], 2).tanh()
    loss, lengths = CombinedLoss(), torch.tensor([6, 6, 5, 4, 6, 3, 6, 6])
    mask = torch.arange(6) < lengths[:, None]
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        terms = loss(*net(x, lengths), labels, targets, mask)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        losses.append(terms)
    assert losses[-1].categorical < 0.3 * losses[0].categorical
    assert losses[-1].dimensional < 0.3 * losses[0].dimensional


@pytest.mark.parametrize("cell", ["gru", "elman"])
def test_gradients_of_the_input_in_eval_mode(small_cnn, cell):
    net = model(small_cnn, cell=cell).eval()
    x = clips().requires_grad_()
    net(x, LENGTHS).values[0, 2].sum().backward()
    assert x.grad[0, :3].flatten(1).any(1).all()
    assert not x.grad[0, 3].any()
    assert not x.grad[1:].any()


def test_the_map_has_the_moments_of_each_category():
    values, labels = torch.randn(5, 8, 2).double(), torch.randint(-1, 3, (5, 8))
    mask = torch.rand(5, 8) < 0.8
    found = category_map(values, labels, 4, mask)
    for k in range(3):
        of_k = values[mask & (labels == k)]
        assert found.counts[k] == len(of_k)
        torch.testing.assert_close(found.centres[k], of_k.mean(0))
        torch.testing.assert_close(found.spreads[k], torch.cov(of_k.T, correction=0))
    assert found.counts[3] == 0
    assert found.centres[3].isnan().all()


def test_wrong_arguments_are_refused(small_cnn):
    with pytest.raises(sk.ArgumentError, match="categorical, dimensional, combined"):
        model(small_cnn, mode="both")
    with pytest.raises(sk.ArgumentError, match="frame, clip"):
        model(small_cnn, per="video")
    with pytest.raises(sk.ArgumentError, match="elman, gru, lstm"):
        model(small_cnn, cell="rnn")
    with pytest.raises(sk.ArgumentError, match="shape"):
        model(small_cnn)(torch.randn(3, 4, 8, 8))
    with pytest.raises(sk.ArgumentError, match="labels must have shape"):
        category_map(torch.randn(2, 3, 2), torch.zeros(2, dtype=int), 3)
    with pytest.raises(sk.ArgumentError, match="below num_classes = 3"):
        category_map(torch.randn(2, 2), torch.tensor([0, 3]), 3)
