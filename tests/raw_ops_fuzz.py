"""Calls of the raw ops with mutated arguments: raw_ops_fuzz.py COUNT [FIRST].

Each must raise, or return; none may end the process. The calls that are mutated are those of the
shared table of cases, forward and backward, as the dispatcher sees them. Mutation i depends on i
alone, and its number is printed before the call: after a crash, `raw_ops_fuzz.py 1 i` is that call.
"""

from __future__ import annotations

import collections
import os
import random
import resource
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import strnn_kernels as sk
from strnn_kernels.schema import OPS
from strnn_kernels.testing import CONFORMANCE

SIZES = (0, 1, 2, 3, 4, 5, 7, -1, -2, 64, 2**31 - 1, 2**31, 2**32, 2**40, 2**59, 2**60, 2**62,
         2**63 - 1, -(2**31), -(2**63))  # fmt: skip
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64,
          torch.bool, torch.uint8, torch.complex64)  # fmt: skip
#: What an op may answer; anything else ends the run.
REFUSALS = (RuntimeError, MemoryError, ValueError, TypeError, IndexError, NotImplementedError)


class Recorder(TorchDispatchMode):
    """Keeps what the ops of the CPU backend are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "strnn_cpu":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def recorded() -> list[tuple]:
    """Calls of every op."""
    recorder = Recorder()
    with recorder:
        for case in CONFORMANCE:
            if case.B * case.N * case.D * case.H**2 < 1e6:
                case.results(sk, case.inputs(oracle=sk))
    assert {f"{op.name}" for op in OPS} == {
        f._schema.name.split("::")[1] for f, _ in recorder.calls
    }
    return recorder.calls


def resized(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Another size along one axis: fewer, repeated without memory, or as many as fit no memory."""
    if t.dim() == 0:
        return t[None]
    axis, size = rng.randrange(t.dim()), rng.choice([*SIZES, t.shape[0] + 1, t.shape[-1] - 1])
    if 0 <= size <= t.shape[axis]:
        return t.narrow(axis, 0, size)
    shape = list(t.shape)
    shape[axis] = abs(size) or 1
    if t.shape[axis] == 0 or rng.random() < 0.3:  # an empty tensor has any other size
        shape[rng.randrange(t.dim())] = 0
        return t.new_empty(shape)
    return t.narrow(axis, 0, 1).expand(shape)


def without_memory(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Its storage freed, or cut."""
    t = torch.stack((t, t))[1] if rng.random() < 0.5 else t.clone()
    t.untyped_storage().resize_(rng.choice((0, t.untyped_storage().nbytes() // 2)))
    return t


def with_other_entries(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Bytes changed: of a table, a mask, or of numbers."""
    t = t.clone(memory_format=torch.contiguous_format)
    if t.numel():
        for _ in range(rng.randint(1, 4)):
            if t.dtype == torch.int32:
                values = (
                    -1,
                    0,
                    1,
                    t.numel(),
                    t.numel() // 2,
                    2**31 - 1,
                    -(2**31),
                    rng.randrange(99),
                )
                t.view(-1)[rng.randrange(t.numel())] = rng.choice(values)
            else:
                t.view(-1).view(torch.uint8)[rng.randrange(t.numel())] = rng.randrange(256)
    return t


TENSORS = (
    resized,
    resized,
    with_other_entries,
    with_other_entries,
    without_memory,
    lambda t, rng: t.to(rng.choice(DTYPES)),
    lambda t, rng: t[None],
    lambda t, rng: t[0] if t.dim() and t.shape[0] else t.reshape(-1),
    lambda t, rng: t.transpose(0, -1) if t.dim() else t,
    lambda t, rng: t.new_empty([0] * t.dim()),
)


def mutated(value, others: list, rng: random.Random):
    """Another value in place of an argument, sometimes of another argument's."""
    if rng.random() < 0.1:
        return rng.choice(others)
    if isinstance(value, torch.Tensor):
        return None if rng.random() < 0.1 else rng.choice(TENSORS)(value, rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(SIZES)
    if isinstance(value, list | tuple):
        value, at = list(value), rng.randrange(len(value) + 1)
        kind = rng.randrange(4)
        if kind == 0 or at == len(value):
            value.insert(at, rng.choice(value) if value else rng.choice(SIZES))
        elif kind == 1:
            del value[at]
        else:
            value[at] = mutated(value[at], others, rng)
        return value
    return rng.choice([other for other in others if isinstance(other, torch.Tensor)])


def main(count: int, first: int = 0) -> None:
    """Makes the calls; prints how many were refused with what."""
    calls, outcomes = recorded(), collections.Counter()
    if "LD_PRELOAD" not in os.environ:  # a sanitizer takes terabytes, and has a limit of its own
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    for i in range(first, first + count):
        os.write(1, b"mutation %d\n" % i)
        rng = random.Random(i)
        function, args = rng.choice(calls)
        changed = list(args)
        for at in rng.sample(range(len(args)), rng.choice((1, 1, 1, 2))):
            try:
                changed[at] = mutated(args[at], args, rng)
            except REFUSALS:
                outcomes["no such argument"] += 1
        try:
            with torch.no_grad():
                function(*changed)
            outcomes["returned"] += 1
        except REFUSALS as error:
            outcomes[type(error).__name__] += 1
    print(dict(outcomes))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
