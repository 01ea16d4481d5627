"""Arrays out of pickles, of which nothing is run: SEED-V and DEAP hand out dicts of numpy's arrays.

`pickle` calls what a file names. Here the opcodes are looked at one by one, and those that make
dicts, lists, numbers, texts and numpy's arrays of numbers are followed; the names of the functions
in between are compared and never looked up. Source: Python's `pickletools`.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from strnn_models.common.files import shown

#: Most opcodes; a dict of 45 arrays has about a thousand.
MOST_OPCODES = 100_000
# The functions that numpy's arrays name, under all their names.
_RECONSTRUCT = {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_NDARRAY, _DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_FROM_BUFFER = {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
_ENCODE = ("_codecs", "encode")  # how protocol 2 writes bytes
_KNOWN = {*_RECONSTRUCT, *_FROM_BUFFER, _NDARRAY, _DTYPE, _ENCODE}
#: numpy's codes of the numbers
_TYPES = ("f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)))
_VALUES = (
    *("INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINSTRING"),
    *("SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
#: What an array's bytes come as; a text in Python 2.
_BYTES = (bytes, bytearray, str)
_MARK = object()


@dataclass
class _Name:
    """A function or class that the file names."""

    name: tuple[str, str]


@dataclass
class _Type:
    """numpy's dtype."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """numpy's array; None until its state has been read."""

    value: NDArray | None = None


def read_dict(data: bytes) -> dict[int | str, Any]:
    """The dict that a pickle holds, with arrays of real numbers.

    Raises:
        ValueError: it is damaged, holds anything else, or names a function that makes no array.
    """
    try:
        result = _Machine(data).run()
    except (IndexError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise ValueError(f"not a readable pickle ({type(error).__name__})") from error
    if not isinstance(result, dict):
        raise ValueError(f"must hold a dict, holds {type(result).__name__.strip('_').lower()}")
    return {key: v.value if isinstance(v, _Array) else v for key, v in result.items()}


class _Machine:
    """The pickle machine, with a stack, a memo, and no way to call anything."""

    def __init__(self, data: bytes) -> None:
        self.file, self.stack, self.memo = io.BytesIO(data), [], {}
        self.left = 2 * len(data)  # bytes of all copies: one text may be named many times

    def run(self) -> Any:
        for _ in range(MOST_OPCODES):
            code = self.file.read(1)
            opcode = pickletools.code2op.get(code.decode("latin-1"))
            if opcode is None:
                raise ValueError("the pickle is cut off, or has an unknown opcode")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in _VALUES and opcode.name not in _STEPS:
                raise ValueError(f"the pickle has the opcode {opcode.name}, which makes no array")
            argument = None if opcode.arg is None else opcode.arg.reader(self.file)
            if opcode.name in _VALUES:
                self.stack.append(argument)
            else:
                _STEPS[opcode.name](self, opcode.name, argument)
        raise ValueError(f"the pickle has more than {MOST_OPCODES} opcodes")

    def nothing(self, name: str, argument: Any) -> None:
        """PROTO, FRAME: how the rest is written."""

    def constant(self, name: str, argument: Any) -> None:
        self.stack.append(_CONSTANTS[name])

    def mark(self, name: str, argument: Any) -> None:
        self.stack.append(_MARK)

    def marked(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("the pickle lacks a mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def make_tuple(self, name: str, argument: Any) -> None:
        if name == "TUPLE":
            values = self.marked()
        else:
            count = _TUPLES[name]
            values = [self.stack.pop() for _ in range(count)][::-1]
        self.stack.append(tuple(values))

    def make_list(self, name: str, argument: Any) -> None:
        self.stack.append(self.marked() if name == "LIST" else [])

    def append(self, name: str, argument: Any) -> None:
        values = self.marked() if name == "APPENDS" else [self.stack.pop()]
        if type(self.stack[-1]) is not list:
            raise ValueError("the pickle appends to what is no list")
        self.stack[-1].extend(values)

    def make_dict(self, name: str, argument: Any) -> None:
        values = self.marked() if name == "DICT" else []
        self.stack.append({})
        self.fill(values)

    def items(self, name: str, argument: Any) -> None:
        values = self.marked() if name == "SETITEMS" else [self.stack.pop(), self.stack.pop()][::-1]
        self.fill(values)

    def fill(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(values) % 2:
            raise ValueError("the pickle puts pairs into what is no dict, or half a pair")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (int, str):
                raise ValueError("the keys of a dict must be numbers or texts")
            self.stack[-1][key] = value

    def put(self, name: str, argument: Any) -> None:
        self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]

    def get(self, name: str, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def name(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            words = tuple(argument.split(" ", 1))
        else:
            words = (self.stack.pop(), self.stack.pop())[::-1]
        # Only texts are hashed: a tuple of tuples of tuples would take for ever.
        if not all(type(word) is str for word in words) or words not in _KNOWN:
            named = shown(".".join(word for word in words if type(word) is str))
            raise ValueError(f"the pickle names {named}, which makes no array of numbers")
        self.stack.append(_Name(words))

    def reduce(self, name: str, argument: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise ValueError("the pickle calls what makes no array")
        if function.name in _RECONSTRUCT and arguments[0] == _Name(_NDARRAY):
            self.stack.append(_Array())
        elif function.name in _FROM_BUFFER:  # protocol 5
            numbers, dtype, shape, order = arguments
            self.stack.append(_Array(self.array(shape, dtype, order == "F", numbers)))
        elif function.name == _DTYPE and arguments[0] in _TYPES:
            self.stack.append(_Type(arguments[0]))
        elif function.name == _ENCODE and type(arguments[0]) is str and arguments[1] == "latin1":
            self.stack.append(self.copied(arguments[0]))
        else:
            raise ValueError("the pickle makes something else than an array of real numbers")

    def build(self, name: str, argument: Any) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, _Type) and type(state) is tuple and state[1] in ("<", ">", "|", "="):
            made.order = state[1]
        elif isinstance(made, _Array) and type(state) is tuple and len(state) == 5:
            made.value = self.array(*state[1:])
        else:
            raise ValueError("the pickle changes what is no array")

    def array(self, shape: Any, dtype: Any, is_fortran: Any, numbers: Any) -> NDArray:
        whole = type(shape) is tuple and all(type(n) is int and n >= 0 for n in shape)
        if not whole or not isinstance(dtype, _Type) or type(numbers) not in _BYTES:
            raise ValueError("an array must have a shape, numbers of a real type, and their bytes")
        order = dtype.order.replace("|", "=")
        kind = np.dtype(order + dtype.code)
        if type(numbers) is str:
            numbers = self.copied(numbers)
        if len(shape) > 8 or math.prod(shape) * kind.itemsize != len(numbers):
            raise ValueError(
                f"an array's shape {shown(shape)} does not fit its {len(numbers)} bytes"
            )
        return np.frombuffer(numbers, kind).reshape(shape, order="F" if is_fortran else "C")

    def copied(self, text: str) -> bytes:
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("the pickle names the same bytes many times")
        return text.encode("latin-1")


#: opcode -> what it does
_STEPS = {
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    **dict.fromkeys(_CONSTANTS, _Machine.constant),
    "MARK": _Machine.mark,
    **dict.fromkeys(("TUPLE", *_TUPLES), _Machine.make_tuple),
    **dict.fromkeys(("LIST", "EMPTY_LIST"), _Machine.make_list),
    **dict.fromkeys(("APPEND", "APPENDS"), _Machine.append),
    **dict.fromkeys(("DICT", "EMPTY_DICT"), _Machine.make_dict),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _Machine.items),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
