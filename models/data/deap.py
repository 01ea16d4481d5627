"""DEAP: 32 electrodes and 8 other channels of 40 one-minute music videos, preprocessed at 128 Hz.

``data_preprocessed_matlab/s01.mat`` or ``data_preprocessed_python/s01.dat``, one file for each
subject: ``data`` (40 trials, 40 channels, 8064 samples), of which 3 s come before the video, and
``labels`` (40, 4): valence, arousal, dominance and liking in 1..9. A .dat is a pickle, of which
nothing is run (see `pickled`). Copies as .npy have no published layout and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import read_bytes, why
from strnn_models.data import seed_files
from strnn_models.data.mat5 import MOST_VARIABLE
from strnn_models.data.mat73 import open_mat
from strnn_models.data.pickled import read_dict
from strnn_models.data.records import DataError, Records, float32, folder, nothing
from strnn_models.data.seed import Trial, band_features
from strnn_models.data.seed_files import Choice

#: What is rated, in the order of the columns.
RATINGS = ("valence", "arousal", "dominance", "liking")
#: The data are filtered to 4 to 45 Hz: there is no delta.
BANDS = {"theta": (4.0, 8.0), "alpha": (8.0, 14.0), "beta": (14.0, 31.0), "gamma": (31.0, 45.0)}
RATE, NUM_ELECTRODES = 128, 32
SHAPES = {"data": (40, 40, 8064), "labels": (40, 4)}
#: Seconds in front of each video, which are left out.
BASELINE = 3


def classes(target: str) -> tuple[str, str]:
    """The names of the two classes."""
    return f"low {target}", f"high {target}"


def read_deap(
    root: Path | str,
    *,
    target: str = "valence",
    threshold: float = 5.0,
    subjects: Collection[str | int] | None = None,
    skip_bad: bool = False,
) -> Records[Trial]:
    """`differential_entropy` of the trials in windows of 1 s, by subject and trial.

    Label 1 is a rating above the threshold. `x` is (60, 32, 4), electrodes in the order of
    ``MONTAGES["deap-32"]``, the bands being `BANDS`.

    Args:
        root: the folder data_preprocessed_matlab or data_preprocessed_python.
        target: what is told apart, one of `RATINGS`.
        threshold: in 1..9.
        subjects: a list of those to read, 1 to 32. None: all.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file or trial is missing, damaged, or rated outside 1..9; names both.
        ValueError: unknown target, a threshold outside 1..9, or `subjects` is no list.
    """
    if target not in RATINGS:
        known = ", ".join(RATINGS)
        raise ValueError(f"read_deap: target must be one of {known}, got {target!r}")
    if not 1 <= threshold <= 9:
        raise ValueError(f"read_deap: threshold must be in 1..9, got {threshold}")
    root, trials = folder(root), Records[Trial](skip_bad)
    choice = Choice("read_deap", 1, subjects)
    for subject, _, path in choice.by_subject(root, seed_files.DEAP, trials):
        with trials.guard():
            data, labels = _read_file(path)
            for n in range(len(data)):
                with trials.guard():
                    rating = _rating(path, n, labels, RATINGS.index(target))
                    eeg = data[n, :NUM_ELECTRODES, BASELINE * RATE :]
                    x = _features(path, n, eeg)
                    label = int(rating > threshold)
                    trials.append(Trial(x, label, subject, 1, n + 1, path))
    if not trials and not trials.skipped:
        nothing(root, f"has no file {seed_files.DEAP.words}")
    return trials


def _features(path: Path, n: int, eeg: NDArray) -> NDArray[np.float32]:
    record = f"data, trial {n + 1}"
    x = band_features(path, record, eeg, RATE, 1, bands=tuple(BANDS.values()))
    return float32(path, record, x)


def _rating(path: Path, n: int, labels: NDArray, column: int) -> float:
    rating = float(labels[n, column])
    if not 1 <= rating <= 9:
        reason = f"must be in 1..9, got {rating:g}"
        raise DataError(path, f"labels, trial {n + 1}, {RATINGS[column]}", reason)
    return rating


def _read_file(path: Path) -> tuple[NDArray, NDArray]:
    read = _read_dat if path.suffix == ".dat" else _read_mat
    arrays = read(path)
    for name, shape in SHAPES.items():
        if not isinstance(arrays.get(name), np.ndarray):
            raise DataError(path, name, "no such array")
        if arrays[name].shape != shape:
            raise DataError(path, name, f"must have shape {shape}, got {arrays[name].shape}")
    return arrays["data"], arrays["labels"]


def _read_dat(path: Path) -> dict:
    try:
        return read_dict(read_bytes(path, MOST_VARIABLE))
    except OSError as error:
        raise DataError(path, None, why(error)) from error
    except ValueError as error:
        reason = f"{error}; DEAP's data_preprocessed_matlab has the same as .mat"
        raise DataError(path, None, reason) from error


def _read_mat(path: Path) -> dict[str, NDArray]:
    with open_mat(path, re.compile("|".join(SHAPES))) as file:
        return {name: file.read(name) for name in file.variables}
