"""What every reader shares: errors that name file and record, and lists that count skips."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Record = TypeVar("Record")


class DataError(ValueError):
    """A data file is missing, damaged, truncated or mislabelled.

    Attributes:
        file: the file or folder.
        record: the record in it (trial, line, frame), or None where the whole file is meant.
        reason: what was expected and what was found.
    """

    def __init__(self, file: Path | str, record: str | None, reason: str) -> None:
        where = f"{file}: {record}" if record else f"{file}"
        super().__init__(f"{where}: {reason}")
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
        return (
            f"{self.file}: {self.record}: {self.reason}"
            if self.record
            else f"{self.file}: {self.reason}"
        )


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
    """The path, if it is a folder."""
    path = Path(path)
    if not path.is_dir():
        raise DataError(path, None, "no such folder")
    return path


def first_folder(root: Path | str, *names: str) -> Path:
    """The first of the named sub-folders that exists (data sets renamed theirs over the years)."""
    root = folder(root)
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise DataError(root, None, f"must have a folder named {' or '.join(names)}")


def text_lines(path: Path) -> list[str]:
    """The lines of a text file without those that are blank at its end.

    Raises:
        DataError: it is missing, unreadable, empty or not UTF-8 text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not a text file: byte {error.start} is not UTF-8") from error
    if not text.strip():
        raise DataError(path, None, "the file is empty")
    return text.rstrip().splitlines()


def number(path: Path, record: str, text: str) -> float:
    """The finite number that a text spells."""
    try:
        value = float(text)
    except ValueError:
        raise DataError(path, record, f"must be a number, got {text.strip()!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise DataError(path, record, f"must be finite, got {text.strip()!r}")
    return value
