"""Checks of arguments, once, before any backend is chosen.

Each message names the function and the argument, what was expected in letters and numbers, and what
came.
"""

from __future__ import annotations

import numbers

import torch

from .notation import ACTIVATIONS, CELLS
from .topology import Topology

#: The mode of make_fx and linearize, whose tensors have no values to look at.
_PROXY = torch._C._TorchDispatchModeKey.PROXY


class ArgumentError(ValueError, TypeError, RuntimeError):
    """An argument has the wrong type, shape, dtype, device or value.

    Whichever of the three a caller of torch's own layers expects, it catches.
    """


def tensor(function: str, name: str, value: object) -> torch.Tensor:
    """The value, if it is a floating-point tensor."""
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(f"{function}: {name} must be a torch.Tensor, got {_kind(value)}")
    if not value.is_floating_point():
        raise ArgumentError(
            f"{function}: {name} must have a floating dtype, got {_dtype(value.dtype)}"
        )
    return value


def dims(function: str, name: str, value: torch.Tensor, letters: str) -> tuple[int, ...]:
    """The sizes of a tensor whose number of dimensions the letters give, all but B positive."""
    sizes = value.shape
    if len(sizes) == letters.count(" ") + 1 and 0 not in sizes:
        return sizes
    wanted = letters.split()
    if len(sizes) != len(wanted):
        raise ArgumentError(
            f"{function}: {name} must have shape ({', '.join(wanted)}), got {_shape(value)}"
        )
    for letter, size in zip(wanted, sizes, strict=True):
        if letter != "B" and size == 0:
            raise ArgumentError(
                f"{function}: {letter} of {name} ({', '.join(wanted)}) must be positive, "
                f"got {_shape(value)}"
            )
    return sizes


def like(
    function: str,
    name: str,
    value: object,
    letters: str,
    sizes: tuple[int, ...],
    first: tuple[str, torch.Tensor],
    dtype: torch.dtype | None = None,
) -> None:
    """Refuses what is not a tensor of these sizes with the device and dtype of first.

    Args:
        function: who asks.
        name: of the argument.
        value: the argument.
        letters: the sizes in letters, separated by spaces.
        sizes: the sizes in numbers.
        first: name and tensor that set the device, and the dtype unless one is given.
        dtype: the dtype it must have instead.
    """
    if (
        isinstance(value, torch.Tensor)
        and value.shape == sizes
        and value.dtype == (dtype or first[1].dtype)
        and value.device == first[1].device
    ):
        return
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(f"{function}: {name} must be a torch.Tensor, got {_kind(value)}")
    if value.shape != sizes:
        raise ArgumentError(
            f"{function}: {name} must have shape ({', '.join(letters.split())}) = {tuple(sizes)}, "
            f"got {_shape(value)}"
        )
    if value.device != first[1].device:
        raise ArgumentError(
            f"{function}: {name} must be on the device of {first[0]} ({first[1].device}), "
            f"got {value.device}"
        )
    wanted = _dtype(dtype) if dtype else f"{_dtype(first[1].dtype)}, the dtype of {first[0]}"
    raise ArgumentError(f"{function}: {name} must have dtype {wanted}, got {_dtype(value.dtype)}")


def last_size(function: str, name: str, value: object, letters: str, size: int) -> None:
    """Refuses a tensor whose last size is not that of the layer it enters."""
    if (
        isinstance(value, torch.Tensor)
        and value.shape[-1:] != (size,)
        and value.dim() == letters.count(" ") + 1
    ):
        raise ArgumentError(
            f"{function}: {name} must have shape ({', '.join(letters.split())}) = "
            f"{(*value.shape[:-1], size)}, got {_shape(value)}"
        )


def positive(function: str, name: str, value: object) -> int:
    """The value, if it is a positive int."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{function}: {name} must be a positive int, got {value!r}")
    return value


def amount(function: str, name: str, value: object) -> float:
    """The value as a float, if it is a number of at least 0."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not float(value) >= 0:
        raise ArgumentError(f"{function}: {name} must be a number of at least 0, got {value!r}")
    return float(value)


def topology(function: str, value: object) -> Topology:
    """The value, if it is a Topology."""
    if not isinstance(value, Topology):
        raise ArgumentError(f"{function}: topology must be a Topology, got {_kind(value)}")
    return value


def activation(function: str, value: object) -> None:
    """Refuses an unknown activation."""
    if value not in ACTIVATIONS:
        raise ArgumentError(
            f"{function}: activation must be one of {', '.join(ACTIVATIONS)}, got {value!r}"
        )


def cell(function: str, value: object, of_elman: object) -> int:
    """The code of a cell: its place in ``notation.CELLS``; an Elman cell is its activation."""
    activation(function, of_elman)
    if value == "elman":
        return CELLS.index(of_elman)
    if not isinstance(value, str) or value in ACTIVATIONS or value not in CELLS:
        raise ArgumentError(f"{function}: cell must be one of elman, gru, lstm, got {value!r}")
    return CELLS.index(value)


def reduce(function: str, of_cell: str, value: object) -> bool:
    """Whether several predecessors are averaged, not added."""
    if value is None:
        return of_cell != "elman"
    if value not in ("sum", "mean"):
        raise ArgumentError(f"{function}: reduce must be 'sum', 'mean' or None, got {value!r}")
    return value == "mean"


def lengths(function: str, value: object, B: int, T: int) -> torch.Tensor:
    """Sequence lengths as an int64 tensor (B,), each in 0..T.

    On the CPU the values are checked at once, elsewhere, and by what a compiler makes of the call,
    when they are there.
    """
    given = value
    try:
        value = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        value = None
    if value is None:
        raise ArgumentError(
            f"{function}: lengths must be integers of shape (B,) = ({B},), got {_kind(given)}"
        )
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool:
        raise ArgumentError(f"{function}: lengths must be integers, got {_dtype(value.dtype)}")
    if value.shape != (B,):
        raise ArgumentError(
            f"{function}: lengths must have shape (B,) = ({B},), got {_shape(value)}"
        )
    value = value.long()
    is_traced = torch.compiler.is_compiling() or torch._C._get_dispatch_mode(_PROXY) is not None
    if is_traced or value.device.type not in ("cpu", "meta"):
        in_range = ((value >= 0) & (value <= T)).all()
        torch._assert_async(in_range, f"{function}: lengths must be in 0..T")
        return value
    known = value
    while torch._C._functorch.is_functorch_wrapped_tensor(known):
        known = torch._C._functorch.get_unwrapped(known)
    if type(known) is torch.Tensor and known.device.type == "cpu" and known.numel():
        with torch._C._DisableFuncTorch():  # the values of a batch are no secret here
            low, high = (int(v) for v in known.aminmax())
        if low < 0 or high > T:
            raise ArgumentError(f"{function}: lengths must be in 0..T = 0..{T}, got {low}..{high}")
    return value


def _shape(value: torch.Tensor) -> str:
    return str(tuple(value.shape))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: object) -> str:
    return f"{value!r} of type {type(value).__name__}" if value is None else type(value).__name__
