"""SEED and SEED-IV: EEG trials in MATLAB files, as features or as raw signals, read by key name.

SEED: ``<folder>/<subject>_<yyyymmdd>.mat``, 15 trials in each, beside ``label.mat``; a subject's
files in order of date are its sessions 1, 2, 3. SEED-IV: ``<folder>/<session>/`` with such files of
24 trials. In ``ExtractedFeatures`` and ``eeg_feature_smooth`` trial n is an array (62 electrodes, T
windows, 5 bands) under a key such as ``de_LDS<n>``; in ``Preprocessed_EEG`` and ``eeg_raw_data``
(recalled) it is a signal (62 electrodes, samples at 200 Hz) under ``<initials>_eeg<n>``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.mat5 import read_arrays
from strnn_models.data.records import DataError, Records, folder

BANDS = ("delta", "theta", "alpha", "beta", "gamma")
#: trial -> label of SEED, the same in every session: -1 negative, 0 neutral, +1 positive
LABELS = (1, 0, -1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 0, 1, -1)
CLASSES = ("negative", "neutral", "positive")
#: trial -> number of one-second windows in SEED
TRIAL_LENGTHS = (235, 233, 206, 238, 185, 195, 237, 216, 265, 237, 235, 233, 235, 238, 206)
#: session -> trial -> label of SEED-IV
LABELS_IV = (
    (1, 2, 3, 0, 2, 0, 0, 1, 0, 1, 2, 1, 1, 1, 2, 3, 2, 2, 3, 3, 0, 3, 0, 3),
    (2, 1, 3, 0, 0, 2, 0, 2, 3, 3, 2, 3, 2, 0, 1, 1, 2, 1, 0, 3, 0, 1, 3, 1),
    (1, 2, 2, 1, 3, 3, 3, 1, 1, 2, 1, 0, 2, 3, 3, 0, 2, 3, 0, 0, 2, 0, 1, 0),
)
CLASSES_IV = ("neutral", "sad", "fear", "happy")
FEATURES = tuple(
    f"{kind}_{smoothing}"
    for kind in ("de", "psd", "dasm", "rasm", "asm", "dcau")
    for smoothing in ("movingAve", "LDS")
)
# The features that have a value for each electrode; the others are made of pairs of electrodes.
ELECTRODE_FEATURES = FEATURES[:4]
#: In place of a feature: differential entropy is made of the raw signals.
RAW = "raw"
RATE = 200

_NAME = re.compile(r"(\d+)_(\d{8})\.mat")


@dataclass(frozen=True)
class Trial:
    """One trial: `x` (T, N, C) float32, its label, and where it comes from."""

    x: NDArray[np.float32]
    label: int
    subject: str
    session: int
    trial: int
    file: Path | None = None

    @property
    def name(self) -> str:
        """Subject, session and trial, for people and for grouping."""
        return f"subject {self.subject}, session {self.session}, trial {self.trial}"


def read_seed(
    root: Path | str,
    *,
    feature: str = "de_LDS",
    subjects: Collection[str | int] | None = None,
    sessions: Collection[int] | None = None,
    skip_bad: bool = False,
) -> Records[Trial]:
    """The trials of SEED by subject, session and trial; labels are indices into `CLASSES`.

    Args:
        root: the folder of features, such as ExtractedFeatures; or of signals, Preprocessed_EEG.
        feature: "de_LDS", "de_movingAve", "psd_LDS" or "psd_movingAve"; or "raw", the
            `differential_entropy` of the signals in windows of 1 s, not smoothed.
        subjects: those to read. None: all.
        sessions: those to read, 1 to 3. None: all.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file or trial is missing, damaged or mislabelled; names both.
    """
    root, trials = folder(root), Records[Trial](skip_bad)
    _check_feature(feature)
    with trials.guard():
        _check_labels(root / "label.mat")
    files = _subjects(root, trials)
    _check_known(root, subjects, files)
    for subject, paths in files.items():
        if subjects is not None and subject not in map(str, subjects):
            continue
        for session, path in enumerate(paths, start=1):
            if sessions is None or session in sessions:
                labels = [label + 1 for label in LABELS]
                _read_session(trials, path, feature, labels, subject, session, window=1)
    if not trials and not trials.skipped:
        raise DataError(
            root, None, "no file <subject>_<yyyymmdd>.mat for these subjects and sessions"
        )
    return trials


def read_seed_iv(
    root: Path | str,
    *,
    feature: str = "de_LDS",
    subjects: Collection[str | int] | None = None,
    sessions: Collection[int] | None = None,
    skip_bad: bool = False,
) -> Records[Trial]:
    """The trials of SEED-IV, as `read_seed`; labels are indices into `CLASSES_IV`.

    Args:
        root: the folder eeg_feature_smooth, or eeg_raw_data, with sub-folders 1, 2 and 3.
        feature: as in `read_seed`; "raw" takes windows of 4 s.
        subjects: as in `read_seed`.
        sessions: as in `read_seed`.
        skip_bad: as in `read_seed`.

    Raises:
        DataError: as `read_seed`.
    """
    root, trials = folder(root), Records[Trial](skip_bad)
    _check_feature(feature)
    for session in sorted(sessions or (1, 2, 3)):
        with trials.guard():
            files = _subjects(folder(root / str(session)), trials, sessions=1)
            _check_known(root / str(session), subjects, files)
            for subject, (path,) in files.items():
                if subjects is None or subject in map(str, subjects):
                    labels = LABELS_IV[session - 1]
                    _read_session(trials, path, feature, labels, subject, session, window=4)
    return trials


def front_back(trials: Iterable[Trial], num_train: int = 9) -> tuple[list[Trial], list[Trial]]:
    """The first `num_train` trials of each session, and the rest: SEED's protocol is 9 and 6."""
    trials = list(trials)
    return [t for t in trials if t.trial <= num_train], [t for t in trials if t.trial > num_train]


