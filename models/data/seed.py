"""The SEED data sets: EEG trials, as features or as raw signals, read by key name.

| data set | files | trials |
|---|---|---|
| SEED | ``<subject>_<yyyymmdd>.mat``, ``label.mat``; or in folders 1, 2, 3 | 3 sessions of 15 |
| SEED-IV | ``<session>/<subject>_<yyyymmdd>.mat`` | 3 sessions of 24 |
| SEED-V | ``<subject>_123.npz``, all sessions | 3 sessions of 15 |
| SEED-VII | ``<subject>.mat``, all sessions | 4 sessions of 20 |

In ``ExtractedFeatures`` and ``eeg_feature_smooth`` trial n is an array (62 electrodes, T windows,
5 bands) under a key such as ``de_LDS<n>``; in ``Preprocessed_EEG`` and ``eeg_raw_data`` (recalled)
it is a signal (62 electrodes, samples at 200 Hz) under ``<initials>_eeg<n>``. SEED-VII's
``EEG_features`` have ``de_<n>`` and ``de_LDS_<n>`` (T, 5, 62), n from 1 to 80; the order of its
emotions is that of public loaders, and has the numbers of clips that the data set's page gives.
SEED-V's ``EEG_DE_features`` have two pickled dicts ``data`` (T, 62 * 5) and ``label`` (T,) by
trials 0 to 44, electrode by electrode; see `pickled`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from strnn_models.data import seed_files
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.mat5 import MatFile
from strnn_models.data.mat73 import Mat73File, open_mat
from strnn_models.data.npy import read_npz
from strnn_models.data.pickled import read_dict
from strnn_models.data.records import DataError, Records, float32, folder, nothing
from strnn_models.data.seed_files import Choice, Names, Wanted

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
CLASSES_V = ("disgust", "fear", "sad", "neutral", "happy")
CLASSES_VII = ("happy", "surprise", "neutral", "disgust", "fear", "sad", "anger")
# Each session of SEED-VII shows five emotions there and back, twice.
_FIVE = ((0, 2, 3, 5, 6), (6, 5, 4, 2, 1), (0, 1, 3, 4, 6), (3, 5, 4, 1, 0))
#: session -> trial -> label of SEED-VII
LABELS_VII = tuple((five + five[::-1]) * 2 for five in _FIVE)
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


@dataclass(frozen=True)
class Family:
    """What tells one SEED data set from another.

    Attributes:
        reader: name of the function that reads it.
        classes: names of the labels.
        trials: session -> number of trials.
        names: of the files.
        features: those that it has.
        labels: session -> trial -> label; None: they stand in the files.
        key: of a trial, after the name of the feature and before the number.
        axes: of a trial in the file: T windows, N electrodes, C bands.
        window: seconds of those that raw signals are cut into; None: it is not read raw.
    """

    reader: str
    classes: tuple[str, ...]
    trials: tuple[int, ...]
    names: Names
    features: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...] | None = None
    key: str = ""
    axes: str = "NTC"
    window: int | None = None

    def numbers(self, sessions: Iterable[int]) -> list[tuple[int, int]]:
        """Session and trial, counted in the session, of the trials of a file, in order."""
        return [(s, n) for s in sessions for n in range(1, self.trials[s - 1] + 1)]


SEED = Family(
    "read_seed",
    CLASSES,
    (15, 15, 15),
    seed_files.DATED,
    (*ELECTRODE_FEATURES, RAW),
    (tuple(label + 1 for label in LABELS),) * 3,
    window=1,
)
SEED_IV = Family(
    "read_seed_iv", CLASSES_IV, (24, 24, 24), seed_files.DATED, SEED.features, LABELS_IV, window=4
)
SEED_V = Family("read_seed_v", CLASSES_V, (15, 15, 15), seed_files.SEED_V, ("de",))
SEED_VII = Family(
    "read_seed_vii",
    CLASSES_VII,
    (20, 20, 20, 20),
    seed_files.SEED_VII,
    ("de", "de_LDS"),
    LABELS_VII,
    key="_",
    axes="TCN",
)


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
            Its sessions are known by their dates (`seed_files.DATES`); other dates count in their
            order, where all three files of a subject are there; in folders 1, 2 and 3 they do not
            matter.
        feature: "de_LDS", "de_movingAve", "psd_LDS" or "psd_movingAve"; or "raw", the
            `differential_entropy` of the signals in windows of 1 s, not smoothed.
        subjects: a list of those to read. None: all.
        sessions: a list of those to read, 1 to 3. None: all.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file or trial is missing, damaged or mislabelled; names both.
        ValueError: `subjects` or `sessions` is no list, or names what cannot be.
    """
    root, trials, choice = _start(SEED, root, feature, subjects, sessions, skip_bad)
    places = (root, *(root / str(n) for n in range(1, 4)))
    with trials.guard():
        known = [place / "label.mat" for place in places if os.path.lexists(place / "label.mat")]
        if not known:
            nothing(root, "has no file label.mat")
        for path in known:
            _check_labels(path)
    in_folders = any(os.path.isdir(place) for place in places[1:])
    walk = choice.in_folders if in_folders else choice.by_date
    return _read(SEED, root, feature, walk(root, SEED.names, trials), trials)


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
    root, trials, choice = _start(SEED_IV, root, feature, subjects, sessions, skip_bad)
    files = choice.in_folders(root, SEED_IV.names, trials)
    return _read(SEED_IV, root, feature, files, trials)


