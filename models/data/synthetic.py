"""Tiny files in the formats of the data sets, for tests and for trying the commands.

The numbers are random and mean nothing: only names, keys, shapes and labels are as in the data
sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from strnn_models.data import aff_wild2, ck_plus, seed


def write_seed(
    root: Path,
    *,
    subjects: Sequence[int] = (1,),
    num_sessions: int = 3,
    lengths: Sequence[int] = seed.TRIAL_LENGTHS,
    features: Sequence[str] = ("de_LDS", "de_movingAve"),
) -> Path:
    """SEED: label.mat and <subject>_<date>.mat; the class shifts the features of one electrode."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "label.mat", {"label": np.array([seed.LABELS])})
    for subject in subjects:
        for session in range(num_sessions):
            path = root / f"{subject}_{seed.DATES[str(subject)][session]}.mat"
            savemat(path, _trials(features, lengths, seed.LABELS, subject * 10 + session))
    return root


def write_seed_raw(
    root: Path, *, subjects: Sequence[int] = (1,), seconds: int = 4, initials: str = "djc"
) -> Path:
    """SEED's signals, one session: label.mat and <initials>_eeg<n>, (62, samples at 200 Hz)."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    savemat(root / "label.mat", {"label": np.array([seed.LABELS])})
    for subject in subjects:
        random = np.random.default_rng(subject)
        trials = {
            f"{initials}_eeg{n}": random.normal(0, 20, (62, seconds * seed.RATE + 1))
            for n in range(1, len(seed.LABELS) + 1)
        }
        savemat(root / f"{subject}_20131027.mat", trials)
    return root


def write_seed_iv(
    root: Path, *, subjects: Sequence[int] = (1,), length: int = 12, features=("de_LDS",)
) -> Path:
    """SEED-IV: folders 1, 2, 3 of <subject>_<date>.mat."""
    from scipy.io import savemat

    for session, labels in enumerate(seed.LABELS_IV, start=1):
        (root / str(session)).mkdir(parents=True, exist_ok=True)
        for subject in subjects:
            path = root / str(session) / f"{subject}_2015{session:02d}{subject:02d}.mat"
            lengths = [length] * len(labels)
            savemat(path, _trials(features, lengths, labels, subject * 10 + session))
    return root


def write_ck_plus(
    root: Path, *, num_subjects: int = 12, num_frames: int = 4, sequences: Sequence[int] = (1, 2)
) -> Path:
    """CK+: sequences 001, 002, .. of subjects S001, S002, ..; the last of each has no label."""
    for s in range(1, num_subjects + 1):
        for q in [*sequences, max(sequences) + 1]:
            subject, sequence = f"S{s:03d}", f"{q:03d}"
            stem = f"{subject}_{sequence}"
            place = root / "cohn-kanade-images" / subject / sequence
            write_frames(place, [f"{stem}_{k:08d}.png" for k in range(1, num_frames + 1)], seed=s)
            labels = root / "Emotion" / subject / sequence
            labels.mkdir(parents=True, exist_ok=True)
            if q in sequences:
                emotion = 1 + (s + q) % len(ck_plus.CLASSES)
                path = labels / f"{stem}_{num_frames:08d}_emotion.txt"
                path.write_text(f"   {emotion:.7e}\n")
    return root


def write_afew(
    root: Path, *, order: Sequence[str], per_class: int = 2, num_frames: int = 3
) -> Path:
    """AFEW: folders <emotion>/<video> of frames, and list.txt."""
    lines = []
    for k, emotion in enumerate(order):
        for n in range(per_class):
            video = f"{emotion}/{k:03d}{n:06d}"
            names = [f"{t:05d}.jpg" for t in range(1, num_frames + 1)]
            write_frames(root / video, names, seed=10 * k + n)
            lines.append(f"{video} {emotion}")
    (root / "list.txt").write_text("\n".join(lines) + "\n")
    return root


def write_sewa(root: Path, *, num_videos: int = 2, length: int = 20, annotators: int = 3) -> Path:
    """SEWA: raw annotations <stem>_Valence_AV_Aligned.csv and <stem>_Arousal_AV_Aligned.csv."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for v in range(num_videos):
        for what in ("Valence", "Arousal"):
            rows = [
                ",".join(
                    [f"{0.1 * t:.3f}", *(f"{a:.4f}" for a in random.uniform(-1, 1, annotators))]
                )
                for t in range(length)
            ]
            path = root / f"SEW11{v:02d}_{what}_AV_Aligned.csv"
            path.write_text("\n".join(rows) + "\n")
    return root


def write_avec(root: Path, *, num_videos: int = 2, length: int = 20) -> Path:
    """AVEC: labels/Train_DE_01.csv and so on."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for v in range(1, num_videos + 1):
        name = f"Train_DE_{v:02d}"
        rows = ["name;timestamp;arousal;valence;liking"]
        for t in range(length):
            values = ";".join(f"{a:.6f}" for a in random.uniform(-1, 1, 3))
            rows.append(f"'{name}';{0.1 * t:.1f};{values}")
        (root / "labels" / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root


def write_aff_wild2(
    root: Path, *, num_videos: int = 2, length: int = 12, with_frames: bool = True
) -> Path:
    """Aff-Wild2: VA_Set, EXPR_Set, AU_Set; the third frame to ignore, the fifth without a face."""
    random = np.random.default_rng(0)
    rows = {
        "VA": lambda: "{:.3f},{:.3f}".format(*random.uniform(-1, 1, 2)),
        "EXPR": lambda: str(random.integers(0, 7)),
        "AU": lambda: ",".join(map(str, random.integers(0, 2, 12))),
    }
    headers = {
        "VA": "valence,arousal",
        "EXPR": ",".join(aff_wild2.EXPRESSIONS[:7]),
        "AU": ",".join(aff_wild2.ACTION_UNITS),
    }
    ignored = {"VA": "-5,-5", "EXPR": "-1", "AU": ",".join(["-1"] * 12)}
    for part in ("Train_Set", "Validation_Set"):
        for v in range(num_videos):
            name = f"{part[0].lower()}{v}"
            for kind, row in rows.items():
                place = root / f"{kind}_Set" / part
                place.mkdir(parents=True, exist_ok=True)
                lines = [ignored[kind] if t == 2 else row() for t in range(length)]
                (place / f"{name}.txt").write_text("\n".join([headers[kind], *lines]) + "\n")
            if with_frames:
                names = [f"{t:05d}.jpg" for t in range(1, length + 1) if t != 5]
                write_frames(root / "cropped_aligned" / name, names, seed=v)
    return root


def write_frames(place: Path, names: Sequence[str], *, size: int = 16, seed: int = 0) -> None:
    """Image files of random grey blobs."""
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name in names:
        pixels = random.integers(0, 255, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(place / name)


def _trials(features, lengths, labels, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    arrays = {}
    for feature in features:
        for n, (length, label) in enumerate(zip(lengths, labels, strict=True), start=1):
            array = random.normal(20, 2, (62, length, 5))
            array[27] += label
            arrays[f"{feature}{n}"] = array
    return arrays
