"""Which files of the SEED data sets hold which subject and session.

A session is known by its folder, by SEED's dates or by the order of all three dates, never by how
many files there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from strnn_models.data.records import DataError, Records, folder, listed

#: subject -> the dates of its sessions 1, 2 and 3 in SEED
DATES = {
    "1": ("20131027", "20131030", "20131107"),
    "2": ("20140404", "20140413", "20140419"),
    "3": ("20140603", "20140611", "20140629"),
    "4": ("20140621", "20140702", "20140705"),
    "5": ("20140411", "20140418", "20140506"),
    "6": ("20130712", "20131016", "20131113"),
    "7": ("20131027", "20131030", "20131106"),
    "8": ("20140511", "20140514", "20140521"),
    "9": ("20140620", "20140627", "20140704"),
    "10": ("20131130", "20131204", "20131211"),
    "11": ("20140618", "20140625", "20140630"),
    "12": ("20131127", "20131201", "20131207"),
    "13": ("20140527", "20140603", "20140610"),
    "14": ("20140601", "20140615", "20140627"),
    "15": ("20130709", "20131016", "20131105"),
}


@dataclass(frozen=True)
class Names:
    """How files are called: in words, their ending, and a pattern whose first group is a subject.

    A second group is a date.
    """

    words: str
    end: str
    pattern: re.Pattern[str]


DATED = Names("<subject>_<yyyymmdd>.mat", ".mat", re.compile(r"([0-9]+)_([0-9]{8})\.mat"))
SEED_V = Names("<subject>_123.npz", ".npz", re.compile(r"([0-9]+)_123\.npz"))
SEED_VII = Names("<subject>.mat", ".mat", re.compile(r"([0-9]+)\.mat"))
DEAP = Names("s<subject>.mat or .dat", "", re.compile(r"s([0-9]+)\.(?:mat|dat)"))

#: subject, the sessions that are wanted of a file, and the file
Wanted = tuple[str, list[int], Path]


class Choice:
    """The subjects and sessions that are asked for; None: all.

    Args:
        reader: for messages.
        num_sessions: of the data set.
        subjects: a list of them.
        sessions: likewise, counted from 1.

    Raises:
        ValueError: something else than a list of them: a text would be read character by character.
    """

    def __init__(
        self,
        reader: str,
        num_sessions: int,
        subjects: Collection[str | int] | None,
        sessions: Collection[int] | None = None,
    ) -> None:
        self.subjects = _texts(reader, "subjects", subjects)
        chosen, numbers = _texts(reader, "sessions", sessions), range(1, num_sessions + 1)
        unknown = sorted((chosen or set()) - set(map(str, numbers)))
        if unknown:
            got = ", ".join(unknown)
            raise ValueError(f"{reader}: sessions must be in 1..{num_sessions}, got {got}")
        self.sessions = [n for n in numbers if chosen is None or str(n) in chosen]

    def in_folders(self, root: Path, names: Names, records: Records) -> Iterator[Wanted]:
        """The files of folders 1, 2, .., one of each subject."""
        for session in self.sessions:
            with records.guard():
                place = folder(root / str(session))
                yield from self._single(place, names, records, [session])

    def by_subject(self, root: Path, names: Names, records: Records) -> Iterator[Wanted]:
        """The files of one folder, each with all sessions of a subject."""
        return self._single(root, names, records, self.sessions)

    def by_date(self, root: Path, names: Names, records: Records) -> Iterator[Wanted]:
        """The files of one folder, their sessions told from their dates."""
        for subject, files in self._found(root, names, records):
            with records.guard():
                dates = _dates(root, subject, files)
                for session in self.sessions:
                    if dates[session - 1] in files:
                        yield subject, [session], files[dates[session - 1]]

    def _single(
        self, place: Path, names: Names, records: Records, sessions: list[int]
    ) -> Iterator[Wanted]:
        for subject, files in self._found(place, names, records):
            with records.guard():
                if len(files) > 1:
                    several = ", ".join(path.name for path in files.values())
                    reason = f"{len(files)} files of it in one folder: {several}"
                    raise DataError(place, f"subject {subject}", reason)
                yield subject, sessions, next(iter(files.values()))

    def _found(
        self, place: Path, names: Names, records: Records
    ) -> Iterator[tuple[str, dict[str, Path]]]:
        """Subject and date, or name, -> file, in ascending order, of the subjects asked for."""
        found: dict[str, dict[str, Path]] = {}
        for path in listed(place, end=names.end):
            if path.name == "label.mat" or os.path.isdir(path):
                continue
            with records.guard():
                match = names.pattern.fullmatch(path.name)
                dates = match.groups()[1:] if match else ()
                if match is None or not all(map(_is_date, dates)):
                    raise DataError(path, None, f"must be named {names.words}")
                files = found.setdefault(str(int(match[1])), {})
                key = dates[0] if dates else path.name
                if key in files:
                    raise DataError(path, None, f"is there twice, also as {files[key].name}")
                files[key] = path
        for subject in sorted(self.subjects or ()):
            if subject not in found:
                raise DataError(place, f"subject {subject}", f"no file {names.words}")
        for subject, files in sorted(found.items(), key=lambda item: int(item[0])):
            if self.subjects is None or subject in self.subjects:
                yield subject, files


def _dates(root: Path, subject: str, files: dict[str, Path]) -> tuple[str, ...]:
    """The dates of the sessions of a subject that has these files, by date."""
    dates = DATES.get(subject, ())
    if len(files) > 3:
        raise DataError(root, f"subject {subject}", f"{len(files)} files of it, but 3 sessions")
    if not set(files) <= set(dates):
        dates = tuple(sorted(files))
    if len(dates) < 3:
        reason = (
            f"which sessions its {len(files)} files are is not known: their dates "
            f"{', '.join(files)} are not SEED's, and not all three are there; put them "
            "into folders 1, 2 and 3"
        )
        raise DataError(root, f"subject {subject}", reason)
    return dates


def _texts(reader: str, what: str, given: Collection[str | int] | None) -> set[str] | None:
    if given is None:
        return None
    good = isinstance(given, Collection) and not isinstance(given, str | bytes) and len(given)
    if not good or not all(isinstance(v, str | int | np.integer) for v in given):
        raise ValueError(f"{reader}: {what} must be a list such as [1, 2], got {given!r}")
    return set(map(str, given))


def _is_date(text: str) -> bool:
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return False
    return True
