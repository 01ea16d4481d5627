"""SEWA: valence and arousal from the raw csv files of the annotators, or from the labels of AVEC.

Raw: ``<stem>_Valence_<type>_Aligned.csv`` and ``<stem>_Arousal_<type>_Aligned.csv``, in one folder
or in folders valence and arousal: a time stamp and a column for each annotator, of which the mean
is taken. AVEC 2017 to 2019: ``labels/Train_DE_01.csv``, separated by ``;``,
``name;timestamp;arousal;valence;liking``, a line every 0.1 s. Values are in -1..1; both give
valence first.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import shown
from strnn_models.data.frames import frame_number, list_frames
from strnn_models.data.records import (
    DataError,
    Records,
    below,
    columns,
    folder,
    listed,
    nothing,
    number,
    text_lines,
)
from strnn_models.data.traces import Trace

AVEC_HEADER = ("name", "timestamp", "arousal", "valence", "liking")
AVEC_HOP = 0.1
#: The most seconds that a recording lasts.
MOST_SECONDS = 1e5


def read_sewa(
    root: Path | str, *, annotation: str = "AV", skip_bad: bool = False
) -> Records[Trace]:
    """The raw annotations below a folder, mean over the annotators.

    Args:
        root: searched with all its sub-folders.
        annotation: what the annotators had: "A" audio, "V" video, "AV" both.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: one of the two files of a recording is missing, a line is damaged, or their times
            differ.
    """
    root, traces = folder(root), Records[Trace](skip_bad)
    endings = {what: f"_{what}_{annotation}_Aligned.csv" for what in ("Valence", "Arousal")}
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for what, ending in endings.items():
        for path in below(root, end=ending):
            found[path.name.removesuffix(ending)][what].append(path)
    if not found:
        nothing(root, f"has no files *{endings['Valence']}, nor below it")
    paired(traces, found, {what: f"{{}}{end}" for what, end in endings.items()}, mean_rating)
    return traces


def paired(
    traces: Records[Trace],
    found: Mapping[str, Mapping[str, list[Path]]],
    names: Mapping[str, str],
    read: Callable[[Path], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    """Adds the trace of each recording that has a file of valence and one of arousal.

    Args:
        traces: to add to.
        found: recording -> what is annotated -> its files.
        names: what is annotated, valence first -> how its file is called, seen from the folder of
            its partner, with {} for the recording.
        read: gives time stamps and values of a file.

    Raises:
        DataError: one of the two is missing or there twice, or their times differ.
    """
    for stem, parts in sorted(found.items()):
        with traces.guard():
            (times, valence), (other, arousal) = (
                read(_only(parts, what, name.format(stem))) for what, name in names.items()
            )
            if len(times) != len(other) or not np.allclose(times, other, atol=1e-6):
                reason = f"its {len(other)} time stamps are not the {len(times)} of the valence"
                raise DataError(parts[list(names)[1]][0], None, reason)
            values = np.stack([valence, arousal], axis=1).astype(np.float32)
            traces.append(Trace(stem, values, np.ones(len(times), bool), times=times))


def read_avec(root: Path | str, *, part: str = "", skip_bad: bool = False) -> Records[Trace]:
    """The labels of AVEC: files ``<part>*.csv`` of a folder (or of its sub-folder labels).

    Args:
        root: the folder.
        part: start of the names, such as "Train_DE" or "Devel"; empty for all.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: a header, line, time stamp or value is not as it must be.
    """
    root, traces = folder(root), Records[Trace](skip_bad)
    root = root / "labels" if os.path.isdir(root / "labels") else root
    paths = listed(root, start=part, end=".csv")
    if not paths:
        nothing(root, f"has no files {part}*.csv")
    for path in paths:
        with traces.guard():
            traces.append(_read_avec_file(path))
    return traces


def with_frames(traces: Records[Trace], images: Path | str, fps: float) -> Records[Trace]:
    """The traces with the video frame nearest in time to each step.

    Args:
        traces: with times.
        images: folder that has a folder of frames for each recording; the number in the name of a
            frame is its place in the video, counted from 1. Steps whose frame is missing are not
            valid.
        fps: frames per second.

    Raises:
        DataError: a recording has no folder of frames, or its frames end more than a second early.
    """
    framed = Records[Trace](traces.skip_bad)
    framed.skipped += traces.skipped
    for trace in traces:
        with framed.guard():
            place = folder(Path(images) / trace.name)
            frames = {frame_number(f): f for f in list_frames(place, decode=traces.skip_bad)}
            # Of 2.0 s at 10 frames a second, rounded from 20.00001, the frame is the 21st.
            at = 1 + np.rint(np.maximum(trace.times, 0) * fps).astype(np.int64)
            last = max(frames)
            if at[-1] > last + fps:
                reason = f"{last} frames, but annotations up to frame {at[-1]}"
                raise DataError(place, None, reason)
            chosen = tuple(frames.get(k) for k in at.tolist())
            valid = trace.valid & np.array([frame is not None for frame in chosen])
            framed.append(replace(trace, frames=chosen, valid=valid))
    return framed


def _only(parts: dict[str, list[Path]], what: str, expected: str) -> Path:
    """The one file of a recording."""
    if not parts[what]:
        (partner,) = (paths for paths in parts.values() if paths)
        missing = Path(os.path.normpath(partner[0].parent / expected))
        raise DataError(missing, None, "no such file, but its partner is there")
    if len(parts[what]) > 1:
        raise DataError(parts[what][1], None, f"is there twice, also as {parts[what][0]}")
    return parts[what][0]


def mean_rating(
    path: Path, separator: str = ","
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time stamps and the mean over annotators, each (T,), of a file with a column for each."""
    lines = text_lines(path)
    first = columns(path, "line 1", lines[0], separator, None)
    if len(first) < 2:
        raise DataError(path, "line 1", f"must have a time and a value, got {shown(lines[0])}")
    rows = list(enumerate(lines, start=1))[_is_header(first) :]
    table = rated(
        path, ((n, columns(path, f"line {n}", line, separator, len(first))) for n, line in rows)
    )
    return table[:, 0], table[:, 1:].mean(axis=1)


