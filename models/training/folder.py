"""A folder that one process writes: locked, each file whole, and nothing of anybody else's lost."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK, PART = ".strnn.lock", ".strnn.part"


class FolderError(ValueError):
    """The folder is in use, or has files that would be lost; says whose or which."""


@contextmanager
def hold(folder: Path, mark: Callable[[], bool], writes: Callable[[str], bool]) -> Iterator[None]:
    """Makes a folder and locks it; afterwards the lock is gone, and the folder if it is empty.

    The lock is the system's: that of a process that was killed is free.

    Args:
        folder: with its parents.
        mark: whether the folder has the work of an earlier process, which may be replaced.
        writes: whether this one may write a file of that name.

    Raises:
        FolderError: another process holds the folder, or it has such files without the mark.
        OSError: it cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = None
    try:
        lock = _lock(folder)
        # A killed process has left its name in the lock, and perhaps files without the mark.
        if not os.fstat(lock.fileno()).st_size and not mark():
            _refuse_to_replace(folder, writes)
        _sign(lock, folder / LOCK)
        yield
    finally:
        if lock is not None:
            (folder / PART).unlink(missing_ok=True)
            if _is_at(lock, folder / LOCK):
                (folder / LOCK).unlink()
            _held.discard(lock)
            lock.close()
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def write_atomic(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Writes a file so that after a crash it has its old content or the new, never a part.

    Args:
        path: the file; one process at a time writes in its folder, see `hold`.
        content: all of it.
        durable: whether it must be on disk at return; otherwise a loss of power may lose it.

    Raises:
        OSError: it cannot be written; `filename` is the path.
    """
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(PART)
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(part, path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


_held: set[FileIO] = set()


def _let_go() -> None:
    # A worker that outlives its killed parent must not go on holding what the parent held.
    while _held:
        _held.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _lock(folder: Path) -> FileIO:
    path = folder / LOCK
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)
        except FileNotFoundError:  # whoever held it has just taken the empty folder away
            continue
        try:
            if fcntl is None:
                raise OSError(None, "this system has no flock")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)  # whoever has just locked it signs next
            who = (file.read(200) or b"").decode(errors="replace") or "another process"
            file.close()
            raise FolderError(
                f"{folder} is in use by {who}: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            print(f"{path}: no lock ({error.strerror}); start no second run here", file=sys.stderr)
        if _is_at(file, path):
            _held.add(file)
            return file
        file.close()  # whoever held it has just removed it


def _is_at(file: FileIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _sign(lock: FileIO, path: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    try:
        lock.truncate(0)
        lock.write(text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _refuse_to_replace(folder: Path, writes: Callable[[str], bool]) -> None:
    lost = sorted(name for name in os.listdir(folder) if writes(name))
    if lost:
        names = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if lost[3:] else "")
        raise FolderError(
            f"{folder} has {names}, which would be replaced, and no sign that an earlier run "
            "wrote them: choose another folder"
        )


def _sync_folder(path: Path) -> None:
    # A rename is on disk only once the folder is; systems without folder handles do it themselves.
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
