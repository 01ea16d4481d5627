"""Files of weights: what torch.save wrote, read so that it executes nothing and stays its size."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import torch

#: Bytes of a file of weights that are read.
MOST = 1 << 32


def unpickle(data: bytes) -> Any:
    """What torch.save made of tensors and plain values, on the CPU.

    Raises:
        ValueError: it could become larger than it is.
        Exception: it is damaged; what the restricted unpickler trips over varies.
    """
    if data.startswith(b"PK"):
        # torch.save does not compress, and no two of its parts share bytes.
        parts = zipfile.ZipFile(io.BytesIO(data)).infolist()
        size = sum(part.file_size for part in parts)
        if size > len(data) or any(part.compress_type for part in parts):
            raise ValueError(f"compressed: its {len(data)} bytes would become {size}")
    if b"\nbytearray\n" in data:  # of any length, made by name alone; no weights need it
        raise ValueError("it asks for a bytearray")
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