def rated(path: Path, rows: Iterable[tuple[int, list[str]]]) -> NDArray[np.float64]:
    """The numbers of numbered lines: times that grow, and ratings in -1..1.

    Raises:
        DataError: a number is not as it must be, or there are no lines.
    """
    cells, last, width = array("d"), -1.0, 1
    for n, (time, *values) in rows:
        seconds = number(path, f"line {n}", time, 0, MOST_SECONDS)
        if seconds <= last:
            raise DataError(path, f"line {n}", "time stamps must grow")
        last, width = seconds, 1 + len(values)
        cells.append(seconds)
        cells.extend(number(path, f"line {n}", value, -1, 1) for value in values)
    if not cells:
        raise DataError(path, None, "has a header but no lines")
    return np.array(cells).reshape(-1, width)


def _is_header(cells: list[str]) -> bool:
    """Whether a first line names its columns: a time stamp that is damaged is no header."""
    if re.search("time", cells[0], re.IGNORECASE):
        return True  # annotators may have numbers for names
    return all(re.match(r"\s*[\"']?[A-Za-z]", cell) for cell in cells)


def _read_avec_file(path: Path) -> Trace:
    lines = text_lines(path)
    if tuple(lines[0].strip().split(";", len(AVEC_HEADER))) != AVEC_HEADER:
        raise DataError(path, "line 1", f"must be {';'.join(AVEC_HEADER)}, got {shown(lines[0])}")
    if len(lines) == 1:
        raise DataError(path, None, "has a header but no lines")
    table = np.empty((len(lines) - 1, 3))
    for n, line in enumerate(lines[1:]):
        record = f"line {n + 2}"
        name, time, *values, _ = columns(path, record, line, ";", len(AVEC_HEADER))
        if name.strip().strip("'\"") != path.stem:
            raise DataError(path, record, f"is named {shown(name)}, not {path.stem!r}")
        seconds = number(path, record, time)
        if abs(seconds - AVEC_HOP * n) > AVEC_HOP / 10:
            reason = f"time must be {AVEC_HOP * n:.1f} s, got {seconds:g}"
            raise DataError(path, record, reason)
        table[n] = seconds, *(number(path, record, value) for value in values)
        if abs(table[n, 1:]).max() > 1:
            reason = f"arousal and valence must be in -1..1, got {table[n, 1]:g}, {table[n, 2]:g}"
            raise DataError(path, record, reason)
    values = table[:, [2, 1]].astype(np.float32)
    return Trace(path.stem, values, np.ones(len(table), bool), times=table[:, 0])