def _read_session(
    trials: Records[Trial],
    path: Path,
    feature: str,
    labels: Sequence[int],
    subject: str,
    session: int,
    window: int,
) -> None:
    with trials.guard():
        prefix = r"[A-Za-z]+_eeg" if feature == RAW else feature
        arrays = read_arrays(path, re.compile(rf"{prefix}\d+"))
        names: dict[int, str] = {}
        for name in arrays:
            n = int(re.search(r"\d+$", name)[0])
            if n in names or n > len(labels):
                other = f"and {names[n]} is there" if n in names else "more than have a label"
                raise DataError(path, name, f"trial {n} of {len(labels)}: {other}")
            names[n] = name
        for n, label in enumerate(labels, start=1):
            with trials.guard():
                if n not in names:
                    key = "<initials>_eeg" if feature == RAW else feature
                    raise DataError(path, f"{key}{n}", f"no such key (trial {n} of {len(labels)})")
                array = _array(arrays.pop(names[n]))
                if feature == RAW:
                    array = _band_features(path, names[n], array, window)
                x = _check_array(path, names[n], array)
                trials.append(Trial(x, label, subject, session, n, path))


def _band_features(path: Path, name: str, eeg: NDArray, window: int) -> NDArray[np.float64]:
    """Signals (62, samples) -> differential entropy (62, T, 5) in windows of so many seconds."""
    if eeg.ndim != 2 or eeg.shape[0] != 62:
        reason = f"must have shape (electrodes, samples) = (62, ..), got {eeg.shape}"
        raise DataError(path, name, reason)
    _check_finite(path, name, eeg)
    try:
        de = differential_entropy(torch.from_numpy(eeg.astype(np.float64)), RATE, window=window)
    except ValueError as error:
        raise DataError(path, name, str(error)) from error
    return de.transpose(0, 1).numpy()


def _array(found: NDArray | DataError) -> NDArray:
    if isinstance(found, DataError):
        raise found
    return found


def _check_array(path: Path, name: str, array: NDArray) -> NDArray[np.float32]:
    """(62, T, 5) of any real dtype -> (T, 62, 5) float32."""
    if array.ndim != 3 or array.shape[0] != 62 or array.shape[2] != 5 or array.shape[1] < 1:
        reason = f"must have shape (electrodes, T, bands) = (62, .., 5), got {array.shape}"
        raise DataError(path, name, reason)
    _check_finite(path, name, array)
    return np.ascontiguousarray(array.transpose(1, 0, 2), dtype=np.float32)


def _check_finite(path: Path, name: str, array: NDArray) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(np.argwhere(bad)[0].tolist())
        raise DataError(path, name, f"{bad.sum()} values are not finite, the first at {where}")


def _check_labels(path: Path) -> None:
    """The label file has the published labels: copies with 16 entries or reversed are about."""
    arrays = read_arrays(path, re.compile("label"))
    if "label" not in arrays:
        raise DataError(path, "label", "no such key")
    labels = tuple(np.ravel(_array(arrays["label"])).tolist())
    if labels != LABELS:
        reason = f"must be the 15 labels {LABELS}, got {labels}"
        raise DataError(path, "label", reason)


def _check_feature(feature: str) -> None:
    if feature not in (*ELECTRODE_FEATURES, RAW):
        known = ", ".join((*ELECTRODE_FEATURES, RAW))
        raise ValueError(f"read_seed: feature must be one of {known}, got {feature!r}")


def _check_known(root: Path, subjects: Collection[str | int] | None, files: dict) -> None:
    for subject in subjects or ():
        if str(subject) not in files:
            raise DataError(root, f"subject {subject}", f"no file {subject}_<yyyymmdd>.mat")


def _subjects(root: Path, trials: Records, sessions: int = 3) -> dict[str, list[Path]]:
    """Subject -> its files by date."""
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in sorted(root.glob("*.mat")):
        if path.name == "label.mat":
            continue
        with trials.guard():
            match = _NAME.fullmatch(path.name)
            if match is None or not _is_date(match[2]):
                raise DataError(path, None, "must be named <subject>_<yyyymmdd>.mat")
            found[match[1]].append((match[2], path))
    files = {}
    for subject in sorted(found, key=int):
        with trials.guard():
            if len(found[subject]) > sessions:
                reason = f"{len(found[subject])} files of it, but {sessions} sessions"
                raise DataError(root, f"subject {subject}", reason)
            files[subject] = [path for _, path in sorted(found[subject])]
    return files


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True
