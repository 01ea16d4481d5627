"""Differential entropy of EEG in frequency bands, for a whole batch of recordings at once.

For a Gaussian signal the entropy is DE = 0.5 ln(2 pi e variance); SEED takes it of each electrode,
band and second (Duan, Zhu, Lu, Differential entropy feature for EEG-based emotion classification,
2013).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: delta, theta, alpha, beta, gamma as SEED has them, in Hz
SEED_BANDS = ((1.0, 4.0), (4.0, 8.0), (8.0, 14.0), (14.0, 31.0), (31.0, 50.0))


def differential_entropy(
    eeg: Tensor,
    sampling_rate: float,
    *,
    bands: Sequence[tuple[float, float]] = SEED_BANDS,
    window: float = 1.0,
    step: float | None = None,
    transition: float = 1.0,
) -> Tensor:
    """DE[b, t, n, c] = 0.5 ln(2 pi e variance of electrode n in band c and window t), in nats.

    The bands are cut out by linear-phase FIR filters (scipy.signal.firwin, Hamming), centred so
    that nothing is delayed; both ends of the recording are continued by reflection. Filter a trial
    as a whole and never across trials. Differentiable, on any device.

    Args:
        eeg: (N, S) or (B, N, S), float32 or float64, S samples of N electrodes.
        sampling_rate: in Hz.
        bands: (low, high) in Hz of each of the C bands.
        window: seconds.
        step: seconds from window to window; the window itself if None.
        transition: width in Hz of the edges of the filters, halfway down at low and high.

    Returns:
        (T, N, C) or (B, T, N, C), dtype of eeg. A flat electrode gives the log of the smallest
        number.

    Raises:
        ValueError: a shape or dtype, a band outside 0 to half the rate, or a recording shorter than
            a window or than half a filter.
    """
    if not isinstance(eeg, Tensor) or eeg.dtype not in (torch.float32, torch.float64):
        what = eeg.dtype if isinstance(eeg, Tensor) else type(eeg).__name__
        raise ValueError(f"differential_entropy: eeg must be float32 or float64, got {what}")
    if eeg.ndim not in (2, 3):
        raise ValueError(
            f"differential_entropy: eeg must have shape (N, S) or (B, N, S), got {tuple(eeg.shape)}"
        )
    length = round(window * sampling_rate)
    hop = length if step is None else round(step * sampling_rate)
    samples = eeg.shape[-1]
    if not 1 < length <= samples or hop < 1:
        raise ValueError(
            f"differential_entropy: windows of {length} samples, {hop} apart, in {samples} samples"
        )
    filters = [_band_filter(low, high, sampling_rate, transition) for low, high in bands]
    half = len(filters[0]) // 2
    if samples <= half:
        raise ValueError(
            f"differential_entropy: {samples} samples are fewer than the {half + 1} that the "
            "filters need; give whole trials, or a larger transition"
        )
    centred = eeg - eeg.mean(dim=-1, keepdim=True)
    padded = torch.nn.functional.pad(centred, (half, half), mode="reflect")
    size = _fast_length(padded.shape[-1] + 2 * half)
    spectrum = torch.fft.rfft(padded, n=size)
    entropies = []
    for taps in filters:  # one band at a time: five would need five times the memory
        response = torch.fft.rfft(torch.tensor(taps, dtype=eeg.dtype, device=eeg.device), n=size)
        band = torch.fft.irfft(spectrum * response, n=size)[..., 2 * half : 2 * half + samples]
        variance = band.unfold(-1, length, hop).var(dim=-1, correction=0)
        floor = torch.finfo(eeg.dtype).tiny
        entropies.append(0.5 * torch.log(2 * math.pi * math.e * variance.clamp_min(floor)))
    return torch.stack(entropies, dim=-1).transpose(-3, -2)


def _fast_length(least: int) -> int:
    """A length of at least that without large prime factors: with one, an FFT is slow."""
    from scipy.fft import next_fast_len

    return next_fast_len(least, real=True)


@lru_cache(maxsize=64)
def _band_filter(low: float, high: float, rate: float, transition: float) -> tuple[float, ...]:
    from scipy.signal import firwin

    if not 0 < low < high < rate / 2:
        raise ValueError(
            f"differential_entropy: a band must lie in 0..{rate / 2:g} Hz, got ({low:g}, {high:g})"
        )
    # 3.3 / width is the length of a Hamming window for a transition of that width.
    num_taps = 2 * math.ceil(3.3 * rate / transition / 2) + 1
    return tuple(firwin(num_taps, [low, high], pass_zero=False, fs=rate).tolist())
