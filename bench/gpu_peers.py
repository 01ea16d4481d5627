"""What only a GPU session asks for: FlashRNN, where it is installed, and a limit on compilation.

What has to be compiled first may take minutes: `within` gives up on it, and the row says so.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from bench import contestants
from bench.contestants import MODES, Runner
from strnn_kernels.testing import Case

#: Seconds that a contestant may take to compile and to be checked.
COMPILE_SECONDS = 45


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after that many seconds; on the main thread only."""
    message = f"not compiled and checked within {seconds:.3g} s"
    is_late = False

    def give_up(*_: object) -> None:
        nonlocal is_late
        is_late = True
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if is_late:  # a compiler makes an error of its own of what is raised inside it
            raise TimeoutError(message) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class FlashRNN:
    """FlashRNN's Elman cell, a call for each direction, as its documentation describes it.

    Its input product is made by a GEMM, as its own layers do; bfloat16 and tanh only.
    """

    name: str = "FlashRNN"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """Needs the package; has no lengths, no initial state and no projection."""
        if find_spec("flashrnn") is None:
            return "flashrnn is not installed"
        if case.op != "temporal_rnn" or case.has_lengths or case.has_h0 or case.K:
            return "plain chains only"
        if case.dtype != torch.bfloat16 or case.activation != "tanh":
            return "its Elman cell takes tanh and bfloat16"
        return None

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """One head of width H; gates, heads and states are axes of one."""
        flashrnn = importlib.import_module("flashrnn").flashrnn
        leaves = contestants.leaves_of(inputs)
        call = partial(flashrnn, function="elman", backend="cuda_fused", dtype="bfloat16")

        def forward() -> Tensor:
            states = []
            for d in range(case.D):
                u = leaves["x"] @ leaves["w_ih"][d].t()
                u = u.flip(1) if d else u
                bias = leaves["bias"][d] if case.has_bias else u.new_zeros(case.H)
                h, _ = call(u[:, :, None, None], leaves["w_hh"][d][None, None], bias[None, None])
                h = h.reshape(case.B, case.N, case.H)
                states.append(h.flip(1) if d else h)
            return torch.stack(states, 2)

        values = list(leaves.values())
        return Runner(
            forward=forward,
            step=lambda: torch.autograd.grad(forward(), values, dy, allow_unused=True),
            output=lambda out: out,
            gradients=contestants.gradients_by_name(leaves),
        )
