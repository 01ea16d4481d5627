"""Arrays of real numbers out of MATLAB files of version 7.3, which are HDF5, and of any version.

Needs h5py (extra ``hdf5``). The limits are those of `mat5`. Nothing outside the file is read: no
links, no external or virtual data, no filters that would be loaded from elsewhere. Compressed
chunks are inflated here and never beyond their size, which HDF5's own filter does not check.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import open_regular, why
from strnn_models.data.mat5 import (
    MOST_FILE,
    MOST_NAME,
    MOST_VARIABLE,
    MOST_VARIABLES,
    MOST_WANTED,
    MatFile,
    Variable,
)
from strnn_models.data.records import DataError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Where it stands: after MATLAB's header, or in front in files that others wrote.
_PLACES = (512, 0)
MOST_CHUNKS = 1 << 16
#: MATLAB's names of the classes that are numbers.
_CLASSES = ("double", "single", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))
# The filters of HDF5 that are undone here, in the order in which writers apply them.
_SHUFFLE, _DEFLATE, _FLETCHER32 = 2, 1, 3
_FILTERS = (_SHUFFLE, _DEFLATE, _FLETCHER32)


def open_mat(path: Path, names: re.Pattern[str]) -> MatFile | Mat73File:
    """A MATLAB file of whatever version; arguments and errors as `MatFile`."""
    try:
        with open_regular(path, MOST_FILE) as file:
            head = file.read(max(_PLACES) + len(_SIGNATURE))
    except OSError as error:
        raise DataError(path, None, why(error)) from error
    is_hdf5 = any(head.startswith(_SIGNATURE, place) for place in _PLACES)
    return (Mat73File if is_hdf5 else MatFile)(path, names)


class Mat73File:
    """`MatFile` for version 7.3.

    Raises:
        DataError: as `MatFile`; or h5py is missing.
    """

    def __init__(self, path: Path, names: re.Pattern[str]) -> None:
        try:
            import h5py
        except ImportError as error:
            reason = (
                "it is of version 7.3 (HDF5), which needs h5py: "
                'pip install "strnn-kernels[hdf5]"; or save it again with -v7'
            )
            raise DataError(path, None, reason) from error
        self.path, self._h5py = path, h5py
        try:
            self._raw = open_regular(path, MOST_FILE)
        except OSError as error:
            raise DataError(path, None, why(error)) from error
        try:
            self._file = h5py.File(self._raw, "r")
            self.variables = self._scan(names)
        except Exception as error:  # whatever HDF5 meets, too little memory for a size among it
            self._raw.close()
            raise DataError(path, None, f"not a readable MATLAB file: {_brief(error)}") from error

    def __enter__(self) -> Mat73File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def read(self, name: str) -> NDArray:
        """The array of that name.

        Raises:
            DataError: it is damaged, or does not hold real numbers.
        """
        problem = self.variables[name].problem
        if problem is not None:
            raise DataError(self.path, name, problem)
        try:
            data = self._file[name]
            return (data[()] if data.chunks is None else _chunks(data)).T
        except Exception as error:  # as above
            raise DataError(self.path, name, _brief(error)) from error

    def _scan(self, names: re.Pattern[str]) -> dict[str, Variable]:
        found: dict[str, Variable] = {}
        for count, name in enumerate(self._file):
            if count >= MOST_VARIABLES:
                raise ValueError(f"it has more than {MOST_VARIABLES} variables")
            if len(name) <= MOST_NAME and names.fullmatch(name):
                found[name] = self._header(name)
                if sum(variable.bytes for variable in found.values()) > MOST_WANTED:
                    raise ValueError(
                        f"its variables up to {name} have more than {MOST_WANTED} bytes"
                    )
        return found

    def _header(self, name: str) -> Variable:
        try:
            if not isinstance(self._file.get(name, getlink=True), self._h5py.HardLink):
                raise ValueError("must stand in the file itself, but is a link")
            data = self._file[name]
            if not isinstance(data, self._h5py.Dataset) or not self._is_numeric(data):
                raise ValueError("must hold real numbers")
            if data.shape is None or "MATLAB_empty" in data.attrs:
                raise ValueError("is empty")
            _check_size(data)
        except Exception as error:  # as above
            return Variable((), None, _brief(error))
        return Variable(data.shape[::-1], data.dtype, None)

    def _is_numeric(self, data: Any) -> bool:
        """Real numbers that stand in the file as in memory, and that MATLAB calls numbers too."""
        if "MATLAB_class" in data.attrs:
            attribute = data.attrs.get_id("MATLAB_class")
            if attribute.dtype.kind != "S" or attribute.dtype.itemsize > 64 or attribute.shape:
                return False
            if data.attrs["MATLAB_class"].decode("latin-1") not in _CLASSES:
                return False
        as_stored = self._h5py.h5t.py_create(data.dtype).equal(data.id.get_type())
        return data.dtype.kind in "fiu" and data.dtype.itemsize <= 8 and as_stored


def _check_size(data: Any) -> None:
    """Raises a ValueError for data that are too large, not in the file, or packed otherwise."""
    for extents in (data.shape, data.chunks or ()):
        if 8 * math.prod(max(1, extent) for extent in extents) > MOST_VARIABLE:
            raise ValueError(f"its shape or chunks {extents} have more than {MOST_VARIABLE} bytes")
    if data.is_virtual or data.external:
        raise ValueError("must stand in the file itself, but is in another")
    if data.chunks is None:
        if data.id.get_storage_size() != math.prod(data.shape) * data.dtype.itemsize:
            raise ValueError(f"its shape {data.shape[::-1]} does not fit what is stored")
        return
    if len(_offsets(data)) > MOST_CHUNKS:
        raise ValueError(f"has more than {MOST_CHUNKS} chunks")
    filters = _filters(data)
    if filters != [code for code in _FILTERS if code in filters]:
        raise ValueError(f"is packed by HDF5's filters {filters}, known are gzip and shuffle")


def _filters(data: Any) -> list[int]:
    plist = data.id.get_create_plist()
    return [plist.get_filter(k)[0] for k in range(plist.get_nfilters())]


class _Offsets:
    """The first index of each chunk, counted before any is made."""

    def __init__(self, ranges: list[range]) -> None:
        self._ranges = ranges

    def __len__(self) -> int:
        return math.prod(len(r) for r in self._ranges)

    def __iter__(self) -> Any:
        return itertools.product(*self._ranges)


def _offsets(data: Any) -> _Offsets:
    return _Offsets(
        [range(0, extent, step) for extent, step in zip(data.shape, data.chunks, strict=True)]
    )


def _chunks(data: Any) -> NDArray:
    """The array of a data set in chunks.

    Raises:
        ValueError, OSError, zlib.error: a chunk is missing, cut off or longer than it must be.
    """
    array, filters = np.empty(data.shape, data.dtype), _filters(data)
    size = math.prod(data.chunks) * data.dtype.itemsize
    for offset in _offsets(data):
        stored = data.id.get_chunk_info_by_coord(offset)
        if stored.byte_offset is None or stored.size > 2 * size + 1024:
            raise ValueError(f"the chunk at {offset[::-1]} is missing or too large")
        mask, packed = data.id.read_direct_chunk(offset)
        for k, code in reversed(list(enumerate(filters))):
            if not mask >> k & 1:
                packed = _undo(code, packed, size, data.dtype.itemsize)
        if len(packed) != size:
            raise ValueError(f"the chunk at {offset[::-1]} has {len(packed)} of {size} bytes")
        part = tuple(slice(at, at + step) for at, step in zip(offset, data.chunks, strict=True))
        chunk = np.frombuffer(packed, data.dtype).reshape(data.chunks)
        array[part] = chunk[tuple(slice(extent) for extent in array[part].shape)]
    return array


def _undo(code: int, packed: bytes, size: int, itemsize: int) -> bytes:
    if code == _FLETCHER32:
        return packed[:-4]
    if code == _DEFLATE:
        inflater = zlib.decompressobj()
        packed = inflater.decompress(packed, size)
        if not inflater.eof and inflater.decompress(inflater.unconsumed_tail, 1):
            raise ValueError("a chunk is longer than it must be")
        if not inflater.eof:
            raise ValueError("a chunk is cut off")
        return packed
    planes = np.frombuffer(packed, np.uint8)
    if len(planes) % itemsize:
        raise ValueError("a chunk is cut off")
    return planes.reshape(itemsize, -1).T.tobytes()


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
