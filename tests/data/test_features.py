"""Differential entropy against theory and against scipy, and electrodes on grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import firwin, oaconvolve
from strnn_models.data import montages
from strnn_models.data.de_features import SEED_BANDS, differential_entropy
from strnn_models.data.montages import grid_from_mne, grid_from_table, topology_from_mne

import strnn_kernels as sk
from strnn_kernels.montages import MONTAGES

RATE = 200


def test_de_of_a_sine():
    t = torch.arange(20 * RATE, dtype=torch.float64) / RATE
    amplitude = torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None]
    de = differential_entropy(amplitude * torch.sin(2 * math.pi * 10 * t), RATE)
    assert de.shape == (20, 2, 5)
    expected = 0.5 * torch.log(2 * math.pi * math.e * amplitude[:, 0] ** 2 / 2)
    torch.testing.assert_close(de[3:-3, :, 2], expected.expand(14, 2), atol=2e-2, rtol=0)
    others = de[3:-3, 1][:, [0, 1, 3, 4]]
    assert (others < de[3:-3, 1, 2:3] - 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_de_equals_filters_one_by_one(dtype):
    torch.manual_seed(0)
    eeg = 20 * torch.randn(2, 3, 5 * RATE, dtype=dtype) + 1000
    de = differential_entropy(eeg, RATE, window=1.0, step=0.5)
    assert de.shape == (2, 9, 3, 5) and de.dtype == dtype
    for c, band in enumerate(SEED_BANDS):
        taps = firwin(661, band, pass_zero=False, fs=RATE)
        for b in range(2):
            for n in range(3):
                x = eeg[b, n].double().numpy()
                x = np.pad(x - x.mean(), 330, mode="reflect")
                x = oaconvolve(x, taps, mode="valid")
                for t in range(9):
                    variance = x[100 * t : 100 * t + 200].var()
                    expected = 0.5 * math.log(2 * math.pi * math.e * variance)
                    assert float(de[b, t, n, c]) == pytest.approx(expected, abs=2e-4)


def test_de_has_a_gradient_and_no_infinity():
    eeg = torch.randn(1, 2, 800, dtype=torch.float64, requires_grad=True)
    differential_entropy(eeg, RATE).sum().backward()
    assert eeg.grad.isfinite().all() and eeg.grad.any()
    assert differential_entropy(torch.zeros(1, 800), RATE).isfinite().all()


@pytest.mark.parametrize(
    ("eeg", "options", "reason"),
    [
        (torch.zeros(2, 800, dtype=torch.int64), {}, "float32 or float64"),
        (np.zeros((2, 800)), {}, "ndarray"),
        (torch.zeros(800), {}, r"shape \(N, S\)"),
        (torch.zeros(2, 300), {}, "fewer than the 331"),
        (torch.zeros(2, 100), {}, "windows of 200 samples"),
        (torch.zeros(2, 800), {"bands": [(8.0, 120.0)]}, r"lie in 0\.\.100 Hz"),
    ],
)
def test_de_refuses(eeg, options, reason):
    with pytest.raises(ValueError, match=reason):
        differential_entropy(eeg, RATE, **options)


def test_grids_of_other_libraries_are_the_same():
    ours = MONTAGES["seed-62"]
    torcheeg = {name: [row, col] for name, (row, col) in ours.items()}
    libeer = [[row + 1, col + 1] for row, col in ours.values()]
    assert grid_from_table(torcheeg) == ours
    assert grid_from_table(libeer, first=1) == ours
    assert sk.Topology.cells(grid_from_table(libeer, first=1)) == sk.Topology.montage("seed-62")
    with pytest.raises(ValueError, match="FP1 is at"):
        grid_from_table(torcheeg, first=1)
    with pytest.raises(ValueError, match="61 entries for 62 names"):
        grid_from_table(libeer[1:], first=1)


def test_grid_from_mne():
    pytest.importorskip("mne")
    grid = grid_from_mne("standard_1005")
    assert list(grid) == list(montages.SEED_CHANNELS)
    assert len(set(grid.values())) == 62
    theirs = MONTAGES["seed-62"]
    away = [abs(grid[n][0] - theirs[n][0]) + abs(grid[n][1] - theirs[n][1]) for n in grid]
    assert max(away) <= 1 and away.count(0) >= 45
    for left, right in (("F7", "F8"), ("T7", "T8"), ("O1", "O2"), ("FP1", "FP2")):
        assert grid[left][1] < 4 < grid[right][1]
    assert [grid[n][1] for n in ("FPZ", "FZ", "FCZ", "CZ", "CPZ", "PZ", "POZ", "OZ")] == [4] * 8
    topology = topology_from_mne("standard_1005", ["Fp1", "Fp2", "Cz", "O1"], rows=3, cols=3)
    assert topology.names == ("Fp1", "Fp2", "Cz", "O1") and topology.num_directions == 4
    with pytest.raises(ValueError, match="no electrode XX1"):
        grid_from_mne("standard_1005", ["XX1"])
    with pytest.raises(ValueError, match="do not fit"):
        grid_from_mne("standard_1005", rows=3, cols=3)
