"""Arrays out of numpy's .npy and .npz files, with every size checked before it is read."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import read_bytes, shown, why
from strnn_models.data.records import DataError

#: Most bytes of a .npz file and of an array in it: SEED-V's largest has a few million.
MOST_NPZ = 1 << 26
_MOST_MEMBERS = 64


def read_npy(file: BinaryIO, size: int, kinds: str = "fiu") -> NDArray:
    """The array of a .npy file.

    Args:
        file: at its start.
        size: the most bytes that the array may have.
        kinds: numpy's codes of the types allowed, for real numbers by default; "S" for bytes.

    Raises:
        ValueError: it is damaged, cut off, too large or of another type.
    """
    read = np.lib.format
    try:
        version = read.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"its version is {version}, not (1, 0) or (2, 0)")
        header = read.read_array_header_1_0 if version == (1, 0) else read.read_array_header_2_0
        shape, is_fortran, dtype = header(file)
    except Exception as error:  # the header is Python, and so are the errors of reading it
        raise ValueError(f"its header is damaged: {str(error)[:200]}") from error
    if dtype.kind not in kinds:
        wanted = "real numbers" if kinds == "fiu" else "bytes"
        raise ValueError(f"must hold {wanted}, holds {str(dtype)[:60]}")
    count = math.prod(shape) * dtype.itemsize
    vast = max(count, math.prod(max(1, n) for n in shape)) > size
    if vast or len(shape) > 8 or min(shape, default=0) < 0:
        raise ValueError(f"its shape {shown(shape)} is negative or of more than {size} bytes")
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"it is cut off: {count - len(data)} of {count} bytes are missing")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def read_npz(path: Path, names: tuple[str, ...], kinds: str = "fiu") -> dict[str, NDArray]:
    """The named arrays of a .npz file; types as in `read_npy`.

    Raises:
        DataError: the file is missing, damaged, cut off or too large, or lacks an array.
    """
    try:
        data = read_bytes(path, MOST_NPZ)
    except OSError as error:
        raise DataError(path, None, why(error)) from error
    # Python makes an object for each entry before it can be asked how many there are.
    if data.count(b"PK\x01\x02") > _MOST_MEMBERS:
        raise DataError(path, None, f"not a readable .npz: it has more than {_MOST_MEMBERS} arrays")
    found, name = {}, None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            for name in names:
                if f"{name}.npy" not in members:
                    raise ValueError("no such array")
                info = members[f"{name}.npy"]
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("it must be stored as it is or by deflate")
                with archive.open(info) as member:
                    found[name] = read_npy(member, MOST_NPZ, kinds)
                    if member.read(1):  # reads to the end, where the checksum is compared
                        raise ValueError("more follows its numbers")
    except Exception as error:  # zipfile passes on whatever its parts meet
        what = "" if name else "not a readable .npz: "
        raise DataError(path, name, what + (str(error)[:200] or type(error).__name__)) from error
    return found
