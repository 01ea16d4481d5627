"""AFEW: a folder of frames (or of aligned faces) for each video, below a folder for each emotion.

``<root>/Fear/013736360/*.png``, with or without a list of lines ``Fear/013736360 Fear``. The videos
themselves (avi) must have been cut into frames before. Public codes number the emotions in three
ways, so the order is always named by the caller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from strnn_models.data.frames import Clip, list_frames
from strnn_models.data.records import DataError, Records, folder, listed, nothing, text_lines
from strnn_models.files import shown

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

    AFEW tells no subjects; `subject` of a clip is its own name.

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
    if list_file is None:
        found = _folders(root, names, clips)
    else:
        found = _listed(Path(list_file), names, clips)
    seen: set[str] = set()
    for source, record, video, emotion in found:
        with clips.guard():
            if not os.path.isdir(root / video):  # a name may be too long for any
                raise DataError(source, record, f"{root} has no folder {shown(video)}")
            if video in seen:
                raise DataError(source, record, f"{video} is there twice")
            seen.add(video)
            frames = list_frames(root / video, decode=skip_bad)
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
    for place in _folders_of(root):
        with clips.guard():
            if place.name not in names:
                raise DataError(place, None, f"must be named after one of {', '.join(names)}")
            for video in _folders_of(place):
                yield video, None, f"{place.name}/{video.name}", place.name


def _folders_of(place: Path) -> list[Path]:
    return [path for path in listed(place) if os.path.isdir(path)]


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
