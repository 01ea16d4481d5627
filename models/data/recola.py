"""RECOLA as AVEC 2015, 2016 and 2018 hand it out: valence and arousal of a call, every 0.04 s.

``ratings_gold_standard/arousal/train_1.arff`` and ``../valence/train_1.arff``: after ``@data``
lines ``train_1,0.04,-0.022925`` of name, seconds and value; or ``ratings_individual`` with csv
files, separated by ``;``, of a time and a column for each annotator, of which the mean is taken.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import shown
from strnn_models.data.records import (
    DataError,
    Records,
    columns,
    first_folder,
    listed,
    nothing,
    text_lines,
)
from strnn_models.data.sewa import mean_rating, paired, rated
from strnn_models.data.traces import Trace

ATTRIBUTES = ("Instance_name", "frameTime", "GoldStandard")
_RATINGS = ("gold_standard", "individual")


def read_recola(
    root: Path | str,
    *,
    part: str = "train",
    ratings: str = "gold_standard",
    skip_bad: bool = False,
) -> Records[Trace]:
    """The traces of one part, valence first.

    Args:
        root: the folder that has ratings_gold_standard or ratings_individual.
        part: "train" or "dev", the start of the names.
        ratings: "gold_standard", or "individual", the mean over the annotators.
        skip_bad: leave out what is damaged and list it in `.skipped`.

    Raises:
        DataError: one of the two files of a recording is missing, a line is damaged, or their times
            differ.
        ValueError: unknown ratings.
    """
    if ratings not in _RATINGS:
        known = " or ".join(_RATINGS)
        raise ValueError(f"read_recola: ratings must be {known}, got {ratings!r}")
    end = ".arff" if ratings == "gold_standard" else ".csv"
    read = _gold_standard if end == ".arff" else partial(mean_rating, separator=";")
    place, traces = first_folder(root, f"ratings_{ratings}"), Records[Trace](skip_bad)
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for what in ("valence", "arousal"):
        for path in listed(first_folder(place, what), start=f"{part}_", end=end):
            found[path.stem][what].append(path)
    if not found:
        nothing(place / "valence", f"has no files {part}_*{end}")
    names = {what: f"../{what}/{{}}{end}" for what in ("valence", "arousal")}
    paired(traces, found, names, read)
    return traces


def _gold_standard(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time stamps and values of an arff file, each (T,)."""
    lines = [(n, line.strip()) for n, line in enumerate(text_lines(path), start=1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("%")]
    at = next((k for k, (_, line) in enumerate(lines) if line.lower() == "@data"), None)
    if at is None:
        raise DataError(path, None, "must be an arff file, has no line @data")
    attributes = []
    for _, line in lines[:at]:
        words = line.split(maxsplit=2)
        if words[0].lower() == "@attribute":
            attributes.append(words[1].strip("'\"") if len(words) > 1 else "")
    if tuple(attributes) != ATTRIBUTES:
        wanted = ", ".join(ATTRIBUTES)
        raise DataError(path, None, f"must have attributes {wanted}, got {shown(attributes)}")
    rows = []
    for n, line in lines[at + 1 :]:
        name, *numbers = columns(path, f"line {n}", line, ",", len(ATTRIBUTES))
        if name.strip().strip("'\"") != path.stem:
            raise DataError(path, f"line {n}", f"is named {shown(name)}, not {path.stem!r}")
        rows.append((n, numbers))
    table = rated(path, rows)
    return table[:, 0], table[:, 1]
