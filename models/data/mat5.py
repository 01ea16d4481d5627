"""Arrays of real numbers out of MATLAB files (version 5 to 7), with every length checked.

scipy.io.loadmat is not used to read: one wrong byte in a type code makes it (scipy 1.17) crash the
process. Nothing but numeric arrays is ever made of a file.

A file is a header of 128 bytes and elements, each with a tag (type, bytes); an element of type
"matrix" has elements for flags, dimensions, name and numbers; one of type "compressed" is such an
element under zlib. Source: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from strnn_models.data.records import DataError

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
#: code of a type of stored numbers -> numpy's
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
# Double, single and the integers; below are cells, structs, objects, text and sparse arrays.
_NUMERIC_CLASSES = range(6, 16)
# Above these, MATLAB's own objects are laid out differently.
_LAST_CLASS = 15
_COMPLEX = 0x0800
# Inflated size of one variable: a small file cannot ask for all memory. SEED's have under 1 MiB.
_MOST_BYTES = 1 << 30


class _Damage(ValueError):
    """The bytes are not what the format asks for."""


class _Element(NamedTuple):
    kind: int
    data: memoryview
    end: int  # where the next one starts


def read_arrays(path: Path, names: re.Pattern[str]) -> dict[str, NDArray | DataError]:
    """The arrays of a file whose names match in full; for a damaged one, the error to raise.

    Raises:
        DataError: the file is missing, not of this format, cut off, or has a name twice.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise DataError(path, None, error.strerror or str(error)) from error
    try:
        order = _byte_order(content)
        found: dict[str, NDArray | DataError] = {}
        for matrix in _matrices(content, order):
            name, parts = _name(matrix, order)
            if not names.fullmatch(name):
                continue
            if name in found:
                raise _Damage(f"{name} is there twice")
            try:
                found[name] = _array(parts, order)
            except (_Damage, zlib.error) as error:
                found[name] = DataError(path, name, str(error))
    except (_Damage, zlib.error) as error:
        raise DataError(path, None, f"not a readable MATLAB file: {error}") from error
    return found


def _byte_order(content: memoryview) -> str:
    if len(content) < 136:
        raise _Damage(f"{len(content)} bytes are too few")
    mark = bytes(content[126:128])
    if mark not in (b"IM", b"MI"):
        raise _Damage("it has no header of version 5")
    order = "<" if mark == b"IM" else ">"
    version = int(np.frombuffer(content[124:126], f"{order}u2")[0])
    if version == 0x0200:
        raise _Damage("it is of version 7.3 (HDF5): save it again with -v7")
    if version != 0x0100:
        raise _Damage(f"its version is {version:#06x}, not 0x0100")
    return order


def _matrices(content: memoryview, order: str) -> Iterator[memoryview]:
    """The content of each matrix element; inflated, where compressed."""
    at = 128
    while at < len(content):
        element = _element(content, at, order)
        at = element.end
        if element.kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            inflated = memoryview(inflater.decompress(element.data, _MOST_BYTES))
            if not inflater.eof:
                raise _Damage(f"a variable is cut off, or larger than {_MOST_BYTES} bytes")
            element = _element(inflated, 0, order)
        if element.kind != _MATRIX:
            raise _Damage(f"an element has the type {element.kind}, neither matrix nor compressed")
        yield element.data


def _element(data: memoryview, at: int, order: str) -> _Element:
    if at + 8 > len(data):
        raise _Damage(f"it is cut off at byte {at}")
    first, count = (int(n) for n in np.frombuffer(data[at : at + 8], f"{order}u4"))
    if first >> 16:  # up to 4 bytes stand in the tag itself
        kind, count, start, end = first & 0xFFFF, first >> 16, at + 4, at + 8
        if count > 4:
            raise _Damage(f"a small element has {count} bytes")
    else:
        kind, start = first, at + 8
        end = start + count + (-count % 8 if kind != _COMPRESSED else 0)
    if start + count > len(data):
        raise _Damage(f"it is cut off: an element has {count} bytes, {len(data) - start} are left")
    return _Element(kind, data[start : start + count], end)


def _name(matrix: memoryview, order: str) -> tuple[str, tuple[_Element, _Element, memoryview]]:
    """Name of a matrix, empty for an object; its flags, dimensions and what follows the name."""
    flags = _element(matrix, 0, order)
    if flags.kind != _UINT32 or len(flags.data) != 8:
        raise _Damage("a variable does not start with its flags")
    if _flag(flags, order) & 0xFF > _LAST_CLASS:
        return "", (flags, flags, matrix[:0])
    dims = _element(matrix, flags.end, order)
    name = _element(matrix, dims.end, order)
    if (dims.kind, name.kind) != (_INT32, _INT8):
        raise _Damage("a variable has no dimensions and name after its flags")
    return bytes(name.data).decode("latin-1"), (flags, dims, matrix[name.end :])


def _flag(flags: _Element, order: str) -> int:
    return int(np.frombuffer(flags.data[:4], f"{order}u4")[0])


def _array(parts: tuple[_Element, _Element, memoryview], order: str) -> NDArray:
    flags, dims, rest = parts
    flag = _flag(flags, order)
    if flag & 0xFF not in _NUMERIC_CLASSES or flag & _COMPLEX:
        raise _Damage("must hold real numbers")
    if len(dims.data) < 8 or len(dims.data) % 4:
        raise _Damage(f"its dimensions have {len(dims.data)} bytes")
    shape = np.frombuffer(dims.data, f"{order}i4").tolist()
    numbers = _element(rest, 0, order)
    if numbers.kind not in _NUMBERS:
        raise _Damage(f"its numbers have the unknown type {numbers.kind}")
    dtype = np.dtype(order + _NUMBERS[numbers.kind])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(numbers.data):
        raise _Damage(f"its shape {tuple(shape)} does not fit its {len(numbers.data)} bytes")
    return np.frombuffer(numbers.data, dtype).reshape(shape, order="F")
