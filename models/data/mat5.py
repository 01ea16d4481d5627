"""Arrays of real numbers out of MATLAB files (version 5 to 7), with every length checked.

scipy.io.loadmat is not used to read: one wrong byte in a type code makes it (scipy 1.17) crash the
process. Nothing but numeric arrays is ever made of a file.

A file is a header of 128 bytes and elements, each with a tag (type, bytes); an element of type
"matrix" has elements for flags, dimensions, name and numbers; one of type "compressed" is such an
element under zlib. Source: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import os
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import open_regular, why
from strnn_models.data.records import DataError

#: Most bytes of a file; of one variable and of all that are wanted, as float64: a small file cannot
#: ask for all memory. A session of SEED's signals has 0.36 GB, its longest trial 26 MB.
MOST_FILE, MOST_VARIABLE, MOST_WANTED = 1 << 30, 1 << 28, 1 << 30
MOST_VARIABLES = 10_000

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
# What the parts before the numbers have at most: MATLAB's names end at 63 bytes.
MOST_NAME, _MOST_DIMS = 63, 8


class _Damage(ValueError):
    """The bytes are not what the format asks for."""


class _Stream:
    """The next `size` bytes of a file; inflated, where compressed, as far as they are read."""

    def __init__(self, file: BinaryIO, size: int, compressed: bool) -> None:
        self._file, self._left = file, size
        self._inflater = zlib.decompressobj() if compressed else None

    def read(self, count: int) -> bytes:
        """The next `count` bytes.

        Raises:
            _Damage: there are fewer.
        """
        parts, missing = [], count
        while missing:
            part = self._some(missing)
            if not part:
                raise _Damage(f"it is cut off: {missing} of {count} bytes are missing")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Reads what may follow the numbers: the padding, and zlib's checksum.

        Raises:
            _Damage, zlib.error: it is cut off, or another one.
        """
        if self._inflater is not None:
            self._some(8)
            if not self._inflater.eof:
                raise _Damage("it is cut off, or more than its numbers follow")

    def _some(self, most: int) -> bytes:
        if self._inflater is None:
            return self._take(most)
        part = b""
        while not part and not self._inflater.eof:
            # No more than about what is needed: what is left over is copied every time.
            data = self._inflater.unconsumed_tail or self._take(min(max(most, 256), 1 << 16))
            part = self._inflater.decompress(data, most)
            if not data and not part:
                break
        return part

    def _take(self, most: int) -> bytes:
        data = self._file.read(min(most, self._left))
        self._left -= len(data)
        return data


