"""SEWA: valence and arousal from the raw csv files of the annotators, or from the labels of AVEC.

Raw: ``<stem>_Valence_<type>_Aligned.csv`` and ``<stem>_Arousal_<type>_Aligned.csv``, a time stamp
    and a column
for each annotator, of which the mean is taken. AVEC 2017 to 2019: ``labels/Train_DE_01.csv``,
separated by ``;``, ``name;timestamp;arousal;valence;liking``, a line every 0.1 s. Both give valence
first.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strnn_models.data.frames import list_frames
from strnn_models.data.records import DataError, Records, folder, number, text_lines
from strnn_models.data.traces import Trace

AVEC_HEADER = ("name", "timestamp", "arousal", "valence", "liking")
AVEC_HOP = 0.1


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
    stems = {
        path.with_name(path.name.removesuffix(ending))
        for ending in endings.values()
        for path in root.rglob(f"*{ending}")
    }
    if not stems:
        raise DataError(root, None, f"has no files *{endings['Valence']}")
    for stem in sorted(stems):
        with traces.guard():
            paths = [stem.with_name(stem.name + ending) for ending in endings.values()]
            (times, valence), (other, arousal) = (_read_raw(path) for path in paths)
            if len(times) != len(other) or not np.allclose(times, other, atol=1e-6):
                reason = f"its {len(other)} time stamps are not the {len(times)} of {paths[0].name}"
                raise DataError(paths[1], None, reason)
            values = np.stack([valence, arousal], axis=1).astype(np.float32)
            traces.append(Trace(stem.name, values, np.ones(len(times), bool), times=times))
    return traces


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
    root = root / "labels" if (root / "labels").is_dir() else root
    paths = sorted(root.glob(f"{part}*.csv"))
    if not paths:
        raise DataError(root, None, f"has no files {part}*.csv")
    for path in paths:
        with traces.guard():
            traces.append(_read_avec_file(path))
    return traces


def with_frames(traces: Records[Trace], images: Path | str, fps: float) -> Records[Trace]:
    """The traces with the video frame nearest in time to each step.

    Args:
        traces: with times.
        images: folder that has a folder of frames 1, 2, .. for each recording.
        fps: frames per second.

    Raises:
        DataError: a recording has no folder of frames, or its frames end more than a second early.
    """
    framed = Records[Trace](traces.skip_bad)
    framed.skipped += traces.skipped
    for trace in traces:
        with framed.guard():
            place = folder(Path(images) / trace.name)
            frames = list_frames(place, decode=traces.skip_bad)
            at = np.rint(trace.times * fps).astype(int)
            if at[-1] >= len(frames) + fps:
                reason = f"{len(frames)} frames, but annotations up to frame {at[-1] + 1}"
                raise DataError(place, None, reason)
            chosen = tuple(frames[k] if k < len(frames) else None for k in at)
            valid = trace.valid & (at < len(frames))
            framed.append(replace(trace, frames=chosen, valid=valid))
    return framed


def _read_raw(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time stamps and the mean over annotators, each (T,)."""
    if not path.is_file():
        raise DataError(path, None, "no such file, but its partner is there")
    lines = text_lines(path)
    has_header = not _is_number(lines[0].split(",")[0])
    rows = []
    for n, line in list(enumerate(lines, start=1))[has_header:]:
        cells = line.split(",")
        rows.append([number(path, f"line {n}", cell) for cell in cells])
        if len(cells) != len(rows[0]) or len(cells) < 2:
            expected = f"{len(rows[0])} columns" if len(rows[0]) > 1 else "a time and a value"
            raise DataError(path, f"line {n}", f"must have {expected}, got {len(cells)}")
        if len(rows) > 1 and rows[-1][0] <= rows[-2][0]:
            raise DataError(path, f"line {n}", "time stamps must grow")
    if not rows:
        raise DataError(path, None, "has a header but no lines")
    table = np.array(rows)
    return table[:, 0], table[:, 1:].mean(axis=1)


def _read_avec_file(path: Path) -> Trace:
    lines = text_lines(path)
    if tuple(lines[0].strip().split(";")) != AVEC_HEADER:
        reason = f"must be {';'.join(AVEC_HEADER)}, got {lines[0].strip()!r}"
        raise DataError(path, "line 1", reason)
    rows = []
    for n, line in enumerate(lines[1:], start=2):
        cells = line.split(";")
        if len(cells) != len(AVEC_HEADER):
            reason = f"must have {len(AVEC_HEADER)} columns, got {len(cells)}"
            raise DataError(path, f"line {n}", reason)
        if cells[0].strip().strip("'\"") != path.stem:
            raise DataError(path, f"line {n}", f"is named {cells[0]!r}, not {path.stem!r}")
        row = [number(path, f"line {n}", cell) for cell in cells[1:4]]
        if abs(row[0] - AVEC_HOP * len(rows)) > AVEC_HOP / 10:
            reason = f"time must be {AVEC_HOP * len(rows):.1f} s, got {row[0]}"
            raise DataError(path, f"line {n}", reason)
        if max(abs(row[1]), abs(row[2])) > 1:
            reason = f"arousal and valence must be in -1..1, got {row[1]}, {row[2]}"
            raise DataError(path, f"line {n}", reason)
        rows.append(row)
    if not rows:
        raise DataError(path, None, "has a header but no lines")
    table = np.array(rows)
    values = table[:, [2, 1]].astype(np.float32)
    return Trace(path.stem, values, np.ones(len(table), bool), times=table[:, 0])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
