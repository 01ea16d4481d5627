"""The CNN-IRNN against its twin, its readouts, and the fusion of modalities."""

from __future__ import annotations

import pytest
import torch
from strnn_models.layers import fusion
from strnn_models.layers.fusion import (
    FeatureFusion,
    fuse_decisions,
    search_decision_weights,
    search_subsets,
)
from strnn_models.reference import cnn_irnn as twin
from strnn_models.systems.cnn_irnn import (
    CNNIRNN,
    KahouCNN,
    KahouFrameClassifier,
    clip_log_probs,
    crop_and_flip,
)

import strnn_kernels as sk

LENGTHS = torch.tensor([4, 1, 3])


def model(small_cnn, **options):
    """A small model in float64 whose parameters are large enough to matter."""
    net = CNNIRNN(5, 7, backbone=small_cnn, input_std=0.3, **options).double()
    torch.nn.init.normal_(net.output.weight)
    torch.nn.init.normal_(net.rnn.weight_hh_l0, std=0.3)
    return net


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("window", [1, 3])
def test_the_twin_agrees(small_cnn, same_gradients, lengths, readout, window):
    net = model(small_cnn, window=window, readout=readout)
    x = torch.randn(3, 4, 2, 5, 4, dtype=torch.float64)
    same_gradients(
        net,
        lambda x: net(x, lengths),
        lambda x: twin.cnn_irnn(net, x, lengths, readout),
        x,
    )


def test_the_twin_agrees_on_votes_and_on_clips_without_frames(small_cnn):
    net = model(small_cnn)
    x, lengths = torch.randn(3, 4, 2, 5, 4, dtype=torch.float64), torch.tensor([4, 0, 3])
    for readout in ("vote", "last", "mean"):
        torch.testing.assert_close(
            net(x, lengths, readout=readout), twin.cnn_irnn(net, x, lengths, readout)
        )


