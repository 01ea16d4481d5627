"""AFEW: a folder of frames (or of aligned faces) for each video, below a folder for each emotion.

``<root>/Fear/013736360/*.png``, with or without a list of lines ``Fear/013736360 Fear``. The videos
themselves (avi) must have been cut into frames before; or they stand beside the official aligned
faces, ``<root>/Fear/013736360.avi`` and
``<root>/AlignedFaces_LBPTOP_Points/Faces/013736360/*.jpg`` (``.._Points_Val`` of the validation
part), and only their folders are looked at. Public codes number the emotions in three ways, so the
order is always named by the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from strnn_models.common.files import shown
from strnn_models.data.frames import Clip, list_frames
from strnn_models.data.records import (
    DataError,
    Records,
    folder,
    folders,
    listed,
    nothing,
    text_lines,
)

#: The folder of the official aligned faces.
ALIGNED = ("AlignedFaces_LBPTOP_Points", "AlignedFaces_LBPTOP_Points_Val")
#: name of an order -> the emotions in it
ORDERS = {
    "alphabetical": ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"),
    "kahou": ("Angry", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral"),
    "emotion-fan": ("Happy", "Angry", "Disgust", "Fear", "Sad", "Neutral", "Surprise"),
}


def read_afew(
    root: Path | str,
    *,
    order: str | Sequence[str],
    list_file: Path | str | None = None,
    skip_bad: bool = False,
) -> Records[Clip]:
    """The clips of one part (train or validation).

    AFEW tells no subjects; `subject` of a clip is its own name. Official aligned faces are taken
    where they are there; a video without any is not in the result: that is how the data set is.

    Args:
        root: the folder with one sub-folder for each emotion.
        order: of the classes: a name in `ORDERS` or the emotions themselves.
        list_file: lines "<emotion>/<video> <emotion>". None: all folders.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a folder, line or frame is missing, damaged or mislabelled.
    """
    root, names = folder(root), label_order(order)
    clips = Records[Clip](skip_bad)
    faces = next((root / a / "Faces" for a in ALIGNED if os.path.isdir(root / a / "Faces")), None)
    if list_file is not None:
        found = _listed(Path(list_file), names, clips)
    elif faces is not None:
        found = _aligned(root, faces, names, clips)
    else:
        found = _folders(root, names, clips)
    seen: set[str] = set()
    for source, record, video, emotion in found:
        with clips.guard():
            place = root / video if faces is None else faces / video.split("/")[1]
            if not os.path.isdir(place):  # a name may be too long for any
                raise DataError(source, record, f"{faces or root} has no folder {shown(video)}")
            if video in seen:
                raise DataError(source, record, f"{video} is there twice")
            seen.add(video)
            frames = list_frames(place, decode=skip_bad)
            clips.append(Clip(video, video, frames, names.index(emotion)))
    if not clips and not clips.skipped:
        nothing(root, f"has no clips in folders {', '.join(names)}")
    return clips


def label_order(order: str | Sequence[str]) -> tuple[str, ...]:
    """The emotions in the order that is named or given.

    Raises:
        ValueError: no order has this name, or the emotions are not seven different ones.
    """
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"read_afew: order must be one of {', '.join(ORDERS)}, got {order!r}")
        return ORDERS[order]
    if sorted(order) != sorted(ORDERS["alphabetical"]):
        known = ", ".join(ORDERS["alphabetical"])
        raise ValueError(f"read_afew: order must hold each of {known} once, got {list(order)}")
    return tuple(order)


def _folders(
    root: Path, names: Sequence[str], clips: Records
) -> Iterator[tuple[Path, str | None, str, str]]:
    for place in _emotions(root, names, clips):
        with clips.guard():
            for video in folders(place):
                yield video, None, f"{place.name}/{video.name}", place.name


def _aligned(
    root: Path, faces: Path, names: Sequence[str], clips: Records
) -> Iterator[tuple[Path, str | None, str, str]]:
    """The folders of faces, each with the emotion in whose folder its video is."""
    unlabelled = {path.name: path for path in folders(faces)}
    emotion: dict[str, str] = {}
    for place in _emotions(root, names, clips):
        with clips.guard():
            for video in listed(place, end=".avi"):
                if emotion.setdefault(video.stem, place.name) != place.name:
                    raise DataError(video, None, f"is there twice, also in {emotion[video.stem]}")
                if unlabelled.pop(video.stem, None) is not None:
                    yield video, None, f"{place.name}/{video.stem}", place.name
    for path in unlabelled.values():
        with clips.guard():
            reason = f"no emotion: none of {', '.join(names)} has {path.name}.avi"
            raise DataError(path, None, reason)


def _emotions(root: Path, names: Sequence[str], clips: Records) -> Iterator[Path]:
    for place in folders(root):
        with clips.guard():
            if place.name in names:
                yield place
            elif place.name not in ALIGNED:
                raise DataError(place, None, f"must be named after one of {', '.join(names)}")


def _listed(
    path: Path, names: Sequence[str], clips: Records
) -> Iterator[tuple[Path, str | None, str, str]]:
    for n, line in enumerate(text_lines(path), start=1):
        with clips.guard():
            words = line.split(maxsplit=2)
            if len(words) != 2 or words[0].count("/") != 1 or ".." in words[0]:
                reason = f"must be <emotion>/<video> <emotion>, got {shown(line.strip())}"
                raise DataError(path, f"line {n}", reason)
            video, emotion = words
            if emotion not in names:
                reason = f"emotion must be one of {', '.join(names)}, got {shown(emotion)}"
                raise DataError(path, f"line {n}", reason)
            if video.split("/")[0] != emotion:
                raise DataError(path, f"line {n}", f"{shown(video)} is labelled {emotion}")
            yield path, f"line {n}", video, emotion
