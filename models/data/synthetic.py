"""Tiny files in the formats of the data sets, for tests and for trying the commands.

The numbers are random and mean nothing: only names, keys, shapes and labels are as in the data
sets.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from strnn_models.data import aff_wild2, ck_plus, seed, seed_files


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
            path = root / f"{subject}_{seed_files.DATES[str(subject)][session]}.mat"
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


def write_seed_v(root: Path, *, subjects: Sequence[int] = (1,), length: int = 3) -> Path:
    """SEED-V: <subject>_123.npz with two pickles; each trial of a session a window longer."""
    root.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        random = np.random.default_rng(subject)
        lengths = [length + k % 15 for k in range(45)]
        data = {k: random.normal(20, 2, (n, 310)) for k, n in enumerate(lengths)}
        labels = {k: np.full(n, k % 5) for k, n in enumerate(lengths)}
        pickles = {"data": pickle.dumps(data), "label": pickle.dumps(labels)}
        np.savez(root / f"{subject}_123.npz", **pickles)
    return root


def write_seed_vii(root: Path, *, subjects: Sequence[int] = (1,), length: int = 3) -> Path:
    """SEED-VII: <subject>.mat with de_<n> and de_LDS_<n>, (T, 5, 62)."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        random = np.random.default_rng(subject)
        arrays = {
            f"{feature}_{n}": random.normal(20, 2, (length + n % 4, 5, 62))
            for feature in ("de", "de_LDS")
            for n in range(1, 81)
        }
        savemat(root / f"{subject}.mat", arrays)
    return root


def write_deap(
    root: Path, *, subjects: Sequence[int] = (1,), shape: tuple[int, int, int] = (40, 40, 8064)
) -> Path:
    """DEAP: s01.mat and so on."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        random = np.random.default_rng(subject)
        labels = random.uniform(1, 9, (shape[0], 4))
        data = random.normal(0, 10, shape).astype(np.float32)
        savemat(root / f"s{subject:02d}.mat", {"data": data, "labels": labels})
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


def write_ck_plus_48(root: Path, *, num_subjects: int = 12, size: int = 48) -> Path:
    """CK+48: folders of emotions; three frames of sequence 001 of each subject."""
    for s in range(1, num_subjects + 1):
        names = [f"S{s:03d}_001_{k:08d}.png" for k in (11, 12, 13)]
        emotion = ck_plus.CLASSES[s % len(ck_plus.CLASSES)]
        write_frames(root / emotion, names, size=size, seed=s)
    return root


def write_afew_aligned(root: Path, *, order: Sequence[str], num_frames: int = 3) -> Path:
    """AFEW's aligned faces beside empty videos; the last video shows no face."""
    for k, emotion in enumerate(order):
        (root / emotion).mkdir(parents=True)
        (root / emotion / f"{k:09d}.avi").touch()
        if k < len(order) - 1:
            place = root / "AlignedFaces_LBPTOP_Points" / "Faces" / f"{k:09d}"
            write_frames(place, [f"{k:09d}_{t:03d}.jpg" for t in range(num_frames)], seed=k)
    return root


def write_recola(root: Path, *, part: str = "train", num_videos: int = 2, length: int = 9) -> Path:
    """RECOLA: ratings_gold_standard as arff and ratings_individual as csv, of three annotators."""
    random = np.random.default_rng(0)
    attributes = ("Instance_name string", "frameTime numeric", "GoldStandard numeric")
    head = ["@relation GOLDSTANDARD", "", *(f"@attribute {a}" for a in attributes), "", "@data", ""]
    for what in ("arousal", "valence"):
        for name in [f"{part}_{v}" for v in range(1, num_videos + 1)]:
            ratings = random.uniform(-1, 1, (length, 3)).round(3)
            gold = [f"{name},{0.04 * t:g},{row.mean():.6f}" for t, row in enumerate(ratings)]
            each = [
                ";".join([f"{0.04 * t:g}", *map(str, row)])
                for t, row in enumerate(ratings.tolist())
            ]
            _write_lines(root / "ratings_gold_standard" / what / f"{name}.arff", head + gold)
            csv = ["time;FM1;FM2;FM3", *each]
            _write_lines(root / "ratings_individual" / what / f"{name}.csv", csv)
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


def write_mtl(root: Path, *, num_videos: int = 2, with_frames: bool = True) -> Path:
    """The multi-task challenge's two files: frames 2, 3 and 7, the last without an expression."""
    random = np.random.default_rng(0)
    for part in ("train", "validation"):
        lines = ["image,valence,arousal,expression,aus"]
        for v in range(num_videos):
            for k in (2, 3, 7):
                va = ",".join(f"{a:.3f}" for a in random.uniform(-1, 1, 2))
                units = ",".join(map(str, random.integers(0, 2, 12)))
                lines.append(f"{part[0]}{v}/{k:05d}.jpg,{va},{-1 if k == 7 else k},{units}")
            if with_frames:
                names = [f"{t:05d}.jpg" for t in range(1, 10)]
                write_frames(root / "cropped_aligned" / f"{part[0]}{v}", names, seed=v)
        _write_lines(root / "MTL_Challenge" / f"{part}_set.txt", lines)
    return root


def write_frames(place: Path, names: Sequence[str], *, size: int = 16, seed: int = 0) -> None:
    """Image files of random grey blobs."""
    from PIL import Image

    place.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name in names:
        pixels = random.integers(0, 255, (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(place / name)


def write_mat73(path: Path, arrays: Mapping[str, np.ndarray], **options: object) -> None:
    """A file as MATLAB's -v7.3 writes it: HDF5 after a header, axes reversed; h5py's options."""
    import h5py

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            data = file.create_dataset(name, data=array.T, **options)
            data.attrs["MATLAB_class"] = np.bytes_(b"double")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM")


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _trials(features, lengths, labels, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    arrays = {}
    for feature in features:
        for n, (length, label) in enumerate(zip(lengths, labels, strict=True), start=1):
            array = random.normal(20, 2, (62, length, 5))
            array[27] += label
            arrays[f"{feature}{n}"] = array
    return arrays
