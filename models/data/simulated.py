"""Simulated EEG: a sphere model of the head and sources whose place is known. Not a recording.

The lead field is physics (MNE's sphere model on the 62 electrodes of SEED); the sources are noise.
A class is the band in which one region oscillates, so a picture of what a model looks at can be
held against the electrodes that the region really reaches.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.montages import SEED_CHANNELS, mne_info
from strnn_models.data.seed import Trial
from strnn_models.data.tasks import Task, register
from strnn_models.data.windows import Windows, standardise

import strnn_kernels as sk

#: class -> band of the region's oscillation in Hz, None for none
BANDS = {"rest": None, "alpha": (8.0, 14.0), "beta": (14.0, 31.0)}
RATE = 200
#: region -> its centre in the head frame in metres (x right, y front, z up)
REGIONS = {
    "left temporal": (-0.055, 0.0, 0.04),
    "right temporal": (0.055, 0.0, 0.04),
    "occipital": (0.0, -0.06, 0.05),
    "frontal": (0.0, 0.06, 0.05),
}


@register("simulated_eeg")
def simulated_eeg(
    seed: int = 0,
    region: str = "left temporal",
    num_trials: int = 60,
    seconds: int = 21,
    strength: float = 0.2,
    sample_length: int = 9,
    stride: int = 3,
) -> Task:
    """DE features of simulated EEG, three classes; trials are parted 60 : 20 : 20.

    Args:
        seed: of everything that is random.
        region: where the source of the classes lies, one of `REGIONS`.
        num_trials: of all classes together.
        seconds: of a trial.
        strength: amplitude of the oscillation at the electrodes relative to the background's.
        sample_length: T, seconds.
        stride: of the windows.

    Raises:
        ImportError: mne is missing.
    """
    if region not in REGIONS:
        known = ", ".join(REGIONS)
        raise ValueError(f"task simulated_eeg: region must be one of {known}, got {region!r}")
    field, places = lead_field()
    random = np.random.default_rng(seed)
    near = np.linalg.norm(places - REGIONS[region], axis=1) < 0.03
    gain = np.einsum("nsk,sk->ns", field, _radial(places))  # dipoles that point outward
    trials = []
    for n in range(num_trials):
        label = n % len(BANDS)
        samples = _background(random, field, seconds * RATE)
        band = list(BANDS.values())[label]
        if band is not None:
            source = gain[:, near] @ _band_noise(random, int(near.sum()), seconds * RATE, band)
            amount = strength * random.uniform(0.7, 1.3) * samples.std() / source.std()
            samples = samples + amount * source
        samples += 0.1 * samples.std() * random.standard_normal(samples.shape)
        de = differential_entropy(torch.from_numpy(samples), RATE)
        trials.append(Trial(de.float().numpy(), label, "simulated", 1, n + 1))
    cut = (int(0.6 * num_trials), int(0.8 * num_trials))
    parts = standardise(trials[: cut[0]], trials[cut[0] : cut[1]], trials[cut[1] :])
    train, valid, test = (Windows(part, sample_length, stride) for part in parts)
    reach = (gain[:, near] ** 2).sum(axis=1)
    return Task(
        "simulated_eeg",
        f"simulated EEG (MNE sphere model, source in the {region} region), not a recording",
        train,
        valid,
        test,
        channels=5,
        sample_length=sample_length,
        classes=tuple(BANDS),
        topology=sk.Topology.montage("seed-62"),
        truth=reach / reach.sum(),
    )


@lru_cache(maxsize=1)
def lead_field() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average-referenced lead field (62, S, 3) of S dipoles 2 cm apart, and their places (S, 3).

    Raises:
        ImportError: mne is missing.
    """
    try:
        import mne
    except ImportError as error:
        raise ImportError("the task simulated_eeg needs MNE: pip install mne") from error
    info = mne_info(SEED_CHANNELS, RATE)
    sphere = mne.make_sphere_model("auto", "auto", info, verbose="error")
    space = mne.setup_volume_source_space(pos=20.0, sphere=sphere, mindist=10.0, verbose="error")
    forward = mne.make_forward_solution(
        info, None, space, sphere, meg=False, eeg=True, verbose="error"
    )
    field = forward["sol"]["data"].reshape(len(SEED_CHANNELS), -1, 3)
    return field - field.mean(axis=0), forward["source_rr"]


def _radial(places: NDArray) -> NDArray:
    outward = places - np.array([0.0, 0.0, 0.04])
    length = np.linalg.norm(outward, axis=1, keepdims=True)
    return outward / np.where(length > 0, length, 1)


def _background(random: np.random.Generator, field: NDArray, samples: int) -> NDArray:
    """1/f activity of all dipoles, in random directions, at the electrodes: (N, samples)."""
    num_sources = field.shape[1]
    direction = random.standard_normal((num_sources, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    gain = np.einsum("nsk,sk->ns", field, direction)
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    shape = 1 / np.sqrt(np.maximum(frequency, 1))
    return gain @ _shaped_noise(random, num_sources, samples, shape)


def _band_noise(
    random: np.random.Generator, num: int, samples: int, band: tuple[float, float]
) -> NDArray:
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    return _shaped_noise(random, num, samples, (frequency >= band[0]) & (frequency < band[1]))


def _shaped_noise(random: np.random.Generator, num: int, samples: int, shape: NDArray) -> NDArray:
    spectrum = np.fft.rfft(random.standard_normal((num, samples)))
    return np.fft.irfft(spectrum * shape, samples)
