"""Frames to features to states, and weights from files."""

from __future__ import annotations

import pickle

import pytest
import torch
from strnn_models.layers.backbone import FrameCNN, FrameEncoder, Recurrence, load_weights, saliency
from torch import nn

import strnn_kernels as sk

LENGTHS = torch.tensor([4, 0, 2])


@pytest.mark.parametrize("norm", ["group", "batch", "none"])
def test_the_frame_cnn_has_the_shape_it_says(norm):
    cnn = FrameCNN(1, (4, 8, 16), norm=norm, dropout=0.1)
    assert cnn(torch.randn(2, 1, 25, 19)).shape == (2, 16, 3, 2)
    assert (cnn.out_channels, cnn.stride) == (16, 8)


@pytest.mark.parametrize("pool", ["mean", "flatten"])
def test_each_frame_is_encoded_on_its_own(small_cnn, pool):
    encoder = FrameEncoder(small_cnn, pool=pool, feature_size=6 if pool == "mean" else 24)
    x = torch.randn(3, 4, 2, 8, 8)
    features = encoder(x)
    maps = small_cnn(x[1, 2][None])[0]
    torch.testing.assert_close(
        features[1, 2], maps.mean((1, 2)) if pool == "mean" else maps.flatten()
    )
    cut = encoder(x, LENGTHS)
    for b, n in enumerate(LENGTHS):
        torch.testing.assert_close(cut[b, :n], features[b, :n])
        assert not cut[b, n:].any()


def test_padding_enters_no_statistics():
    encoder = FrameEncoder(FrameCNN(2, (4,), norm="batch"))
    x = torch.randn(3, 4, 2, 4, 4)
    spoilt = x.clone()
    spoilt[0, 3], spoilt[1], spoilt[2, 2:] = torch.nan, torch.inf, 1e9
    lengths = torch.tensor([3, 0, 2])
    torch.testing.assert_close(encoder(x, lengths), encoder(spoilt, lengths))
    assert all(b.isfinite().all() for b in encoder.buffers())


def test_stored_features_pass(small_cnn):
    encoder = FrameEncoder(small_cnn)
    x = torch.randn(3, 4, 2, 8, 8)
    features = encoder(x)
    torch.testing.assert_close(encoder(features), features)
    torch.testing.assert_close(
        encoder(features + 1, LENGTHS)[2], torch.cat([features[2, :2] + 1, torch.zeros(2, 6)])
    )


def test_a_batch_of_empty_clips_is_zero(small_cnn):
    assert not FrameEncoder(small_cnn)(torch.randn(2, 3, 2, 8, 8), torch.zeros(2, dtype=int)).any()


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((3, 4, 1, 8, 8), None, "C|shape"),
        ((3, 4, 2, 3, 8), None, "at least 4"),
        ((3, 4, 2, 8), None, r"\(B, T, C, rows, cols\)"),
        ((3, 0, 2, 8, 8), None, "T"),
        ((3, 4, 7), None, r"\(B, T, F\) = \(\.\., \.\., 6\)"),
        ((3, 4, 2, 8, 8), torch.tensor([1, 2]), "lengths"),
        ((3, 4, 2, 8, 8), torch.tensor([1, 2, 5]), "0..4"),
        ((3, 4, 2, 8, 8), torch.tensor([1.0, 2, 3]), "integers"),
    ],
)
def test_wrong_clips_are_refused(small_cnn, shape, lengths, message):
    with pytest.raises(sk.ArgumentError, match=message):
        FrameEncoder(small_cnn)(torch.randn(shape), lengths)


def test_wrong_backbones_are_refused(small_cnn):
    with pytest.raises(sk.ArgumentError, match="feature_size"):
        FrameEncoder(nn.Sequential(nn.Conv2d(2, 5, 3)))
    with pytest.raises(sk.ArgumentError, match="F = 5"):
        FrameEncoder(small_cnn, feature_size=5)(torch.randn(1, 1, 2, 8, 8))
    with pytest.raises(sk.ArgumentError, match="group, batch, none"):
        FrameCNN(norm="layer")
    with pytest.raises(sk.ArgumentError, match="elman, gru, lstm"):
        Recurrence(2, 3, cell="rnn")


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_as_if_each_clip_were_alone(cell, bidirectional):
    layers = Recurrence(3, 5, cell=cell, num_layers=2, bidirectional=bidirectional).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    states = layers(x, LENGTHS)
    assert states.shape == (3, 4, layers.output_size)
    for b, n in enumerate(LENGTHS):
        if n:
            torch.testing.assert_close(states[b, :n], layers(x[b : b + 1, :n])[0])
        assert not states[b, n:].any()


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_states_are_those_of_torch(cell):
    layers = Recurrence(3, 5, cell=cell, num_layers=2, bidirectional=True).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    states = layers(x, LENGTHS)
    for b, n in enumerate(LENGTHS):
        if n:
            expected = x[b : b + 1, :n]
            for layer in layers.layers:
                expected = layer.to_rnn()(expected)[0]
            torch.testing.assert_close(states[b : b + 1, :n], expected)


def test_dropout_is_between_layers_and_in_training_only():
    x = torch.ones(1, 4, 3)
    one, two = (Recurrence(3, 5, num_layers=n, dropout=0.5) for n in (1, 2))
    assert one(x).equal(one(x))
    assert not two(x).equal(two(x))
    two.eval()
    assert two(x).equal(two(x))


def test_saliency_finds_the_pixels_that_count():
    x = torch.randn(2, 3, 2, 4, 4)
    weight = torch.zeros_like(x)
    weight[:, 1, 0, 2, 3], weight[:, 2, 1, 0, 0] = -2.0, 0.5
    with torch.no_grad():
        found = saliency(lambda clips: (clips * weight).sum((1, 2, 3, 4)), x)
    torch.testing.assert_close(found, weight.abs().amax(2))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "checkpoint"])
def test_weights_come_back(tmp_path, small_cnn, kind):
    other = FrameCNN(2, (4, 6), convs=1)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    state = {f"backbone.{k}": v for k, v in small_cnn.state_dict().items()}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "checkpoint" else state, path)
    assert load_weights(other, path, prefix="backbone.") == []
    torch.testing.assert_close(other.state_dict(), small_cnn.state_dict())
    with pytest.raises(sk.ArgumentError, match="Missing key"):
        load_weights(other, path)
    assert load_weights(other, path, strict=False)
    with pytest.raises(sk.ArgumentError, match="size mismatch"):
        load_weights(FrameCNN(2, (4, 7), convs=1), path, prefix="backbone.")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was executed",))


def test_no_file_is_executed_and_no_damage_is_silent(tmp_path, small_cnn):
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps({"0.weight": Bomb()}, protocol=2))
    torch.save({"0.weight": Bomb()}, tmp_path / "zip_bomb.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "noise.safetensors").write_bytes(b"\x07" * 40)
    names = ["bomb.pt", "zip_bomb.pt", "list.pt", "empty.pt", "noise.safetensors", "none.pt"]
    for name in [*names, "none.safetensors"]:
        with pytest.raises(sk.ArgumentError, match=name):
            load_weights(small_cnn, tmp_path / name)
