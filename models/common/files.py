"""Files of others: only regular ones of a bounded size are opened, and messages stay short."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path | str, most: int) -> BinaryIO:
    """A regular file of at most `most` bytes, open for reading; links are followed.

    A FIFO waits for a writer for ever, and a device may have no end or act when it is opened.

    Raises:
        OSError: it is missing, unreadable, no regular file or too large; its `strerror` says which.
    """
    try:
        _check(os.stat(path), path, most)
        # Should it have become a FIFO meanwhile, it opens without waiting and is refused below.
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        _check(os.fstat(file.fileno()), path, most)
    except OSError:
        file.close()
        raise
    return file


def read_bytes(path: Path | str, most: int) -> bytes:
    """The content of a file, as `open_regular` opens it, up to the size that was checked.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def why(error: OSError) -> str:
    """What went wrong, without the path, which the caller's message has anyway."""
    return error.strerror or str(error)


def shown(text: object, most: int = 60) -> str:
    """The text in quotes, for a message; cut where it is longer than `most` characters."""
    text = str(text)
    return repr(text) if len(text) <= most else f"{text[:most]!r}.. ({len(text)} characters)"


def _check(status: os.stat_result, path: Path | str, most: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise OSError(errno.EINVAL, f"must be a regular file, is {kind}", str(path))
    if status.st_size > most:
        what = f"must have at most {most} bytes, has {status.st_size}"
        raise OSError(errno.EFBIG, what, str(path))
