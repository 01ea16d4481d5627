"""SEED and SEED-IV: EEG trials in MATLAB files, as features or as raw signals, read by key name.

SEED: ``<folder>/<subject>_<yyyymmdd>.mat``, 15 trials in each, beside ``label.mat``; a subject's
files in order of date are its sessions 1, 2, 3; or in folders ``1``, ``2``, ``3``, one for each
session. SEED-IV: ``<folder>/<session>/`` with such files of
24 trials. In ``ExtractedFeatures`` and ``eeg_feature_smooth`` trial n is an array (62 electrodes, T
windows, 5 bands) under a key such as ``de_LDS<n>``; in ``Preprocessed_EEG`` and ``eeg_raw_data``
(recalled) it is a signal (62 electrodes, samples at 200 Hz) under ``<initials>_eeg<n>``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.mat5 import MatFile
from strnn_models.data.records import DataError, Records, float32, folder, listed, nothing

BANDS = ("delta", "theta", "alpha", "beta", "gamma")
#: trial -> label of SEED, the same in every session: -1 negative, 0 neutral, +1 positive
LABELS = (1, 0, -1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 0, 1, -1)
CLASSES = ("negative", "neutral", "positive")
#: trial -> number of one-second windows in SEED
TRIAL_LENGTHS = (235, 233, 206, 238, 185, 195, 237, 216, 265, 237, 235, 233, 235, 238, 206)
#: subject -> the dates of its sessions 1, 2 and 3 in SEED
DATES = {
    "1": ("20131027", "20131030", "20131107"),
    "2": ("20140404", "20140413", "20140419"),
    "3": ("20140603", "20140611", "20140629"),
    "4": ("20140621", "20140702", "20140705"),
    "5": ("20140411", "20140418", "20140506"),
    "6": ("20130712", "20131016", "20131113"),
    "7": ("20131027", "20131030", "20131106"),
    "8": ("20140511", "20140514", "20140521"),
    "9": ("20140620", "20140627", "20140704"),
    "10": ("20131130", "20131204", "20131211"),
    "11": ("20140618", "20140625", "20140630"),
    "12": ("20131127", "20131201", "20131207"),
    "13": ("20140527", "20140603", "20140610"),
    "14": ("20140601", "20140615", "20140627"),
    "15": ("20130709", "20131016", "20131105"),
}
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

SESSIONS = (1, 2, 3)

#: subject, session, and the file that has it
_File = tuple[str, int, Path]
_NAME = re.compile(r"([0-9]+)_([0-9]{8})\.mat")


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
            Its sessions are known by the dates in `DATES`; other dates count in their order, where
            all three files of a subject are there; with folders 1, 2 and 3 dates do not matter.
        feature: "de_LDS", "de_movingAve", "psd_LDS" or "psd_movingAve"; or "raw", the
            `differential_entropy` of the signals in windows of 1 s, not smoothed.
        subjects: a list of those to read. None: all.
        sessions: a list of those to read, 1 to 3. None: all.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file or trial is missing, damaged or mislabelled; names both.
        ValueError: `subjects` or `sessions` is no list, or names what cannot be.
    """
    root, trials = folder(root), Records[Trial](skip_bad)
    _check_feature(feature)
    wanted = _Wanted(subjects, sessions)
    with trials.guard():
        places = (root, *(root / str(session) for session in SESSIONS))
        known = [place / "label.mat" for place in places if os.path.lexists(place / "label.mat")]
        if not known:
            nothing(root, "has no file label.mat")
        for path in known:
            _check_labels(path)
    if any(os.path.isdir(root / str(session)) for session in SESSIONS):
        files = _session_folders(root, trials, wanted)
    else:
        files = _dated_files(root, trials, wanted)
    for subject, session, path in files:
        labels = [label + 1 for label in LABELS]
        _read_session(trials, path, feature, labels, subject, session, window=1)
    if not trials and not trials.skipped:
        nothing(root, "no file <subject>_<yyyymmdd>.mat for these subjects and sessions")
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
    for subject, session, path in _session_folders(root, trials, _Wanted(subjects, sessions)):
        _read_session(trials, path, feature, LABELS_IV[session - 1], subject, session, window=4)
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
    prefix = r"[A-Za-z]+_eeg" if feature == RAW else feature
    with trials.guard(), MatFile(path, re.compile(rf"{prefix}[0-9]+")) as file:
        names: dict[int, str] = {}
        for name in file.variables:
            n = int(re.search(r"[0-9]+$", name)[0])
            if n in names or not 1 <= n <= len(labels):
                other = f"and {names[n]} is there" if n in names else "it has no label"
                raise DataError(path, name, f"trial {n} of {len(labels)}: {other}")
            names[n] = name
        for n, label in enumerate(labels, start=1):
            with trials.guard():
                if n not in names:
                    key = "<initials>_eeg" if feature == RAW else feature
                    raise DataError(path, f"{key}{n}", f"no such key (trial {n} of {len(labels)})")
                x = _read_trial(file, names[n], window if feature == RAW else None)
                trials.append(Trial(x, label, subject, session, n, path))


def _read_trial(file: MatFile, name: str, window: int | None) -> NDArray[np.float32]:
    """A trial's features (T, 62, 5); of its signals, in windows of so many seconds, if asked."""
    variable, path = file.variables[name], file.path
    shape = variable.shape
    if variable.problem is None and window is not None and (len(shape) != 2 or shape[0] != 62):
        reason = f"must have shape (electrodes, samples) = (62, ..), got {shape}"
        raise DataError(path, name, reason)
    if variable.problem is None and window is None and (shape[::2] != (62, 5) or 0 in shape):
        reason = f"must have shape (electrodes, T, bands) = (62, .., 5), got {shape}"
        raise DataError(path, name, reason)
    array = file.read(name)
    if window is not None:
        array = _band_features(path, name, array, window)
    return np.ascontiguousarray(float32(path, name, array).transpose(1, 0, 2))


