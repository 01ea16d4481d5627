"""Windows of T consecutive slices, cut out of each trial alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from strnn_models.data.records import float32
from strnn_models.data.seed import Trial
from torch.utils.data import Dataset


class Windows(Dataset):
    """All windows of `length` slices, `stride` apart, that lie within one trial.

    Args:
        trials: `Trial`s, or anything with x (T, ...), label, subject and name.
        length: slices in a window.
        stride: from the start of one to the start of the next.

    Attributes:
        starts: int (n, 2): the trial and the first slice of each window.

    Raises:
        ValueError: a trial is shorter than a window; names it.
    """

    def __init__(self, trials: Sequence[Trial], length: int = 9, stride: int = 1) -> None:
        if length < 1 or stride < 1:
            raise ValueError(f"Windows: length and stride must be positive, got {length}, {stride}")
        for trial in trials:
            if len(trial.x) < length:
                raise ValueError(
                    f"Windows: {trial.name} has {len(trial.x)} slices, "
                    f"fewer than the {length} of a window"
                )
        self.trials, self.length, self.stride = list(trials), length, stride
        starts = [
            (k, start)
            for k, trial in enumerate(self.trials)
            for start in range(0, len(trial.x) - length + 1, stride)
        ]
        self.starts = np.array(starts, dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        k, start = self.starts[index].tolist()
        trial = self.trials[k]
        x = torch.from_numpy(trial.x[start : start + self.length])
        return {"x": x, "y": torch.tensor(trial.label)}

    @property
    def overlap(self) -> bool:
        """Whether two windows share a slice."""
        return self.stride < self.length and bool((np.diff(self.starts[:, 0]) == 0).any())

    @property
    def labels(self) -> np.ndarray:
        """Label of each window, (n,)."""
        return np.array([trial.label for trial in self.trials])[self.starts[:, 0]]

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """For "trial" and for "subject", the name for each window, (n,)."""
        at = self.starts[:, 0]
        return {
            "trial": np.array([trial.name for trial in self.trials])[at],
            "subject": np.array([trial.subject for trial in self.trials])[at],
        }


def standardise(train: Sequence[Trial], *others: Sequence[Trial]) -> list[list[Trial]]:
    """Scales each electrode and feature to mean 0, deviation 1 over the slices of `train` alone.

    Raises:
        DataError: a value is so far from those of `train` that it is infinite as float32.
    """
    slices = np.concatenate([trial.x for trial in train]).astype(np.float64)
    mean, deviation = slices.mean(axis=0), slices.std(axis=0)
    deviation[deviation == 0] = 1

    def scaled(trial: Trial) -> Trial:
        x = float32(trial.file or "", f"{trial.name}, standardised", (trial.x - mean) / deviation)
        return replace(trial, x=x)

    return [[scaled(trial) for trial in part] for part in (train, *others)]
