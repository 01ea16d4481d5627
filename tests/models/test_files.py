"""Files of others are opened only where that can neither wait nor fill the memory."""

from __future__ import annotations

import os
import socket

import pytest
from strnn_models.common.files import open_regular, read_bytes, shown


def test_regular_files_are_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bytes(path, 5) == read_bytes(str(tmp_path / "link"), 5) == b"12345"
    with open_regular(path, 9) as file:
        assert file.read(2) == b"12"


def test_nothing_else_is_opened(tmp_path):
    """Without the check the FIFO waits for ever, and the link to /dev/zero has no end."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "large").write_bytes(b"123456")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the name of a socket must be short
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
        listener.close()
    reasons = {
        "fifo": "pipe, socket or device",
        "zero": "pipe, socket or device",
        "socket": "pipe, socket or device",
        ".": "is a folder",
        "large": "at most 5 bytes, has 6",
        "sparse": "at most 5 bytes",
        "dangling": "No such file",
        "absent": "No such file",
        "a" * 300: "too long",
        "a\0b": "null byte",
    }
    for name, reason in reasons.items():
        with pytest.raises(OSError, match=reason):
            read_bytes(f"{tmp_path}/{name}", 5)


def test_long_texts_are_cut_in_messages():
    assert shown("a'b") == '"a\'b"'
    assert shown("9" * 5000) == f"'{'9' * 60}'.. (5000 characters)"