def _band_features(path: Path, name: str, eeg: NDArray, window: int) -> NDArray[np.float64]:
    """Signals (62, samples) -> differential entropy (62, T, 5) in windows of so many seconds."""
    signals = torch.from_numpy(float32(path, name, eeg)).double()
    try:
        # A few electrodes of a long signal at a time: the filters need several times its memory.
        parts = signals.split(max(1, (1 << 22) // max(1, signals.shape[1])))
        de = [differential_entropy(part, RATE, window=window) for part in parts]
    except ValueError as error:
        raise DataError(path, name, str(error)) from error
    return torch.cat(de, dim=1).transpose(0, 1).numpy()


def _check_labels(path: Path) -> None:
    """The label file has the published labels: copies with 16 entries or reversed are about."""
    with MatFile(path, re.compile("label")) as file:
        if "label" not in file.variables:
            raise DataError(path, "label", "no such key")
        variable = file.variables["label"]
        if variable.problem is None and math.prod(variable.shape) > 2 * len(LABELS):
            labels = f"{math.prod(variable.shape)} labels"
        else:
            labels = tuple(np.ravel(file.read("label")).tolist())
    if labels != LABELS:
        reason = f"must be the 15 labels {LABELS}, got {labels}"
        raise DataError(path, "label", reason)


def _check_feature(feature: str) -> None:
    if feature not in (*ELECTRODE_FEATURES, RAW):
        known = ", ".join((*ELECTRODE_FEATURES, RAW))
        raise ValueError(f"read_seed: feature must be one of {known}, got {feature!r}")


class _Wanted:
    """The subjects and sessions that are asked for; None: all.

    Raises:
        ValueError: something else than a list of them: a text would be read character by character.
    """

    def __init__(
        self, subjects: Collection[str | int] | None, sessions: Collection[int] | None
    ) -> None:
        self.subjects = _names("subjects", subjects)
        chosen = _names("sessions", sessions)
        unknown = sorted((chosen or set()) - set(map(str, SESSIONS)))
        if unknown:
            raise ValueError(f"read_seed: sessions must be in 1..3, got {', '.join(unknown)}")
        self.sessions = [n for n in SESSIONS if chosen is None or str(n) in chosen]

    def check(self, root: Path, found: Collection[str]) -> None:
        """Raises a DataError for the first subject that is missing."""
        for subject in sorted(self.subjects or ()):
            if subject not in found:
                raise DataError(root, f"subject {subject}", f"no file {subject}_<yyyymmdd>.mat")


def _names(what: str, given: Collection[str | int] | None) -> set[str] | None:
    if given is None:
        return None
    good = isinstance(given, Collection) and not isinstance(given, str | bytes) and len(given)
    if not good or not all(isinstance(v, str | int | np.integer) for v in given):
        raise ValueError(f"read_seed: {what} must be a list such as [1, 2], got {given!r}")
    return set(map(str, given))


def _session_folders(root: Path, trials: Records, wanted: _Wanted) -> Iterator[_File]:
    """The files of folders 1, 2 and 3, one of each subject."""
    for session in wanted.sessions:
        place = root / str(session)
        with trials.guard():
            found = _subjects(folder(place), trials)
            wanted.check(place, found)
            for subject, files in found.items():
                if wanted.subjects is not None and subject not in wanted.subjects:
                    continue
                with trials.guard():
                    if len(files) > 1:
                        reason = f"{len(files)} files of it in the folder of one session"
                        raise DataError(place, f"subject {subject}", reason)
                    (path,) = files.values()
                    yield subject, session, path


def _dated_files(root: Path, trials: Records, wanted: _Wanted) -> Iterator[_File]:
    """The files of one folder, their sessions told from their dates."""
    found = _subjects(root, trials)
    wanted.check(root, found)
    for subject, files in found.items():
        if wanted.subjects is not None and subject not in wanted.subjects:
            continue
        with trials.guard():
            if len(files) > len(SESSIONS):
                reason = f"{len(files)} files of it, but {len(SESSIONS)} sessions"
                raise DataError(root, f"subject {subject}", reason)
            dates = DATES.get(subject, ())
            if not set(files) <= set(dates):
                dates = tuple(sorted(files))
            if len(dates) < len(SESSIONS):
                reason = (
                    f"which sessions its {len(files)} files are is not known: their dates "
                    f"{', '.join(files)} are not SEED's, and not all three are there; put them "
                    "into folders 1, 2 and 3"
                )
                raise DataError(root, f"subject {subject}", reason)
            for session in wanted.sessions:
                if dates[session - 1] in files:
                    yield subject, session, files[dates[session - 1]]


def _subjects(root: Path, trials: Records) -> dict[str, dict[str, Path]]:
    """Subject -> date -> file, both in ascending order."""
    found: dict[str, dict[str, Path]] = {}
    for path in listed(root, end=".mat"):
        if path.name == "label.mat":
            continue
        with trials.guard():
            match = _NAME.fullmatch(path.name)
            if match is None or not _is_date(match[2]):
                raise DataError(path, None, "must be named <subject>_<yyyymmdd>.mat")
            found.setdefault(match[1], {})[match[2]] = path
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True
