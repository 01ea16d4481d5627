"""Aff-Wild2: a text file for each video, a line for each frame, some to be ignored.

``<root>/VA_Set/Train_Set/<video>.txt`` and, for the frames, ``cropped_aligned/<video>/00001.jpg``:
frame k belongs to the k-th line after the header. Frames in which no face was found are missing:
that is how the data set is. The annotations came anew with each ABAW challenge: VA_Set,
Expression_Set or EXPR_Set and AU_Set with Training_Set or Train_Set in 2020 (eight action units)
and 2021; VA_Estimation_Challenge, EXPR_Classification_Challenge and AU_Detection_Challenge from
2022 on (also EXPR_Recognition_Challenge, from 2024 on), with an eighth expression. The multi-task
challenges (2022 and 2024) have one file for each part, ``MTL_Challenge/train_set.txt`` or
``training_set_annotations.txt``, and in it, for each frame that somebody annotated, a line of
``<video>/00001.jpg``, valence, arousal, expression and twelve action units.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import shown
from strnn_models.data.frames import frame_number, list_frames
from strnn_models.data.records import (
    MOST_LINES,
    DataError,
    Records,
    columns,
    first_folder,
    folder,
    listed,
    nothing,
    number,
    text_lines,
)
from strnn_models.data.traces import Trace

FOLDERS = {
    "VA": ("VA_Set", "VA_Estimation_Challenge"),
    "EXPR": (
        *("EXPR_Set", "Expression_Set"),
        *("EXPR_Classification_Challenge", "EXPR_Recognition_Challenge"),
    ),
    "AU": ("AU_Set", "AU_Detection_Challenge"),
}
#: part -> the names of its folder
PARTS = {
    "Train_Set": ("Train_Set", "Training_Set"),
    "Validation_Set": ("Validation_Set",),
}
#: part -> the name of its file in the multi-task challenges, some with the year at the end
MTL_FILES = {
    "Train_Set": re.compile(r"train(ing)?_set(_annotations)?(_[0-9]{2})?\.txt"),
    "Validation_Set": re.compile(r"validation_set(_annotations)?(_[0-9]{2})?\.txt"),
}
EXPRESSIONS = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
ACTION_UNITS = tuple(f"AU{n}" for n in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
#: Those of 2020.
ACTION_UNITS_2020 = tuple(f"AU{n}" for n in (1, 2, 4, 6, 12, 15, 20, 25))
#: annotation -> the value of a frame that nobody could annotate
IGNORE = {"VA": -5, "EXPR": -1, "AU": -1}
_HEADERS = {
    "VA": (("valence", "arousal"),),
    "EXPR": (EXPRESSIONS, EXPRESSIONS[:7]),
    "AU": (ACTION_UNITS, ACTION_UNITS_2020),
}


#: annotation -> its columns in a line of the multi-task challenges
_MTL_COLUMNS = {"VA": slice(1, 3), "EXPR": slice(3, 4), "AU": slice(4, 16)}
_MTL_HEADER = ("image", "valence", "arousal", "expression")
#: The most frames, up to the last annotated one, of all videos of a file.
MOST_STEPS = 1 << 21
_MTL_IMAGE = re.compile(r"([^/]+)/([0-9]{1,7})\.jpg")


@dataclass(frozen=True)
class Annotation:
    """One file, or one video of the file of a multi-task challenge.

    `values`: (T, 2) float32 for VA, int64 (T,) for EXPR and (T, 12 or 8) for AU. `valid` is False
    at frames to ignore. `header` has the names of the columns or of the classes.
    """

    name: str
    kind: str
    header: tuple[str, ...]
    values: NDArray
    valid: NDArray[np.bool_]
    file: Path


def read_annotations(
    root: Path | str,
    *,
    kind: str = "VA",
    part: str = "Train_Set",
    mtl: bool = False,
    skip_bad: bool = False,
) -> Records[Annotation]:
    """The annotation files of one part.

    Args:
        root: the folder that has VA_Set and so on, see `FOLDERS`.
        kind: "VA", "EXPR" or "AU".
        part: "Train_Set" or "Validation_Set".
        mtl: read the one file of a multi-task challenge, from MTL_Challenge or from root itself.
            Frames up to the last that it has are not valid where it has none.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a file is missing, damaged or of another kind.
        ValueError: unknown kind.
    """
    if kind not in FOLDERS:
        raise ValueError(f"read_annotations: kind must be VA, EXPR or AU, got {kind!r}")
    if mtl:
        return _read_mtl(folder(root), kind, part, skip_bad)
    place = first_folder(root, *FOLDERS[kind])
    place = first_folder(place, *PARTS[part]) if part in PARTS else folder(place / part)
    found = Records[Annotation](skip_bad)
    paths = listed(place, end=".txt")
    if not paths:
        nothing(place, "has no files *.txt")
    for path in paths:
        with found.guard():
            found.append(read_file(path, kind))
    return found


def read_file(path: Path, kind: str) -> Annotation:
    """One annotation file.

    Raises:
        DataError: the header is not that of the kind, or a line is damaged or out of range.
    """
    lines = text_lines(path)
    header = tuple(word.strip() for word in lines[0].split(",", len(ACTION_UNITS)))
    if header not in _HEADERS[kind]:
        reason = f"must be {','.join(_HEADERS[kind][0])} ({kind}), got {shown(lines[0])}"
        raise DataError(path, "line 1", reason)
    width = 1 if kind == "EXPR" else len(header)
    cells = array("d")
    for n, line in enumerate(lines[1:], start=2):
        for cell in columns(path, f"line {n}", line, ",", width, "values"):
            value = number(path, f"line {n}", cell)
            _check_range(path, n, value, kind, len(header))
            cells.append(value)
    if not cells:
        raise DataError(path, None, "has a header but no frames")
    return _annotation(path.stem, kind, header, np.array(cells).reshape(-1, width), path)


def _annotation(
    name: str, kind: str, header: tuple[str, ...], values: NDArray, path: Path
) -> Annotation:
    """From what stands in the lines (T, width)."""
    valid = (values != IGNORE[kind]).all(axis=1)
    if kind == "VA":
        values = np.where(valid[:, None], values, 0).astype(np.float32)
    else:
        values = values.astype(np.int64)
    values = values[:, 0] if kind == "EXPR" else values
    return Annotation(name, kind, header, values, valid, path)


def _read_mtl(root: Path, kind: str, part: str, skip_bad: bool) -> Records[Annotation]:
    """The videos of the file of a multi-task challenge."""
    if part not in MTL_FILES:
        raise ValueError(f"read_annotations: part must be one of {', '.join(MTL_FILES)}")
    place = root / "MTL_Challenge" if os.path.isdir(root / "MTL_Challenge") else root
    paths = [path for path in listed(place, end=".txt") if MTL_FILES[part].fullmatch(path.name)]
    if len(paths) != 1:
        nothing(place, f"must have one file such as {part.lower()}.txt, has {len(paths)}")
    (path,), found = paths, Records[Annotation](skip_bad)
    lines, header = text_lines(path), _HEADERS[kind][0]
    first = tuple(word.strip() for word in lines[0].split(",", 16))
    if first not in ((*_MTL_HEADER, "aus"), (*_MTL_HEADER, *ACTION_UNITS)):
        wanted = ",".join((*_MTL_HEADER, "aus"))
        raise DataError(path, "line 1", f"must be {wanted}, got {shown(lines[0])}")
    videos: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for n, line in enumerate(lines[1:], start=2):
        with found.guard():
            cells = columns(path, f"line {n}", line, ",", 16, "values")
            match = _MTL_IMAGE.fullmatch(cells[0].strip())
            if match is None or not 1 <= int(match[2]) <= MOST_LINES:
                reason = f"must be an image <video>/00001.jpg, got {shown(cells[0])}"
                raise DataError(path, f"line {n}", reason)
            if int(match[2]) in videos[match[1]]:
                raise DataError(path, f"line {n}", f"{cells[0].strip()} is there twice")
            values = [number(path, f"line {n}", cell) for cell in cells[_MTL_COLUMNS[kind]]]
            for value in values:
                _check_range(path, n, value, kind, len(header))
            videos[match[1]][int(match[2])] = values
    steps = sum(max(frames, default=0) for frames in videos.values())
    if steps > MOST_STEPS:
        raise DataError(path, None, f"its videos have {steps} frames, more than {MOST_STEPS}")
    for video, frames in sorted(videos.items()):
        if frames:
            values = np.full((max(frames), len(next(iter(frames.values())))), float(IGNORE[kind]))
            values[np.array(list(frames)) - 1] = list(frames.values())
            found.append(_annotation(video, kind, header, values, path))
    if not found and not found.skipped:
        raise DataError(path, None, "has a header but no frames")
    return found


def read_aff_wild2(
    root: Path | str,
    *,
    kind: str = "VA",
    part: str = "Train_Set",
    mtl: bool = False,
    images: Path | str | None = None,
    skip_bad: bool = False,
) -> Records[Trace]:
    """The annotations of one part by video, with the frames where there is a folder of images.

    Args:
        root: as in `read_annotations`.
        kind: "VA", "EXPR" or "AU"; or "VA+EXPR", where a video may have one of the two alone.
        part: as in `read_annotations`.
        mtl: as in `read_annotations`; images of frames that are not annotated are left alone.
        images: the folder cropped_aligned. None: no frames.
        skip_bad: as in `read_annotations`; frames past the last line are skipped frame by frame,
            the rest of that video is kept.

    Raises:
        DataError: as `read_annotations`; a video has no folder of frames, or frames past its last
            line, or its two files differ in length, or files have other action units.
        ValueError: unknown kind.
    """
    if kind not in (*FOLDERS, "VA+EXPR"):
        raise ValueError(f"read_aff_wild2: kind must be VA, EXPR, AU or VA+EXPR, got {kind!r}")
    traces = Records[Trace](skip_bad)
    videos: dict[str, list[Annotation]] = {}
    for one in kind.split("+"):
        annotations = read_annotations(root, kind=one, part=part, mtl=mtl, skip_bad=skip_bad)
        traces.skipped += annotations.skipped
        for annotation in annotations:
            videos.setdefault(annotation.name, []).append(annotation)
    headers = [a.header for video in videos.values() for a in video if a.kind in ("EXPR", "AU")]
    for name, found in sorted(videos.items()):
        with traces.guard():
            trace = _trace(name, kind, found, max(headers, key=len, default=()))
            if images is not None:
                trace = attach_frames(trace, Path(images) / name, traces, beyond=mtl)
            traces.append(trace)
    return traces


def _trace(name: str, kind: str, found: list[Annotation], classes: tuple[str, ...]) -> Trace:
    """One video's annotations together; what it lacks is not valid.

    `classes`: the longest header of expressions, or of action units, among the videos.
    """
    lengths = {annotation.kind: len(annotation.valid) for annotation in found}
    T = len(found[0].valid)
    if len(set(lengths.values())) > 1:
        lines = " and ".join(f"{length} ({kind})" for kind, length in lengths.items())
        raise DataError(found[-1].file, None, f"must have as many frames, got {lines}")
    if kind == "AU" and found[0].header != classes:
        reason = f"must have the {len(classes)} action units of other files, got {found[0].header}"
        raise DataError(found[0].file, "line 1", reason)
    width = {"VA": 2, "AU": len(classes), "EXPR": 0, "VA+EXPR": 2}[kind]
    values, valid = np.zeros((T, width), np.float32), np.zeros(T, bool)
    labels, classes = (None, ()) if kind == "AU" or not classes else (np.full(T, -1), classes)
    for annotation in found:
        if annotation.kind == "EXPR":
            labels = annotation.values
        else:
            valid = annotation.valid
            values = np.where(valid[:, None], annotation.values, 0).astype(np.float32)
    return Trace(name, values, valid, labels, classes)


def attach_frames(trace: Trace, place: Path, records: Records, beyond: bool = False) -> Trace:
    """The trace with the image of each step; steps without one are not valid.

    Args:
        trace: step k is frame k + 1.
        place: the folder of its frames.
        records: damaged frames are noted in it.
        beyond: whether there may be frames past the last step.
    """
    if not os.path.isdir(place):
        raise DataError(place, None, f"no folder of frames for {trace.name}")
    frames: list[Path | None] = [None] * len(trace.values)
    for path in list_frames(place, decode=records.skip_bad):
        with records.guard():
            number = frame_number(path)
            if beyond and number > len(frames):
                continue
            if path.stem.strip("0123456789") or not 1 <= number <= len(frames):
                reason = f"no annotation: {trace.name} has frames 1 to {len(frames)}"
                raise DataError(path, None, reason)
            frames[number - 1] = path
    seen = np.array([frame is not None for frame in frames])
    labels = trace.labels if trace.labels is None else np.where(seen, trace.labels, -1)
    return replace(trace, frames=tuple(frames), valid=trace.valid & seen, labels=labels)


def _check_range(path: Path, line: int, value: float, kind: str, num_classes: int) -> None:
    if value == IGNORE[kind]:
        return
    if kind == "VA":
        good, expected = -1 <= value <= 1, "in -1..1 or -5"
    else:
        top = num_classes - 1 if kind == "EXPR" else 1
        good, expected = value in range(top + 1), f"a whole number in 0..{top} or -1"
    if not good:
        raise DataError(path, f"line {line}", f"must be {expected}, got {value:g}")
