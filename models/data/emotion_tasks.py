"""Tasks from the files of the data sets, which their owners give on request; none is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from strnn_models.data import afew, aff_wild2, ck_plus, deap, recola, seed, sewa
from strnn_models.data.frames import ClipDataset
from strnn_models.data.records import Records, Skip
from strnn_models.data.splits import split
from strnn_models.data.tasks import Task, register
from strnn_models.data.traces import Trace, TraceWindows
from strnn_models.data.windows import Windows, standardise
from torch.utils.data import Dataset, Subset

import strnn_kernels as sk

VALENCE_AROUSAL = ("valence", "arousal")


def eeg_task(
    name: str,
    root: str,
    *,
    num_train: int,
    feature: str = "de_LDS",
    subjects: Sequence[int] | None = None,
    sessions: Sequence[int] | None = None,
    by: str = "front_back",
    sample_length: int = 9,
    stride: int = 1,
    valid_trials: int = 0,
    test_size: float = 0.25,
    split_seed: int = 0,
    allow_leakage: bool = False,
    skip_bad: bool = False,
) -> Task:
    """Windows of the trials of a SEED data set.

    Args:
        name: "seed", "seed_iv", "seed_v" or "seed_vii".
        root: the folder of features, or of raw signals.
        num_train: trials at the front of each session to train on, with by="front_back".
        feature: see `read_seed` and its sisters.
        subjects: None: all, pooled; the protocol of the papers is one at a time.
        sessions: None: all.
        by: "front_back", "trial", "subject" or "random" (see `split`).
        sample_length: T.
        stride: of the windows.
        valid_trials: training trials of each session, the last ones, set apart for validation; with
            front_back. 0: no validation, every epoch is trained, the last one counts.
        test_size: see `split`.
        split_seed: see `split`.
        allow_leakage: see `split`.
        skip_bad: see `read_seed`.
    """
    read, classes = {
        "seed": (seed.read_seed, seed.CLASSES),
        "seed_iv": (seed.read_seed_iv, seed.CLASSES_IV),
        "seed_v": (seed.read_seed_v, seed.CLASSES_V),
        "seed_vii": (seed.read_seed_vii, seed.CLASSES_VII),
    }[name]
    options = {"feature": feature, "sessions": sessions}
    return _trials_task(
        name,
        f"{name.upper().replace('_', '-')}, {feature} features, from {root}",
        partial(read, root, subjects=subjects, skip_bad=skip_bad, **options),
        classes,
        "seed-62",
        num_train=num_train,
        by=by,
        sample_length=sample_length,
        stride=stride,
        valid_trials=valid_trials,
        test_size=test_size,
        split_seed=split_seed,
        allow_leakage=allow_leakage,
    )


# The papers train on 9 of 15 and 16 of 24; on 2 of 3 and 3 of 4 folds of five trials each.
register("seed")(partial(eeg_task, "seed", num_train=9))
register("seed_iv")(partial(eeg_task, "seed_iv", num_train=16))
register("seed_v")(partial(eeg_task, "seed_v", num_train=10, feature="de"))
register("seed_vii")(partial(eeg_task, "seed_vii", num_train=15))


@register("deap")
def deap_task(
    root: str,
    target: str = "valence",
    threshold: float = 5.0,
    num_train: int = 30,
    subjects: Sequence[int] | None = None,
    by: str = "trial",
    sample_length: int = 9,
    stride: int = 1,
    valid_trials: int = 0,
    test_size: float = 0.25,
    split_seed: int = 0,
    allow_leakage: bool = False,
    skip_bad: bool = False,
) -> Task:
    """Windows of DEAP's trials, rated high or low.

    Args:
        root: see `read_deap`.
        target: see `read_deap`.
        threshold: see `read_deap`.
        num_train: as in `eeg_task`.
        subjects: None: all, pooled.
        by: as in `eeg_task`.
        sample_length: T.
        stride: of the windows.
        valid_trials: as in `eeg_task`.
        test_size: see `split`.
        split_seed: see `split`.
        allow_leakage: see `split`.
        skip_bad: see `read_deap`.
    """
    options = {"target": target, "threshold": threshold}
    return _trials_task(
        "deap",
        f"DEAP, {target} above {threshold:g} or not, from {root}",
        partial(deap.read_deap, root, subjects=subjects, skip_bad=skip_bad, **options),
        deap.classes(target),
        "deap-32",
        num_train=num_train,
        by=by,
        sample_length=sample_length,
        stride=stride,
        valid_trials=valid_trials,
        test_size=test_size,
        split_seed=split_seed,
        allow_leakage=allow_leakage,
    )


@register("ck_plus")
def ck_plus_task(
    root: str,
    fold: int = 0,
    num_frames: int = 10,
    size: int = 48,
    grey: bool = True,
    contempt: bool = True,
    skip_bad: bool = False,
) -> Task:
    """CK+: one of the 10 subject-disjoint folds to test on, the next one to validate on.

    Args:
        root: see `read_ck_plus`.
        fold: to test on, 0 to 9.
        num_frames: the most frames of a clip.
        size: rows and cols of a frame.
        grey: one channel in place of three.
        contempt: see `read_ck_plus`.
        skip_bad: see `read_ck_plus`.
    """
    clips = ck_plus.read_ck_plus(root, contempt=contempt, skip_bad=skip_bad).some(root)
    if not 0 <= fold < ck_plus.NUM_FOLDS:
        raise ValueError(f"task ck_plus: fold must be in 0..9, got {fold}")
    held = {fold: "test", (fold + 1) % ck_plus.NUM_FOLDS: "valid"}
    parts: dict[str, list] = {"train": [], "valid": [], "test": []}
    for clip in clips:
        parts[held.get(clip.fold, "train")].append(clip)
    names = ck_plus.classes(contempt)
    return _clip_task(
        "ck_plus", f"CK+ from {root}, fold {fold}", parts, names, clips, num_frames, size, grey
    )


@register("afew")
def afew_task(
    root: str,
    order: str,
    num_frames: int = 16,
    size: int = 48,
    grey: bool = True,
    train: str = "train_afew",
    test: str = "val_afew",
    train_list: str | None = None,
    test_list: str | None = None,
    valid_size: float = 0.2,
    split_seed: int = 0,
    skip_bad: bool = False,
) -> Task:
    """AFEW: the official validation part to test on, a share of the training clips to validate on.

    Args:
        root: folder that has the two parts.
        order: of the classes, see `read_afew`.
        num_frames: the most frames of a clip.
        size: rows and cols of a frame.
        grey: one channel in place of three.
        train: folder of the training part.
        test: folder of the part to test on.
        train_list: list of clips, see `read_afew`.
        test_list: list of clips.
        valid_size: share of the training clips.
        split_seed: of the choice of them.
        skip_bad: see `read_afew`.
    """
    options = {"order": order, "skip_bad": skip_bad}
    clips = afew.read_afew(Path(root) / train, list_file=train_list, **options).some(root)
    tests = afew.read_afew(Path(root) / test, list_file=test_list, **options).some(root)
    chosen = np.random.default_rng(split_seed).permutation(len(clips))
    num_valid = round(valid_size * len(clips))
    parts = {
        "train": [clips[k] for k in sorted(chosen[num_valid:])],
        "valid": [clips[k] for k in sorted(chosen[:num_valid])],
        "test": list(tests),
    }
    clips.skipped += tests.skipped
    names = afew.label_order(order)
    return _clip_task("afew", f"AFEW from {root}", parts, names, clips, num_frames, size, grey)


@register("aff_wild2")
def aff_wild2_task(
    root: str,
    images: str,
    annotation: str = "VA",
    mtl: bool = False,
    sample_length: int = 16,
    stride: int = 8,
    size: int = 48,
    grey: bool = False,
    valid_size: float = 0.1,
    skip_bad: bool = False,
) -> Task:
    """Aff-Wild2: official parts; the last training videos to validate on.

    Args:
        root: see `read_aff_wild2`.
        images: folder of the cropped and aligned frames.
        annotation: "VA" valence and arousal, "EXPR" expressions, "AU" action units, or "VA+EXPR".
        mtl: read the files of a multi-task challenge, see `read_annotations`.
        sample_length: T.
        stride: of the windows.
        size: rows and cols of a frame.
        grey: one channel in place of three.
        valid_size: share of the training videos.
        skip_bad: see `read_aff_wild2`.
    """
    options = {"kind": annotation, "mtl": mtl, "images": images, "skip_bad": skip_bad}
    traces = aff_wild2.read_aff_wild2(root, part="Train_Set", **options).some(root)
    tests = aff_wild2.read_aff_wild2(root, part="Validation_Set", **options).some(root)
    cut = max(1, len(traces) - max(1, round(valid_size * len(traces))))
    kind = {"VA": "traces", "EXPR": "frames", "AU": "units", "VA+EXPR": "both"}[annotation]
    widths = {trace.values.shape[1] for trace in traces + tests}
    if len(widths) > 1:
        raise ValueError(f"task aff_wild2: the parts have {widths} action units, must have as many")
    units = aff_wild2.ACTION_UNITS_2020 if widths == {8} else aff_wild2.ACTION_UNITS
    return _trace_task(
        "aff_wild2",
        f"Aff-Wild2 {annotation} from {root}",
        (traces[:cut], traces[cut:], tests),
        sample_length,
        stride,
        size,
        grey,
        traces.skipped + tests.skipped,
        kind=kind,
        classes=max((t.classes for t in traces + tests), key=len, default=()),
        traces={"frames": (), "units": units}.get(kind, VALENCE_AROUSAL),
    )


@register("sewa")
def sewa_task(
    root: str,
    images: str,
    fps: float,
    form: str = "raw",
    annotation: str = "AV",
    sample_length: int = 16,
    stride: int = 8,
    size: int = 48,
    grey: bool = False,
    valid_size: float = 0.1,
    test_size: float = 0.2,
    split_seed: int = 0,
    skip_bad: bool = False,
) -> Task:
    """SEWA or RECOLA, valence and arousal, with frames that were cut out of the videos before.

    Args:
        root: see `read_sewa`, `read_avec` and `read_recola`.
        images: a folder for each recording, frames 1, 2, .. as they follow in the video.
        fps: frames per second of them.
        form: "raw", videos parted at random; "avec", its Train part, tested on its Devel part; or
            "recola", its train part, tested on its dev part.
        annotation: see `read_sewa`.
        sample_length: T.
        stride: of the windows.
        size: rows and cols of a frame.
        grey: one channel in place of three.
        valid_size: share of the videos to validate on.
        test_size: share of the videos to test on, with form="raw".
        split_seed: of the choice.
        skip_bad: see `read_sewa`.
    """
    if form not in ("raw", "avec", "recola"):
        raise ValueError(f"task sewa: form must be raw, avec or recola, got {form!r}")
    if form == "raw":
        records = [sewa.read_sewa(root, annotation=annotation, skip_bad=skip_bad)]
    elif form == "recola":
        records = [recola.read_recola(root, part=p, skip_bad=skip_bad) for p in ("train", "dev")]
    else:
        records = [sewa.read_avec(root, part=p, skip_bad=skip_bad) for p in ("Train", "Devel")]
    framed = [sewa.with_frames(part, images, fps).some(root) for part in records]
    order = np.random.default_rng(split_seed).permutation(len(framed[0]))
    num_test = round(test_size * len(order)) if form == "raw" else 0
    cut = num_test + round(valid_size * len(order))
    tests = [framed[0][k] for k in order[:num_test]] if form == "raw" else framed[1]
    parts = (
        [framed[0][k] for k in order[cut:]],
        [framed[0][k] for k in order[num_test:cut]],
        tests,
    )
    return _trace_task(
        "sewa",
        f"{'RECOLA' if form == 'recola' else 'SEWA'} valence and arousal ({form}) from {root}",
        parts,
        sample_length,
        stride,
        size,
        grey,
        [skip for part in framed for skip in part.skipped],
        kind="traces",
        traces=VALENCE_AROUSAL,
    )


def _trials_task(
    name: str,
    about: str,
    read: partial[Records[seed.Trial]],
    classes: tuple[str, ...],
    montage: str,
    *,
    num_train: int,
    by: str,
    sample_length: int,
    stride: int,
    valid_trials: int,
    test_size: float,
    split_seed: int,
    allow_leakage: bool,
) -> Task:
    """Windows of the trials that `read` gives; other arguments as in `eeg_task`."""
    if not 0 <= valid_trials < num_train:
        most = num_train - 1
        raise ValueError(f"task {name}: valid_trials must be in 0..{most}, got {valid_trials}")
    trials = read().some(read.args[0])
    valid: Dataset | None = None
    if by == "front_back":
        front, back = seed.front_back(trials, num_train)
        kept, held = seed.front_back(front, num_train - valid_trials)
        kept, held, back = standardise(kept, held, back)
        train, test = Windows(kept, sample_length, stride), Windows(back, sample_length, stride)
        valid = Windows(held, sample_length, stride)
    elif by == "random":
        windows = Windows(standardise(trials)[0], sample_length, stride)
        at = split(windows, by, test_size=test_size, seed=split_seed, allow_leakage=allow_leakage)
        train, test = (Subset(windows, part.tolist()) for part in at)
    else:
        windows = Windows(trials, sample_length, stride)
        at = split(windows, by, test_size=test_size, seed=split_seed)
        parts = [[trials[k] for k in np.unique(windows.starts[part, 0])] for part in at]
        train, test = (Windows(p, sample_length, stride) for p in standardise(*parts))
    return Task(
        name,
        about,
        train,
        valid,
        test,
        channels=trials[0].x.shape[2],
        sample_length=sample_length,
        classes=classes,
        topology=sk.Topology.montage(montage),
        skipped=trials.skipped,
    )


def _clip_task(
    name: str,
    about: str,
    parts: dict[str, list],
    classes: tuple[str, ...],
    records: Records,
    num_frames: int,
    size: int,
    grey: bool,
) -> Task:
    datasets = [
        ClipDataset(parts[part], num_frames, (size, size), grey)
        for part in ("train", "valid", "test")
    ]
    return _video_task(
        name, about, datasets, num_frames, size, grey, records.skipped, classes=classes
    )


def _trace_task(
    name: str,
    about: str,
    parts: Sequence[Sequence[Trace]],
    sample_length: int,
    stride: int,
    size: int,
    grey: bool,
    skipped: list[Skip],
    **predicted: Any,
) -> Task:
    datasets = [TraceWindows(part, sample_length, stride, (size, size), grey) for part in parts]
    return _video_task(name, about, datasets, sample_length, size, grey, skipped, **predicted)


def _video_task(
    name: str,
    about: str,
    datasets: Sequence[Dataset],
    sample_length: int,
    size: int,
    grey: bool,
    skipped: list[Skip],
    **predicted: Any,
) -> Task:
    """A task of frames; `predicted` are kind, classes and traces of `Task`."""
    return Task(
        name,
        about,
        *datasets,
        channels=1 if grey else 3,
        sample_length=sample_length,
        size=(size, size),
        skipped=skipped,
        **predicted,
    )
