"""STRNN under skorch, and the systems saved and loaded as the Hugging Face Hub has them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from strnn_models import STRNN, AttentionPooling
from strnn_models.layers.backbone import FrameCNN

import strnn_kernels as sk

RATE = 110  # samples in a second
CROSS = {"C1": (1, 0), "C2": (1, 2), "A": (0, 1), "P": (2, 1), "Z": (1, 1)}


def raw(**options):
    pytest.importorskip("scipy")
    from strnn_models.adapters.eeg import RawSTRNN

    return RawSTRNN(5, 2, 2 * RATE + 7, sfreq=RATE, topology=sk.Topology.cells(CROSS), **options)


def rhythms(count):
    """Noise in which electrode A has a rhythm of 10 Hz, or one of 20 Hz: the label."""
    x = torch.randn(count, 5, 2 * RATE + 7)
    y = torch.arange(count) % 2
    phase = torch.arange(x.shape[2]) / RATE * 2 * torch.pi
    x[:, 2] += 2 * torch.sin(torch.where(y == 1, 20.0, 10.0)[:, None] * phase)
    return x.numpy(), y.numpy()


def test_raw_eeg_is_strnn_on_differential_entropy():
    model = raw().eval()
    from strnn_models.data.de_features import differential_entropy

    plain = STRNN(5, num_classes=2, sample_length=2, topology=sk.Topology.cells(CROSS)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "scale" not in k})
    x = torch.from_numpy(rhythms(3)[0])
    model.scale.running_mean += torch.arange(25.0)
    features = differential_entropy(x, RATE) - torch.arange(25.0).view(5, 5)
    torch.testing.assert_close(model(x), plain(features / (1 + 1e-5) ** 0.5))


def test_raw_eeg_says_what_does_not_fit():
    pytest.importorskip("mne")
    from strnn_models.adapters.eeg import RawSTRNN

    with pytest.raises(sk.ArgumentError, match=r"\(batch, n_chans, n_times\) = \(\.\., 5, 227\)"):
        raw()(torch.randn(2, 5, 2 * RATE))
    with pytest.raises(sk.ArgumentError, match="n_times must be a second or more"):
        RawSTRNN(62, 3, 100)
    with pytest.raises(sk.ArgumentError, match="layout of 5 electrodes"):
        RawSTRNN(5, 3, 1000)
    known = RawSTRNN(3, 2, 400, chs_info=[{"ch_name": name} for name in ("O2", "FZ", "O1")])
    assert known.topology.names == ("O2", "FZ", "O1")


def test_skorch_trains_it():
    skorch = pytest.importorskip("skorch")
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score
    from strnn_models.adapters.eeg import RawSTRNN

    torch.manual_seed(0)

    class Sparse(skorch.callbacks.Callback):
        def on_batch_end(self, net, training=False, **_):
            if training:
                net.module_.proximal_step_(net.lr)

    net = skorch.NeuralNetClassifier(
        RawSTRNN,
        module__n_chans=5,
        module__n_outputs=2,
        module__n_times=2 * RATE + 7,
        module__sfreq=RATE,
        module__topology=sk.Topology.cells(CROSS),
        module__lambda1=1.0,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=12,
        batch_size=16,
        callbacks=[Sparse],
        verbose=0,
    )
    x, y = rhythms(80)
    scores = cross_val_score(clone(net), x, y, cv=2)
    assert scores.min() > 0.9
    net.fit(x, y)
    assert net.module_.sparsity()["spatial"] > 0
    probabilities = net.predict_proba(x[:7])
    assert probabilities.shape == (7, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def on_hub():
    pytest.importorskip("huggingface_hub")
    from strnn_models.adapters import hub

    return hub


TOPOLOGIES = {
    "the cap": None,
    "cells": sk.Topology.cells(CROSS),
    "cross": sk.Topology.cells(list(CROSS.values()), neighbourhood="cross"),
    "dag": sk.Topology.dag([[[], [0], [0], [1, 2], []], [[1], [], [1], [], [3]]]),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_strnn_comes_back_from_a_folder(tmp_path, topology):
    topology = TOPOLOGIES[topology]
    model = on_hub().STRNN(topology=topology, in_channels=2, cell=["gru", "elman"], lambda1=0.5)
    assert isinstance(model, STRNN)
    model.save_pretrained(tmp_path)
    again = on_hub().STRNN.from_pretrained(tmp_path)
    assert again.topology == model.topology
    assert again.topology.names == model.topology.names
    assert (again.lambda1, again.temporal_cell) == (0.5, "elman")
    x = torch.randn(3, 4, model.topology.num_nodes, 2)
    torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)
    # The weights are those of the plain system too.
    plain = STRNN(topology=topology, in_channels=2, cell=("gru", "elman"))
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=0)


def test_masks_and_frame_networks_come_back_too(tmp_path):
    hub, mask = on_hub(), np.array([[True, False, True], [True, True, False]])
    model = hub.STRNN(mask=mask, in_channels=1)
    model.save_pretrained(tmp_path / "mask")
    assert hub.STRNN.from_pretrained(tmp_path / "mask").topology == model.topology
    net = hub.AttentionPooling(num_classes=3, backbone={"in_channels": 1, "widths": [4, 6]})
    assert isinstance(net, AttentionPooling)
    net.save_pretrained(tmp_path / "frames")
    again = hub.AttentionPooling.from_pretrained(tmp_path / "frames")
    assert isinstance(again.encoder.backbone, FrameCNN)
    x = torch.randn(2, 3, 1, 9, 8)
    torch.testing.assert_close(again(x).log_probs, net.eval()(x).log_probs, rtol=0, atol=0)


def test_what_cannot_come_back_is_refused(tmp_path):
    hub = on_hub()
    with pytest.raises(sk.ArgumentError, match=r"hub.CNNIRNN: backbone must be .* got Linear"):
        hub.CNNIRNN(backbone=torch.nn.Linear(3, 3))
    hub.STRNN(num_classes=4).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 4
    assert config["activation"] == "relu"  # a default is kept too
    (tmp_path / "config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(RuntimeError, match="spatial_bias"):  # a parameter that the file lacks
        hub.STRNN.from_pretrained(tmp_path)
    with pytest.raises(sk.ArgumentError, match=r"no model\.safetensors"):
        hub.STRNN._load_as_pickle(hub.STRNN(), "pytorch_model.bin", "cpu", True)
