"""STRNN on raw EEG, with the constructor that skorch and braindecode users know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from strnn_models.data.de_features import SEED_BANDS, differential_entropy
from strnn_models.data.montages import topology_from_mne
from strnn_models.systems.strnn import STRNN
from torch import Tensor, nn

import strnn_kernels as sk


class RawSTRNN(STRNN):
    """Class scores of windows of raw EEG: differential entropy of each second, then `STRNN`.

    The features are centred and scaled by running means and variances, for each electrode and band
    (ours, in place of the statistics of a training part). Use it as `EEGClassifier(RawSTRNN, ..)`
    or `NeuralNetClassifier(RawSTRNN, module__n_chans=62, ..)`; `proximal_step_` after an
    optimiser's step makes exact zeros.

    Args:
        n_chans: electrodes; 62 are taken for SEED's, in SEED's order.
        n_outputs: classes.
        n_times: samples of a window: a second or more, and longer than half a filter (1.65 s).
        sfreq: samples in a second, above 100; 200 as in SEED.
        chs_info: MNE's `info["chs"]`, or [{"ch_name": "FP1"}, ..]: the electrodes' names, which
            MNE's standard montage places; needs mne.
        topology: in place of both.
        options: of `STRNN`.

    Raises:
        ArgumentError: nothing says where the electrodes are, a number does not fit, or an option
            is unknown.
    """

    def __init__(
        self,
        n_chans: int,
        n_outputs: int,
        n_times: int,
        sfreq: float = 200.0,
        *,
        chs_info: Sequence[Mapping[str, Any]] | None = None,
        topology: sk.Topology | None = None,
        **options: Any,
    ) -> None:
        if n_times < sfreq or sfreq <= 2 * SEED_BANDS[-1][1]:
            raise sk.ArgumentError(
                "RawSTRNN: n_times must be a second or more and sfreq above "
                f"{2 * SEED_BANDS[-1][1]:g} Hz, got {n_times} samples at {sfreq:g} Hz"
            )
        if topology is None and chs_info is not None:
            topology = topology_from_mne("standard_1005", [ch["ch_name"] for ch in chs_info])
        super().__init__(
            n_chans,
            in_channels=len(SEED_BANDS),
            num_classes=n_outputs,
            sample_length=int(n_times / round(sfreq)),
            topology=topology,
            **options,
        )
        self.n_chans, self.n_times, self.sfreq = n_chans, n_times, sfreq
        self.scale = nn.BatchNorm1d(n_chans * len(SEED_BANDS), affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (batch, n_outputs), before the softmax.

        Args:
            x: float32 or float64, (batch, n_chans, n_times).

        Raises:
            ArgumentError: the shape does not fit the model.
        """
        if x.shape[1:] != (self.n_chans, self.n_times):
            raise sk.ArgumentError(
                "RawSTRNN: x must have shape (batch, n_chans, n_times) = "
                f"(.., {self.n_chans}, {self.n_times}), got {tuple(x.shape)}"
            )
        features = differential_entropy(x, self.sfreq)  # (B, T, N, C)
        scaled = self.scale(features.flatten(0, 1).flatten(1))
        return super().forward(scaled.view_as(features))
