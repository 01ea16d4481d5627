"""CK+ (Extended Cohn-Kanade): image sequences from neutral to peak, a label for some of them.

``cohn-kanade-images/S005/001/S005_001_00000011.png`` and
``Emotion/S005/001/S005_001_00000011_emotion.txt`` (also ``Emotion_labels``) with one number 0 to 7.
A sequence without a label file has no label: that is how the data set is, not a fault.

CK+48, a copy that goes round, has ``<emotion>/S010_004_00000017.png``, 48 x 48: the last three
frames of each labelled sequence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from strnn_models.common.files import shown
from strnn_models.data.frames import Clip, check_frame, list_frames
from strnn_models.data.records import (
    DataError,
    Records,
    first_folder,
    folders,
    listed,
    nothing,
    number,
    text_lines,
)

#: label in the files -> emotion
EMOTIONS = ("neutral", "anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
#: what the 327 labelled sequences show: no neutral among them
CLASSES = EMOTIONS[1:]
NUM_FOLDS = 10

_FRAME_NAME = re.compile(r"(S[0-9]{3})_([0-9]{3})_[0-9]{8}\.png")
_LABEL_NAME = re.compile(r"(S[0-9]{3}_[0-9]{3}_[0-9]{8})_emotion\.txt")


def read_ck_plus(
    root: Path | str, *, contempt: bool = True, skip_bad: bool = False
) -> Records[Clip]:
    """The labelled sequences by subject and sequence; labels are indices into `classes(contempt)`.

    Folds follow `folds`, counted over the subjects that are returned.

    Args:
        root: the folder that has cohn-kanade-images and Emotion, or CK+48's with one for each of
            `CLASSES`.
        contempt: whether to keep the sequences of contempt (18 of 327).
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file is missing, damaged or mislabelled; names it.
    """
    names, clips = classes(contempt), Records[Clip](skip_bad)
    if any(os.path.isdir(Path(root) / emotion) for emotion in CLASSES):
        _read_48(Path(root), names, clips)
    else:
        _read_sequences(root, names, clips)
    fold = folds([clip.subject for clip in clips])
    clips[:] = [replace(clip, fold=fold[clip.subject]) for clip in clips]
    return clips


def classes(contempt: bool = True) -> tuple[str, ...]:
    """Names of the classes, with or without contempt."""
    return tuple(name for name in CLASSES if contempt or name != "contempt")


def folds(subjects: list[str], num_folds: int = NUM_FOLDS) -> dict[str, int]:
    """Subject -> fold 0 to 9: the subjects in ascending order, dealt out in turn.

    For the 118 labelled subjects this is the public 10-fold list of 33, 39, 40, 35, 30, 37, 29, 29,
    33 and 22 sequences.
    """
    return {subject: k % num_folds for k, subject in enumerate(sorted(set(subjects)))}


def _read_48(root: Path, names: tuple[str, ...], clips: Records[Clip]) -> None:
    """The sequences of CK+48: the frames of a folder of an emotion that have one in their names."""
    found: dict[str, tuple[str, list[Path]]] = {}
    for place in folders(root):
        with clips.guard():
            if place.name not in CLASSES:
                raise DataError(place, None, f"must be named after one of {', '.join(CLASSES)}")
            for path in listed(place):
                with clips.guard():
                    match = _FRAME_NAME.fullmatch(path.name)
                    if match is None:
                        raise DataError(path, None, "must be named S<3 digits>_<3>_<8>.png")
                    emotion, frames = found.setdefault(f"{match[1]}/{match[2]}", (place.name, []))
                    if emotion != place.name:
                        reason = f"{match[1]}/{match[2]} is {emotion} too, as {frames[0].name}"
                        raise DataError(path, None, reason)
                    frames.append(path)
    for name, (emotion, frames) in sorted(found.items()):
        with clips.guard():
            for frame in frames:
                check_frame(frame, decode=clips.skip_bad)
            if emotion in names:
                clips.append(Clip(name, name[:4], tuple(frames), names.index(emotion)))
    if not clips and not clips.skipped:
        nothing(root, "has no frames <emotion>/S*_*_*.png")


def _read_sequences(root: Path | str, names: tuple[str, ...], clips: Records[Clip]) -> None:
    images = first_folder(root, "cohn-kanade-images")
    emotions = first_folder(root, "Emotion", "Emotion_labels")
    for labels in _sequences(emotions):
        with clips.guard():
            files = listed(labels, end=".txt")
            if not files:
                continue
            if len(files) > 1:
                reason = f"must have one label, got {', '.join(file.name for file in files)}"
                raise DataError(labels, None, reason)
            emotion = _read_label(files[0])
            if emotion not in names:
                continue
            label = names.index(emotion)
            clips.append(_read_clip(images, files[0], label, clips.skip_bad))
    if not clips and not clips.skipped:
        nothing(emotions, "has no label files S*/*/*_emotion.txt")


def _sequences(emotions: Path) -> Iterator[Path]:
    for subject in folders(emotions):
        if subject.name.startswith("S"):
            yield from folders(subject)


def _read_label(path: Path) -> str:
    match = _LABEL_NAME.fullmatch(path.name)
    place = f"{path.parent.parent.name}_{path.parent.name}_"
    if match is None or not match[1].startswith(place):
        raise DataError(path, None, f"must be named {place}<8 digits>_emotion.txt")
    lines = text_lines(path)
    value = number(path, "line 1", lines[0])
    if len(lines) > 1 or value != int(value) or not 1 <= value <= 7:
        reason = f"must be one whole number from 1 to 7, got {shown(' '.join(lines[:2]).strip())}"
        raise DataError(path, "line 1", reason)
    return EMOTIONS[int(value)]


def _read_clip(images: Path, label_file: Path, label: int, decode: bool) -> Clip:
    subject, sequence = label_file.parent.parent.name, label_file.parent.name
    where = images / subject / sequence
    if not os.path.isdir(where):
        raise DataError(where, None, f"no such folder, but {label_file.name} labels it")
    frames = list_frames(where, decode=decode)
    for frame in frames:
        if not frame.name.startswith(f"{subject}_{sequence}_"):
            raise DataError(frame, None, f"a frame of another sequence in {subject}/{sequence}")
    peak = label_file.name.removesuffix("_emotion.txt")
    if frames[-1].stem != peak:
        reason = f"must end at the labelled peak {peak}, ends at {frames[-1].stem}"
        raise DataError(where, None, reason)
    return Clip(f"{subject}/{sequence}", subject, frames, label)