@dataclass(frozen=True)
class Variable:
    """What a file says of a variable before its numbers.

    `problem`: why it cannot be read, or None. `at`, `size`: its element in the file, without tag,
    for version 5.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    problem: str | None
    at: int = 0
    size: int = 0
    compressed: bool = False

    @property
    def bytes(self) -> int:
        """Its size as float64."""
        return 8 * math.prod(self.shape)


class MatFile:
    """A file whose wanted variables are known, and can be read one at a time.

    Args:
        path: of the file.
        names: those of the wanted variables match in full.

    Attributes:
        variables: by name; nothing of their numbers has been inflated.

    Raises:
        DataError: the file is missing, not of this format, cut off, too large, or has a name twice.
    """

    def __init__(self, path: Path, names: re.Pattern[str]) -> None:
        self.path = path
        try:
            self._file = open_regular(path, MOST_FILE)
        except OSError as error:
            raise DataError(path, None, why(error)) from error
        try:
            self._order = _byte_order(self._file.read(128))
            self.variables = self._scan(names)
        except (_Damage, zlib.error, OSError) as error:
            self._file.close()
            raise DataError(path, None, f"not a readable MATLAB file: {error}") from error

    def __enter__(self) -> MatFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, name: str) -> NDArray:
        """The array of that name.

        Raises:
            DataError: it is damaged, or does not hold real numbers.
        """
        variable = self.variables[name]
        try:
            if variable.problem is not None:
                raise _Damage(variable.problem)
            stream = self._stream(variable)
            self._before_numbers(stream)
            _, count, small = self._tag(stream)
            if count != math.prod(variable.shape) * variable.dtype.itemsize:
                raise _Damage("the file has changed while it was read")
            numbers = stream.read(count) if small is None else small
            stream.close()
        except (_Damage, zlib.error, OSError) as error:
            raise DataError(self.path, name, str(error)) from error
        return np.frombuffer(numbers, variable.dtype).reshape(variable.shape, order="F")

    def _scan(self, names: re.Pattern[str]) -> dict[str, Variable]:
        """The headers of all variables, of which the wanted ones are kept."""
        found: dict[str, Variable] = {}
        at, end, count, wanted = 128, os.fstat(self._file.fileno()).st_size, 0, 0
        while at < end:
            self._file.seek(at)
            kind, size, data = self._tag(_Stream(self._file, end - at, compressed=False))
            if kind not in (_MATRIX, _COMPRESSED) or data is not None:
                raise _Damage(f"an element has the type {kind}, neither matrix nor compressed")
            if size > end - at - 8:
                left = end - at - 8
                raise _Damage(f"it is cut off: an element has {size} bytes, {left} are left")
            compressed = kind == _COMPRESSED
            name, variable = self._header(at + 8, size, compressed)
            count += 1
            if count > MOST_VARIABLES:
                raise _Damage(f"it has more than {MOST_VARIABLES} variables")
            if names.fullmatch(name):
                if name in found:
                    raise _Damage(f"{name} is there twice")
                found[name] = variable
                wanted += variable.bytes
                if wanted > MOST_WANTED:
                    raise _Damage(f"its variables up to {name} have more than {MOST_WANTED} bytes")
            at += 8 + size + (0 if compressed else -size % 8)
        if at == 128:
            raise _Damage("it has no variables")
        return found

    def _header(self, at: int, size: int, compressed: bool) -> tuple[str, Variable]:
        """Name, empty for an object, and what is known of a variable."""
        unknown = Variable((), None, None, at, size, compressed)
        stream = self._stream(unknown)
        name, flags, dims = self._before_numbers(stream)
        try:
            if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX:
                raise _Damage("must hold real numbers")
            shape = self._shape(dims)
            kind, count, _ = self._tag(stream)
            if kind not in _NUMBERS:
                raise _Damage(f"its numbers have the unknown type {kind}")
            dtype = np.dtype(self._order + _NUMBERS[kind])
            if math.prod(shape) * dtype.itemsize != count:
                raise _Damage(f"its shape {shape} does not fit its {count} bytes")
        except (_Damage, zlib.error) as error:
            return name, replace(unknown, problem=str(error))
        return name, replace(unknown, shape=shape, dtype=dtype)

    def _stream(self, variable: Variable) -> _Stream:
        self._file.seek(variable.at)
        stream = _Stream(self._file, variable.size, variable.compressed)
        if variable.compressed:
            kind, _, data = self._tag(stream)
            if kind != _MATRIX or data is not None:
                raise _Damage(f"a compressed element has the type {kind}, not matrix")
        return stream

    def _before_numbers(self, stream: _Stream) -> tuple[str, int, bytes]:
        """Name, flags and dimensions; the name of an object is taken to be empty."""
        kind, flags = self._element(stream, 8)
        if kind != _UINT32 or len(flags) != 8:
            raise _Damage("a variable does not start with its flags")
        flag = int(np.frombuffer(flags[:4], f"{self._order}u4")[0])
        if flag & 0xFF > _LAST_CLASS:
            return "", flag, b""
        kinds, parts = zip(
            *(self._element(stream, 4 * _MOST_DIMS), self._element(stream, MOST_NAME)),
            strict=True,
        )
        if kinds != (_INT32, _INT8):
            raise _Damage("a variable has no dimensions and name after its flags")
        return parts[1].decode("latin-1"), flag, parts[0]

    def _shape(self, dims: bytes) -> tuple[int, ...]:
        if len(dims) < 8 or len(dims) % 4:
            raise _Damage(f"its dimensions have {len(dims)} bytes")
        shape = tuple(np.frombuffer(dims, f"{self._order}i4").tolist())
        # An empty array may not be vast in its other dimensions either: numpy refuses to make it.
        if min(shape) < 0 or 8 * math.prod(max(1, extent) for extent in shape) > MOST_VARIABLE:
            raise _Damage(f"its shape {shape} is negative or of more than {MOST_VARIABLE} bytes")
        return shape

    def _element(self, stream: _Stream, most: int) -> tuple[int, bytes]:
        """Type and content of an element that may have at most `most` bytes."""
        kind, count, small = self._tag(stream)
        if small is not None:
            return kind, small
        if count > most:
            raise _Damage(f"flags, dimensions or name of a variable have {count} bytes")
        return kind, stream.read(count + -count % 8)[:count]

    def _tag(self, stream: _Stream) -> tuple[int, int, bytes | None]:
        """Type and size of an element, and its content where that stands in the tag itself."""
        tag = stream.read(8)
        first, count = (int(n) for n in np.frombuffer(tag, f"{self._order}u4"))
        if not first >> 16:
            return first, count, None
        if first >> 16 > 4:
            raise _Damage(f"a small element has {first >> 16} bytes")
        return first & 0xFFFF, first >> 16, tag[4 : 4 + (first >> 16)]


def read_arrays(path: Path, names: re.Pattern[str]) -> dict[str, NDArray | DataError]:
    """The arrays of a file whose names match in full; for a damaged one, the error to raise.

    Raises:
        DataError: as `MatFile`.
    """
    found: dict[str, NDArray | DataError] = {}
    with MatFile(path, names) as file:
        for name in file.variables:
            try:
                found[name] = file.read(name)
            except DataError as error:
                found[name] = error
    return found


def _byte_order(header: bytes) -> str:
    if len(header) < 128:
        raise _Damage(f"{len(header)} bytes are too few")
    if header[126:] not in (b"IM", b"MI"):
        raise _Damage("it has no header of version 5")
    order = "<" if header[126:] == b"IM" else ">"
    version = int(np.frombuffer(header[124:126], f"{order}u2")[0])
    if version == 0x0200:
        raise _Damage("it is of version 7.3, but HDF5 does not follow its header")
    if version != 0x0100:
        raise _Damage(f"its version is {version:#06x}, not 0x0100")
    return order