def read_seed_v(
    root: Path | str,
    *,
    feature: str = "de",
    subjects: Collection[str | int] | None = None,
    sessions: Collection[int] | None = None,
    skip_bad: bool = False,
) -> Records[Trial]:
    """The trials of SEED-V, as `read_seed`; labels, from the files, are indices into `CLASSES_V`.

    Args:
        root: the folder EEG_DE_features.
        feature: "de", which is all that it has.
        subjects: as in `read_seed`.
        sessions: as in `read_seed`.
        skip_bad: as in `read_seed`.

    Raises:
        DataError: as `read_seed`; or the pickles in a file hold more than dicts of arrays.
    """
    root, trials, choice = _start(SEED_V, root, feature, subjects, sessions, skip_bad)
    for subject, wanted, path in choice.by_subject(root, SEED_V.names, trials):
        with trials.guard():
            _read_pickled(trials, path, subject, wanted)
    return _some(root, trials, SEED_V)


def read_seed_vii(
    root: Path | str,
    *,
    feature: str = "de_LDS",
    subjects: Collection[str | int] | None = None,
    sessions: Collection[int] | None = None,
    skip_bad: bool = False,
) -> Records[Trial]:
    """The trials of SEED-VII, as `read_seed`; labels are indices into `CLASSES_VII`.

    Args:
        root: the folder EEG_features.
        feature: "de_LDS" or "de".
        subjects: as in `read_seed`.
        sessions: a list of those to read, 1 to 4. None: all.
        skip_bad: as in `read_seed`.

    Raises:
        DataError: as `read_seed`.
    """
    root, trials, choice = _start(SEED_VII, root, feature, subjects, sessions, skip_bad)
    files = choice.by_subject(root, SEED_VII.names, trials)
    return _read(SEED_VII, root, feature, files, trials)


def front_back(trials: Iterable[Trial], num_train: int = 9) -> tuple[list[Trial], list[Trial]]:
    """The first `num_train` trials of each session, and the rest: SEED's protocol is 9 and 6."""
    trials = list(trials)
    return [t for t in trials if t.trial <= num_train], [t for t in trials if t.trial > num_train]


def _start(
    family: Family,
    root: Path | str,
    feature: str,
    subjects: Collection[str | int] | None,
    sessions: Collection[int] | None,
    skip_bad: bool,
) -> tuple[Path, Records[Trial], Choice]:
    """The arguments of a reader, checked."""
    if feature not in family.features:
        known = ", ".join(family.features)
        raise ValueError(f"{family.reader}: feature must be one of {known}, got {feature!r}")
    choice = Choice(family.reader, len(family.trials), subjects, sessions)
    return folder(root), Records(skip_bad), choice


def _some(root: Path, trials: Records[Trial], family: Family) -> Records[Trial]:
    if not trials and not trials.skipped:
        nothing(root, f"no file {family.names.words} for these subjects and sessions")
    return trials


def _read(
    family: Family, root: Path, feature: str, files: Iterable[Wanted], trials: Records[Trial]
) -> Records[Trial]:
    """The trials of MATLAB files."""
    whole = family.names is not seed_files.DATED  # all sessions in one file
    for subject, wanted, path in files:
        held = range(1, len(family.trials) + 1) if whole else wanted
        _read_mat(trials, path, family, feature, subject, family.numbers(held), wanted)
    return _some(root, trials, family)