def test_the_readouts_differ_where_they_should():
    log_probs = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 0.2, 0.8]])
    scores = (log_probs + 1e-9).log()[None]
    lengths = torch.tensor([3])
    last, mean, vote = (clip_log_probs(scores, lengths, r).exp() for r in ("last", "mean", "vote"))
    torch.testing.assert_close(last, torch.tensor([[0.0, 1.0, 0.0]]))
    torch.testing.assert_close(mean, torch.tensor([[0.4, 0.6, 0.0]]))
    torch.testing.assert_close(vote, torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    torch.testing.assert_close(clip_log_probs(scores, None, "last").exp()[0], log_probs[3])


def test_log_probabilities_of_halves_are_single_precision():
    scores = torch.randn(2, 3, 4).bfloat16()
    for readout in ("last", "mean", "vote"):
        assert clip_log_probs(scores, None, readout).dtype == torch.float32


def test_it_starts_as_an_irnn():
    net = CNNIRNN(readout="mean")
    torch.testing.assert_close(net.rnn.weight_hh_l0.detach(), torch.eye(200))
    assert 0 < net.rnn.weight_ih_l0.std() < 2e-3
    assert {name for name, _ in net.rnn.named_parameters()} == {"weight_ih_l0", "weight_hh_l0"}
    assert net.output.weight.abs().max() <= 0.01


def test_the_authors_cnn_has_the_sizes_of_their_code():
    cnn = KahouCNN()
    assert cnn(torch.randn(2, 1, 44, 44)).shape == (2, 32, 11, 11)
    net = CNNIRNN(backbone=cnn, pool="flatten")
    assert net.rnn.input_size == 3872
    assert net(torch.randn(1, 2, 1, 44, 44)).shape == (1, 7)
    whole = KahouFrameClassifier()
    assert whole(torch.randn(2, 1, 44, 44)).shape == (2, 7)
    assert sum(p.numel() for p in whole.parameters()) == (
        81 * 32 + 32 + 25 * 32 * 32 + 32 + 25 * 32 * 64 + 64 + 1600 * 7 + 7
    )
    cnn.load_state_dict(whole.features.state_dict())


def test_crops():
    frames = torch.arange(6 * 48 * 48.0).view(6, 1, 48, 48)
    assert crop_and_flip(frames, training=False).equal(frames[..., 2:46, 2:46])
    crops = torch.cat([crop_and_flip(frames, 40, training=True) for _ in range(9)])
    rising = crops[:, 0, 0, 1] > crops[:, 0, 0, 0]
    assert 0 < rising.sum() < len(crops)
    corners = torch.where(rising, crops[:, 0, 0, 0], crops[:, 0, 0, -1]).view(9, 6)
    corners = corners - frames[:, 0, 0, 0]
    assert (corners == corners[:, :1]).all()  # one window for the whole batch
    assert len(corners[:, 0].unique()) > 1
    with pytest.raises(sk.ArgumentError, match="at least 44"):
        crop_and_flip(frames[..., :40], training=False)


def test_gradients_of_the_input_in_eval_mode(small_cnn):
    net = model(small_cnn).eval()
    x = torch.randn(2, 4, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    net(x, torch.tensor([4, 2]))[:, 1].sum().backward()
    assert x.grad[0].flatten(1).any(1).all()
    assert x.grad[1, :2].any()
    assert not x.grad[1, 2:].any()


def test_wrong_arguments_are_refused(small_cnn):
    with pytest.raises(sk.ArgumentError, match="last, mean"):
        CNNIRNN(backbone=small_cnn, readout="vote")
    with pytest.raises(sk.ArgumentError, match="window"):
        CNNIRNN(backbone=small_cnn, window=0)
    with pytest.raises(sk.ArgumentError, match="window = 3"):
        model(small_cnn, window=3)(torch.randn(1, 2, 2, 5, 4).double())
    with pytest.raises(sk.ArgumentError, match="lengths"):
        model(small_cnn)(torch.randn(1, 2, 2, 5, 4).double(), torch.tensor([3]))
    with pytest.raises(sk.ArgumentError, match="last, mean, vote"):
        clip_log_probs(torch.randn(1, 2, 3), None, "first")
    with pytest.raises(sk.ArgumentError, match="44, 44"):
        KahouFrameClassifier()(torch.randn(2, 1, 48, 48))


def test_feature_fusion_is_its_equations():
    net = FeatureFusion((4, 3), (5, 2), fused=6, num_classes=3).double().eval()
    features = [torch.randn(2, 4).double(), torch.randn(2, 3).double()]
    hidden = [
        torch.clamp(torch.tanh(f @ layer.weight.T + layer.bias), min=0)
        for f, layer in zip(features, net.modalities, strict=True)
    ]
    fused = torch.clamp(torch.tanh(net.fusion(torch.cat(hidden, 1))), min=0)
    torch.testing.assert_close(net(features), net.output(fused))
    wanted = sum(p.pow(2).sum() for n, p in net.named_parameters() if n.endswith("weight"))
    for layer in net.modalities:
        W = layer.weight.T  # rows are input features
        wanted = wanted + W.abs().sum() + sum(row.norm() for row in W)
    torch.testing.assert_close(net.penalty(), 3e-5 * wanted)
    with torch.no_grad():
        net.modalities[0].weight[:, 1] = 0
    net.penalty().backward()
    assert net.modalities[0].weight.grad.isfinite().all()
    with pytest.raises(sk.ArgumentError, match=r"sizes \(4, 3\)"):
        net(features[::-1])
    with pytest.raises(sk.ArgumentError, match="2 entries"):
        FeatureFusion((4, 3))


def made_up_decisions(n=120):
    """Three modalities: each knows some of four classes, the last knows nothing."""
    labels = torch.randint(4, (n,))
    sure = torch.nn.functional.one_hot(labels, 4).double()
    noise = torch.rand(3, n, 4, dtype=torch.float64)
    knows = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.float64)
    probabilities = 0.35 * sure * knows[:, None] + noise
    probabilities = probabilities / probabilities.sum(2, keepdim=True)
    return dict(zip(("cnn", "audio", "noise"), probabilities, strict=True)), labels


def test_decision_fusion_beats_each_modality():
    probabilities, labels = made_up_decisions()
    alone = max((p.argmax(1) == labels).double().mean().item() for p in probabilities.values())
    options = {"samples": 300, "local_samples": 300, "smallest": 0.1}
    generator = torch.Generator().manual_seed(1)
    found = search_decision_weights(probabilities, labels, generator=generator, **options)
    assert found.accuracy > alone + 0.05
    torch.testing.assert_close(found.weights.sum(0), torch.ones(4, dtype=torch.float64))
    assert (found.weights >= 0).all()
    fused = fuse_decisions(torch.stack(list(probabilities.values())), found.weights)
    assert (fused.argmax(1) == labels).double().mean().item() == pytest.approx(found.accuracy)
    generator = torch.Generator().manual_seed(1)
    again = search_decision_weights(probabilities, labels, generator=generator, **options)
    assert again.weights.equal(found.weights)


def test_the_search_goes_on_until_the_deviation_is_small():
    probabilities, labels = made_up_decisions()
    short, long = (
        search_decision_weights(
            probabilities,
            labels,
            samples=5,
            local_samples=200,
            smallest=smallest,
            generator=torch.Generator().manual_seed(2),
        ).accuracy
        for smallest in (1.0, 1e-2)
    )
    assert long > short


def test_the_deviation_falls_by_a_tenth_each_round(monkeypatch):
    batches = []
    best = fusion._best
    monkeypatch.setattr(fusion, "_best", lambda *args: batches.append(args[2]) or best(*args))
    search_decision_weights(*made_up_decisions(), samples=3, local_samples=5, smallest=0.3)
    assert [len(batch) for batch in batches] == [
        4,
        3,
        5,
        5,
        5,
        5,
        5,
    ]  # 0.5 * 0.9^4 > 0.3 > 0.5 * 0.9^5


def test_every_subset_is_searched():
    probabilities, labels = made_up_decisions(40)
    found = search_subsets(probabilities, labels, samples=20, local_samples=20, smallest=0.3)
    assert sorted(map(len, (f.names for f in found))) == [2, 2, 2, 3]
    assert [f.accuracy for f in found] == sorted((f.accuracy for f in found), reverse=True)
    with pytest.raises(sk.ArgumentError, match="n = 39"):
        search_decision_weights(probabilities, labels[1:])
