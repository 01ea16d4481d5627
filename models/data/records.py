"""What every reader shares: errors that name file and record, and lists that count skips."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import read_bytes, shown, why

Record = TypeVar("Record")

#: Most bytes, lines and columns of a text file; 9 hours of video have a million frames.
MOST_TEXT, MOST_LINES, MOST_COLUMNS = 1 << 25, 1 << 20, 256
#: Most entries of a folder that a message names.
_MOST_NAMED = 8
# float() also takes 1_000 and the digits of other scripts.
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


class DataError(ValueError):
    """A data file is missing, damaged, truncated or mislabelled.

    Attributes:
        file: the file or folder.
        record: the record in it (trial, line, frame), or None where the whole file is meant.
        reason: what was expected and what was found.
    """

    def __init__(self, file: Path | str, record: str | None, reason: str) -> None:
        where = f"{file}: {record}" if record else f"{file}"
        # Names of files may have bytes that are no text.
        super().__init__(f"{where}: {reason}".encode(errors="backslashreplace").decode())
        self.file, self.record, self.reason = Path(file), record, reason

    def __reduce__(self) -> tuple:
        return DataError, (self.file, self.record, self.reason)  # to come out of a worker process


@dataclass(frozen=True)
class Skip:
    """A record left out, as `DataError` would have told it."""

    file: Path
    record: str | None
    reason: str

    def __str__(self) -> str:
        return str(DataError(self.file, self.record, self.reason))


class Records(list[Record], Generic[Record]):
    """The records that were read, and `skipped`, those that were not."""

    def __init__(self, skip_bad: bool = False) -> None:
        super().__init__()
        self.skip_bad = skip_bad
        self.skipped: list[Skip] = []

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Lets a DataError through when reading strictly; else notes it and leaves the block."""
        try:
            yield
        except DataError as error:
            if not self.skip_bad:
                raise
            self.skipped.append(Skip(error.file, error.record, error.reason))

    def some(self, root: Path | str) -> Records[Record]:
        """Itself.

        Raises:
            DataError: everything below `root` was skipped.
        """
        if not self:
            reason = f"nothing is left, {len(self.skipped)} skipped; the first: {self.skipped[0]}"
            raise DataError(root, None, reason)
        return self

    def summary(self) -> str:
        """One line on what was read, and one for each record that was skipped."""
        lines = [f"{len(self)} records read, {len(self.skipped)} skipped"]
        return "\n  ".join(lines + [str(skip) for skip in self.skipped])


def folder(path: Path | str) -> Path:
    """The path, if it is a folder.

    Raises:
        DataError: it is not; says what is there instead.
    """
    path = Path(path)
    if not os.path.isdir(path):  # a name that is too long is none either; Path.is_dir would raise
        if os.path.lexists(path):
            raise DataError(path, None, "no such folder, but a file of that name")
        above = next(place for place in path.absolute().parents if os.path.isdir(place))
        raise DataError(path, None, f"no such folder; {above} has {named(above)}")
    return path


def first_folder(root: Path | str, *names: str) -> Path:
    """The first of the named sub-folders that exists (data sets renamed theirs over the years)."""
    root = folder(root)
    for name in names:
        if os.path.isdir(root / name):
            return root / name
    nothing(root, f"must have a folder named {' or '.join(names)}")


def listed(place: Path, *, start: str = "", end: str = "") -> list[Path]:
    """What a folder has whose name starts and ends so, sorted, without hidden files.

    Hidden are also `._name`, which macOS writes beside each file of another file system, and
    `__MACOSX`, where its archives keep them.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise DataError(place, None, why(error)) from error
    return [
        place / name
        for name in names
        if name.startswith(start) and name.endswith(end) and not name.startswith((".", "__MACOSX"))
    ]


def folders(place: Path) -> list[Path]:
    """The folders among what is `listed`."""
    return [path for path in listed(place) if os.path.isdir(path)]


def below(place: Path, *, end: str) -> list[Path]:
    """As `listed`, with all sub-folders; links to folders are not followed."""
    found, places = [], [place]
    while places:
        for path in listed(places.pop()):
            if not os.path.isdir(path):
                found += [path] * path.name.endswith(end)
            elif not path.is_symlink():
                places.append(path)
    return sorted(found)


def named(place: Path) -> str:
    """What a folder has, for a message."""
    paths = listed(place)
    names = [path.name + "/" * os.path.isdir(path) for path in paths[:_MOST_NAMED]]
    more = len(paths) - len(names)
    return (", ".join(names) or "nothing") + (f" and {more} more" if more else "")


def nothing(place: Path, problem: str) -> NoReturn:
    """Raises the DataError of a folder that lacks what was expected, and says what it has."""
    raise DataError(place, None, f"{problem}; it has {named(place)}")


def text_lines(path: Path) -> list[str]:
    """The lines of a text file without those that are blank at its end.

    Raises:
        DataError: it is missing, no regular file, too large, empty or not UTF-8 text.
    """
    try:
        text = read_bytes(path, MOST_TEXT).decode("utf-8-sig")
    except OSError as error:
        raise DataError(path, None, why(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not a text file: byte {error.start} is not UTF-8") from error
    # Of all that str.splitlines takes for the end of a line, these are what editors count.
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    if not text:
        raise DataError(path, None, "the file is empty")
    if text.count("\n") >= MOST_LINES:
        raise DataError(path, None, f"has more than {MOST_LINES} lines")
    return text.split("\n")


def columns(
    path: Path, record: str, line: str, separator: str, width: int | None, what: str = "columns"
) -> list[str]:
    """The columns of a line, or what else they are called in errors.

    Raises:
        DataError: it has not `width` of them; or, with None, more than `MOST_COLUMNS`.
    """
    count = line.count(separator) + 1  # before a million of them are made
    if width is None and count > MOST_COLUMNS:
        raise DataError(path, record, f"must have at most {MOST_COLUMNS} {what}, got {count}")
    if width not in (None, count):
        raise DataError(path, record, f"must have {width} {what}, got {count}")
    return line.split(separator)


def number(
    path: Path, record: str, text: str, low: float = -math.inf, high: float = math.inf
) -> float:
    """The finite number in `low`..`high` that a text spells.

    Raises:
        DataError: it does not, as ``0_5``, digits of other scripts, or one out of the range.
    """
    text = text.strip()
    if _NOT_FINITE.fullmatch(text):
        raise DataError(path, record, f"must be finite, got {shown(text)}")
    if not _NUMBER.fullmatch(text):
        raise DataError(path, record, f"must be a number, got {shown(text)}")
    value = float(text)
    if not math.isfinite(value):
        raise DataError(path, record, f"must be finite, got {shown(text)}")
    if not low <= value <= high:
        raise DataError(path, record, f"must be in {low:g}..{high:g}, got {value:g}")
    return value


def float32(path: Path | str, record: str | None, array: NDArray) -> NDArray[np.float32]:
    """The array as float32, all of it finite: larger numbers would become infinite.

    Raises:
        DataError: a value is not; says how many, and where the first one is.
    """
    with np.errstate(over="ignore"):  # what overflows is found below
        result = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(result)
    if bad.any():
        where = tuple(int(i) for i in np.unravel_index(bad.argmax(), bad.shape))
        problem = f"{bad.sum()} values are not finite as float32, the first at {where}"
        raise DataError(path, record, problem)
    return result
