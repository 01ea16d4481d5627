"""AFEW: a folder of frames (or of aligned faces) for each video, below a folder for each emotion.

``<root>/Fear/013736360/*.png``, with or without a list of lines ``Fear/013736360 Fear``. The videos
themselves (avi) must have been cut into frames before. Public codes number the emotions in three
ways, so the order is always named by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from strnn_models.data.frames import Clip, list_frames
from strnn_models.data.records import DataError, Records, folder, text_lines

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
            if video in seen:
                raise DataError(source, record, f"{video} is there twice")
            seen.add(video)
            if not (root / video).is_dir():
                raise DataError(source, record, f"no folder {root / video}")
            frames = list_frames(root / video, decode=skip_bad)
            clips.append(Clip(video, video, frames, names.index(emotion)))
    if not clips and not clips.skipped:
        raise DataError(root, None, f"has no clips in folders {', '.join(names)}")
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
    for place in sorted(path for path in root.iterdir() if path.is_dir()):
        with clips.guard():
            if place.name not in names:
                raise DataError(place, None, f"must be named after one of {', '.join(names)}")
            for video in sorted(path for path in place.iterdir() if path.is_dir()):
                yield video, None, f"{place.name}/{video.name}", place.name


def _listed(
    path: Path, names: Sequence[str], clips: Records
) -> Iterator[tuple[Path, str | None, str, str]]:
    for n, line in enumerate(text_lines(path), start=1):
        with clips.guard():
            words = line.split()
            if len(words) != 2 or words[0].count("/") != 1 or ".." in words[0]:
                reason = f"must be <emotion>/<video> <emotion>, got {line.strip()!r}"
                raise DataError(path, f"line {n}", reason)
            video, emotion = words
            if emotion not in names:
                reason = f"emotion must be one of {', '.join(names)}, got {emotion!r}"
                raise DataError(path, f"line {n}", reason)
            if video.split("/")[0] != emotion:
                raise DataError(path, f"line {n}", f"{video} is labelled {emotion}")
            yield path, f"line {n}", video, emotion