def _read_mat(
    trials: Records[Trial],
    path: Path,
    family: Family,
    feature: str,
    subject: str,
    numbers: list[tuple[int, int]],
    sessions: Collection[int],
) -> None:
    """The trials of these sessions of a file that has trials of these `numbers`."""
    raw = feature == RAW
    prefix = r"[A-Za-z]+_eeg" if raw else feature + family.key
    with trials.guard(), open_mat(path, re.compile(rf"{prefix}[0-9]+")) as file:
        names: dict[int, str] = {}
        for name in file.variables:
            k = int(re.search(r"[0-9]+$", name)[0])
            if k in names or not 1 <= k <= len(numbers):
                other = f"and {names[k]} is there" if k in names else "it has no label"
                raise DataError(path, name, f"trial {k} of {len(numbers)}: {other}")
            names[k] = name
        for k, (session, n) in enumerate(numbers, start=1):
            if session not in sessions:
                continue
            with trials.guard():
                if k not in names:
                    key = "<initials>_eeg" if raw else feature + family.key
                    reason = f"no such key (trial {k} of {len(numbers)})"
                    raise DataError(path, f"{key}{k}", reason)
                x = _read_trial(file, names[k], family, raw)
                label = family.labels[session - 1][n - 1]
                trials.append(Trial(x, label, subject, session, n, path))


def _read_trial(
    file: MatFile | Mat73File, name: str, family: Family, raw: bool
) -> NDArray[np.float32]:
    """A trial's features (T, 62, 5), or those of its raw signals."""
    variable, path = file.variables[name], file.path
    shape = variable.shape
    if variable.problem is None and raw and (len(shape) != 2 or shape[0] != 62):
        reason = f"must have shape (electrodes, samples) = (62, ..), got {shape}"
        raise DataError(path, name, reason)
    extents = dict(zip(family.axes, shape, strict=False))
    good = len(shape) == 3 and (extents["N"], extents["C"]) == (62, 5) and extents["T"]
    if variable.problem is None and not raw and not good:
        axes = ", ".join({"N": "electrodes", "T": "T", "C": "bands"}[axis] for axis in family.axes)
        wanted = ", ".join({"N": "62", "T": "..", "C": "5"}[axis] for axis in family.axes)
        raise DataError(path, name, f"must have shape ({axes}) = ({wanted}), got {shape}")
    array = file.read(name)
    if raw:
        return float32(path, name, band_features(path, name, array, RATE, family.window))
    order = [family.axes.index(axis) for axis in "TNC"]
    return np.ascontiguousarray(float32(path, name, array).transpose(order))


def band_features(
    path: Path, record: str, eeg: NDArray, rate: float, window: float, **options: object
) -> NDArray[np.float64]:
    """Signals (N, samples) -> `differential_entropy` (T, N, C) in windows of so many seconds."""
    signals = torch.from_numpy(float32(path, record, eeg)).double()
    try:
        # A few electrodes of a long signal at a time: the filters need several times its memory.
        parts = signals.split(max(1, (1 << 22) // max(1, signals.shape[1])))
        de = [differential_entropy(part, rate, window=window, **options) for part in parts]
    except ValueError as error:
        raise DataError(path, record, str(error)) from error
    return torch.cat(de, dim=1).numpy()


def _read_pickled(
    trials: Records[Trial], path: Path, subject: str, sessions: Collection[int]
) -> None:
    """The trials of these sessions of a file of SEED-V."""
    pickles = read_npz(path, ("data", "label"), kinds="S")
    data, labels = (_dict(path, name, array) for name, array in pickles.items())
    for k, (session, n) in enumerate(SEED_V.numbers((1, 2, 3))):
        if session not in sessions:
            continue
        with trials.guard():
            x, label = _array(path, "data", k, data), _array(path, "label", k, labels)
            if x.ndim != 2 or x.shape[1] != 62 * 5 or not len(x):
                reason = f"must have shape (T, electrodes * bands) = (.., 310), got {x.shape}"
                raise DataError(path, f"data {k}", reason)
            label = np.ravel(label)
            if len(label) != len(x) or (label != label[0]).any() or label[0] not in range(5):
                some = np.unique(label)[:9].tolist()
                reason = f"must be {len(x)} times one label in 0..4, got {len(label)} of {some}"
                raise DataError(path, f"label {k}", reason)
            x = float32(path, f"data {k}", x.reshape(-1, 62, 5))
            trials.append(Trial(x, int(label[0]), subject, session, n, path))


def _dict(path: Path, name: str, array: NDArray) -> dict:
    try:
        if array.shape:
            raise ValueError(f"must be one pickle, has shape {array.shape}")
        return read_dict(array.item())
    except ValueError as error:
        raise DataError(path, name, str(error)) from error


def _array(path: Path, part: str, k: int, arrays: dict) -> NDArray:
    array = arrays.get(k)
    if not isinstance(array, np.ndarray):
        reason = "no such trial" if array is None else "must be an array of real numbers"
        raise DataError(path, f"{part} {k}", reason)
    return array


def _check_labels(path: Path) -> None:
    """The label file has the published labels: copies with 16 entries or reversed are about."""
    with open_mat(path, re.compile("label")) as file:
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
