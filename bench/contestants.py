"""Who runs: the backends of this package and the peers, each behind one small interface."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.peers import jax_scan, older, onnx_rnn
from bench.peers.cell_loop import CellLoop, CellLoopOverTime
from bench.peers.torch_rnn import LayerOverTime
from bench.peers.wavefront import Wavefront, level
from strnn_kernels import reference
from strnn_kernels.testing import NOT_DIFFERENTIABLE, Case

MODES = ("inference", "training")


@dataclass(frozen=True)
class Runner:
    """A contestant ready for one case. Only `forward` and `step` are timed.

    Args:
        forward: inference, in the layout that is natural to the contestant.
        step: forward and backward, giving the gradients of x and of all parameters.
        output: what `forward` returned -> the output in the layout of the op.
        gradients: what `step` returned -> gradients by name ("dx", ..).
        around: entered before timing, around all calls.
        seconds: of a call, from a mode and a number of calls, for who runs in another process.
    """

    forward: Callable[[], Any]
    step: Callable[[], Any]
    output: Callable[[Any], Tensor]
    gradients: Callable[[Any], dict[str, Tensor]]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = field(
        default=contextlib.nullcontext
    )
    seconds: Callable[[str, int], float] | None = None


class Contestant(Protocol):
    """What `measure` asks of a backend or a peer."""

    name: str
    is_peer: bool
    modes: tuple[str, ...]

    def refusal(self, case: Case) -> str | None:
        """Why it cannot run this case here, or None."""
        ...

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Everything that a user would do once, before the loop."""
        ...


def leaves_of(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the floating inputs that take gradients."""
    return {
        name: value.detach().clone().requires_grad_()
        for name, value in inputs.items()
        if name not in NOT_DIFFERENTIABLE
    }


def gradients_by_name(names: Any) -> Callable[[Any], dict[str, Tensor]]:
    """From the tuple that `torch.autograd.grad` returns to names."""
    names = list(names)
    return lambda found: {"d" + name: g for name, g in zip(names, found, strict=True)}


def functional_runner(
    case: Case,
    module: Any,
    inputs: Mapping[str, Tensor],
    dy: Tensor,
    *,
    wrap: Callable[[Any], Any] | None = None,
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Runner:
    """A runner for anything with the functional signatures, its function passed through `wrap`."""
    leaves = leaves_of(inputs)
    wrap = wrap or (lambda function: function)
    forward = wrap(case.bind(module, inputs))
    training = wrap(case.bind(module, {**inputs, **leaves}))
    values = list(leaves.values())
    return Runner(
        forward=forward,
        step=lambda: torch.autograd.grad(
            training(), values, dy, allow_unused=True, materialize_grads=True
        ),
        output=lambda out: out,
        gradients=gradients_by_name(leaves),
        around=around,
    )


@dataclass(frozen=True)
class Backend:
    """A backend of this package."""

    name: str
    is_peer: bool = False
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """The reason that the package itself gives."""
        try:
            sk = importlib.import_module("strnn_kernels")
            reasons = sk.backends()
        except (ImportError, AttributeError, OSError) as error:
            return f"strnn_kernels: {error}"
        if self.name not in reasons:
            return f"no backend has this name; there are {sorted(reasons)}"
        if not hasattr(sk, case.op):
            return f"strnn_kernels has no {case.op}"
        return reasons[self.name]

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Calls of the public functions under this backend."""
        sk = importlib.import_module("strnn_kernels")
        return functional_runner(case, sk, inputs, dy, around=lambda: sk.use_backend(self.name))


@dataclass(frozen=True)
class InFloat32:
    """A case of 16 bits by the CPU backend in float32: the same numbers in twice the memory."""

    name: str = "float32"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """What is float32 already, and the backend's own."""
        return "is float32 itself" if case.dtype == torch.float32 else Backend("cpu").refusal(case)

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """The backend's runner on wider inputs."""
        wider = {n: t.float() if t.dtype == case.dtype else t for n, t in inputs.items()}
        runner = Backend("cpu").prepare(replace(case, dtype=torch.float32), wider, dy.float())
        return replace(  # for the check, outside of what is timed
            runner,
            output=lambda out: out.to(case.dtype),
            gradients=lambda found: {
                n: g.to(case.dtype) for n, g in runner.gradients(found).items()
            },
        )


#: Compiling a loop of so many levels as one graph takes a minute; the training step of S2, with 63,
#: was not done after eight.
MAX_COMPILED_LEVELS = 16


@dataclass(frozen=True)
class WavefrontPeer:
    """`bench.peers.wavefront`: differentiable, with a second loop for inference, or compiled."""

    name: str = "wavefront"
    reuses_memory: bool = False
    compiled: str = ""  # "whole", "level", or not
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """It has every op but the gated sweep and the bare projection."""
        if not hasattr(Wavefront, case.op):
            return f"not written for {case.op}"
        if case.has_h0 and case.has_lengths:
            return "not written for h0 together with lengths"
        if case.needs_cells and (self.compiled or self.reuses_memory or case.cell == "elman"):
            return "written for Elman cells and sums"
        if case.needs_cells and (
            case.has_mask or case.has_lengths or case.has_h0 or case.has_c0 or case.returns_carry
        ):
            return "gated cells without mask, lengths and first states"
        levels = case.topology.num_levels
        if self.compiled == "whole" and levels > MAX_COMPILED_LEVELS:
            return f"compiling {levels} levels as one graph takes too long; see the levels compiled"
        return None

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Compilation, if any, happens at the first calls."""
        if self.compiled == "level":
            peer = Wavefront(step=torch.compile(level, dynamic=True))
            # One graph for each combination of sources, mask and gradient.
            patch = torch._dynamo.config.patch  # type: ignore[attr-defined]
            around = partial(patch, recompile_limit=64)
            return functional_runner(case, peer, inputs, dy, around=around)
        wrap = partial(torch.compile, dynamic=False) if self.compiled else None
        return functional_runner(case, Wavefront(self.reuses_memory), inputs, dy, wrap=wrap)


@dataclass(frozen=True)
class Reference:
    """The reference loops, under the name of a peer: what the oracle itself costs."""

    name: str = "reference"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """Only where its gradients do not take minutes."""
        return None if case.N * case.D <= 600 else "gradients of single cells: would take minutes"

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Calls of `strnn_kernels.reference`."""
        return functional_runner(case, reference, inputs, dy)


@dataclass(frozen=True)
class PythonCellLoop:
    """`bench.peers.cell_loop`: one slice of time after the other, cell by cell."""

    name: str = "cell loop"
    is_compiled: bool = False  # the loop over the cells of a slice
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """Small grids, as in the code it stands for."""
        if case.op != "spatial_rnn" or case.has_mask or case.needs_cells:
            return "a loop over the cells of a grid, without masks; Elman cells and sums"
        return (
            None if case.N <= 100 else f"states are copied once per cell: hopeless for N = {case.N}"
        )

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Puts the weights into one nn.Linear per direction and folds B into samples x slices."""
        loop = CellLoop(case.C, case.H, case.topology, case.K, case.activation).to(
            inputs["x"].dtype
        )
        loop.neighbours = loop.neighbours.to(inputs["x"].dtype)
        with torch.no_grad():
            for d in range(case.D):
                loop.inputs[d].weight.copy_(inputs["w_ih"][d])
                loop.inputs[d].bias.copy_(
                    inputs["bias"][d] if case.has_bias else torch.zeros(case.H)
                )
                loop.recurrent[d].weight.copy_(inputs["w_hh"][d])
                if case.K:
                    loop.projections[d].weight.copy_(inputs["projection"][d])
        model = CellLoopOverTime(torch.compile(loop, dynamic=False) if self.is_compiled else loop)
        x = inputs["x"].unflatten(0, (-1, case.slices)).contiguous().requires_grad_()
        dy = dy.unflatten(0, (-1, case.slices))
        groups = {
            "w_ih": [p.weight for p in loop.inputs],
            "w_hh": [p.weight for p in loop.recurrent],
        }
        if case.has_bias:
            groups["bias"] = [p.bias for p in loop.inputs]
        if case.K:
            groups["projection"] = [p.weight for p in loop.projections]
        values = [x, *(p for group in groups.values() for p in group)]

        def gradients(found: tuple[Tensor, ...]) -> dict[str, Tensor]:
            parts = iter(found[1:])
            by_name = {
                "d" + name: torch.stack([next(parts) for _ in ps]) for name, ps in groups.items()
            }
            return {"dx": found[0].flatten(0, 1), **by_name}

        return Runner(
            forward=lambda: model(x),
            step=lambda: torch.autograd.grad(
                model(x), values, dy, allow_unused=True, materialize_grads=True
            ),
            output=lambda out: out.flatten(0, 1),
            gradients=gradients,
        )


@dataclass(frozen=True)
class Layer:
    """A layer of `torch.nn`, packed sequences where the case has lengths; or this package's."""

    name: str = "nn.RNN"
    cells: tuple[str, ...] = ("elman",)
    package: str = "torch.nn"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """Chains with the cells it has."""
        if case.op != "temporal_rnn":
            return "chains only"
        if case.cell not in self.cells:
            return f"has {', '.join(self.cells)}, not {case.cell}"
        if case.returns_carry:
            return "gives the last carry alone"
        if case.cell == "elman" and case.activation not in ("relu", "tanh"):
            return f"has no {case.activation}"
        if case.cell == "lstm" and case.has_h0 != case.has_c0:
            return "takes h0 and c0 together"
        return None

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Puts the weights into the layer; of its second bias only a gru needs a part."""
        x = inputs["x"].detach().clone().requires_grad_()
        layers = importlib.import_module(self.package)
        model = LayerOverTime(layers, case, inputs.get("projection")).to(x)
        names = [("", 0), ("_reverse", 1)][: case.D]
        gru = case.cell == "gru"
        H = case.H
        with torch.no_grad():
            for suffix, d in names:
                getattr(model.rnn, "weight_ih_l0" + suffix).copy_(inputs["w_ih"][d])
                getattr(model.rnn, "weight_hh_l0" + suffix).copy_(inputs["w_hh"][d])
                b_ih = getattr(model.rnn, "bias_ih_l0" + suffix).zero_()
                b_hh = getattr(model.rnn, "bias_hh_l0" + suffix).zero_()
                if case.has_bias:
                    b_ih.copy_(inputs["bias"][d][: len(b_ih)])
                    if gru:
                        b_hh[2 * H :] = inputs["bias"][d][3 * H :]
        lengths = inputs.get("lengths")
        starts = {
            name: inputs[name].transpose(0, 1).contiguous().requires_grad_()
            for name in ("h0", "c0")
            if name in inputs
        }
        hx = tuple(starts.values()) if case.cell == "lstm" else starts.get("h0")
        hx = hx if starts else None
        parameters = dict(model.named_parameters())
        values = [x, *parameters.values(), *starts.values()]
        has_states = not case.K
        dy = dy.flatten(2) if has_states else dy

        def gradients(found: tuple[Tensor, ...]) -> dict[str, Tensor]:
            by_name = dict(zip(["x", *parameters, *starts], found, strict=True))
            of = {
                name: torch.stack([by_name[f"rnn.{name}_l0{suffix}"] for suffix, _ in names])
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            got = {"dx": by_name["x"], "dw_ih": of["weight_ih"], "dw_hh": of["weight_hh"]}
            if case.has_bias:
                of_state = of["bias_hh"][:, 2 * H :] if gru else of["bias_hh"][:, :0]
                got["dbias"] = torch.cat([of["bias_ih"], of_state], 1)
            if case.K:
                got["dprojection"] = by_name["projection"]
            return got | {"d" + name: by_name[name].transpose(0, 1) for name in starts}

        return Runner(
            forward=lambda: model(x, lengths, hx),
            step=lambda: torch.autograd.grad(model(x, lengths, hx), values, dy),
            output=lambda out: out.unflatten(2, (case.D, case.H)) if has_states else out,
            gradients=gradients,
        )


@dataclass(frozen=True)
class OnnxRuntime:
    """`bench.peers.onnx_rnn`: inference of one operator, its weights packed once."""

    name: str = "onnx runtime"
    is_peer: bool = True
    modes: tuple[str, ...] = ("inference",)

    def refusal(self, case: Case) -> str | None:
        """Needs onnxruntime; its operators have no projection, and lengths are another graph."""
        if onnx_rnn.absent():
            return onnx_rnn.absent()
        if case.op != "temporal_rnn" or case.K or case.has_lengths or case.returns_carry:
            return "written for temporal_rnn without lengths and projection"
        if case.dtype != torch.float32 or case.activation == "identity":
            return "float32, without the identity"
        return None

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """A session with as many threads as torch."""
        return Runner(
            forward=onnx_rnn.session(case, inputs, torch.get_num_threads()),
            step=lambda: (),
            output=lambda y: torch.from_numpy(y).permute(2, 0, 1, 3),
            gradients=lambda found: {},
        )


@dataclass(frozen=True)
class JaxScan:
    """`bench.peers.jax_scan`, jitted; arrays stay JAX arrays."""

    name: str = "jax scan"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """Needs jax; written for the two layers without options."""
        if jax_scan.absent():
            return jax_scan.absent()
        if (
            case.op not in ("spatial_rnn", "temporal_rnn")
            or (case.needs_cells and case.op == "spatial_rnn")
            or case.returns_carry
            or case.has_c0
            or case.has_mask
            or case.has_h0
            or case.has_lengths
        ):
            return "written for chains, and for graphs of Elman cells, without mask, h0, lengths"
        return None if case.dtype == torch.float32 else "float32 only"

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """Jit of the function and of its vjp."""
        jax = jax_scan.jax
        _use_threads_of_torch()
        arrays = {name: jax.numpy.asarray(value.numpy()) for name, value in inputs.items()}
        dy_array = jax.numpy.asarray(dy.numpy())
        arrays.setdefault("bias", None)

        def apply(arguments: dict[str, Any]) -> Any:
            if case.op == "temporal_rnn":
                return jax_scan.chain_rnn(**arguments, activation=case.activation, cell=case.cell)
            return jax_scan.spatial_rnn(
                **arguments, topology=case.topology, activation=case.activation
            )

        forward = jax.jit(apply)
        step = jax.jit(lambda arguments, dy: jax.vjp(apply, arguments)[1](dy)[0])

        def to_torch(array: Any) -> Tensor:
            return torch.from_numpy(jax.numpy.asarray(array).__array__().copy())

        return Runner(
            forward=lambda: forward(arrays).block_until_ready(),
            step=lambda: jax.block_until_ready(step(arrays, dy_array)),
            output=to_torch,
            gradients=lambda found: {
                "d" + n: to_torch(g) for n, g in found.items() if g is not None
            },
        )


@lru_cache(maxsize=1)
def _use_threads_of_torch() -> int:
    """XLA sizes its thread pool once, by the cores it may use: show it as many as torch uses."""
    threads = torch.get_num_threads()
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
        " --xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    )
    if not hasattr(os, "sched_setaffinity"):
        return threads
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(allowed)[:threads]))
    try:
        jax_scan.jax.numpy.zeros(1).block_until_ready()
    finally:
        os.sched_setaffinity(0, allowed)
    return threads


@dataclass(frozen=True)
class Older:
    """The CPU backend of an older commit, built in the folder of its checkout.

    It runs in a process of its own. Its samples alternate with the others', and its clock runs
    beside its calls.
    """

    folder: Path
    name: str = "older build"
    is_peer: bool = True
    modes: tuple[str, ...] = MODES

    def refusal(self, case: Case) -> str | None:
        """What the call needs and the older function has no argument for."""
        call = case.bind(_Arguments(), {})()
        return self._ask("lacks", case.op, list(call))

    def prepare(self, case: Case, inputs: Mapping[str, Tensor], dy: Tensor) -> Runner:
        """The call's arguments go over; a topology as what makes it."""
        call = case.bind(_Arguments(), inputs)()
        graph = case.graph if call.pop("topology", None) is not None else None
        names = list(leaves_of(inputs))
        self._ask("prepare", torch.get_num_threads(), case.op, call, graph, names, dy)
        return Runner(
            forward=lambda: self._ask("result", "inference"),
            step=lambda: self._ask("result", "training"),
            output=lambda out: out,
            gradients=gradients_by_name(names),
            seconds=lambda mode, calls: self._ask("seconds", mode, calls),
        )

    @cached_property
    def _process(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, older.__file__, str(self.folder)]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe)
        atexit.register(process.communicate)  # which ends it
        return process

    def _ask(self, *request: Any) -> Any:
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        pickle.dump(request, to)
        to.flush()
        error, result = pickle.load(back)  # noqa: S301  (of a process of our own)
        if error is not None:
            raise RuntimeError(error)
        return result


class _Arguments:
    """A module whose functions return their arguments."""

    def __getattr__(self, name: str) -> Any:
        return dict


PEERS: tuple[Contestant, ...] = (
    WavefrontPeer(),
    WavefrontPeer("wavefront in place", reuses_memory=True, modes=("inference",)),
    WavefrontPeer("wavefront compiled", compiled="whole"),
    WavefrontPeer("wavefront, levels compiled", compiled="level"),
    PythonCellLoop(),
    # Its 248 cells take five minutes to compile; with their derivatives nobody would wait.
    PythonCellLoop("cell loop compiled", is_compiled=True, modes=("inference",)),
    Layer(),
    Layer("nn.GRU", ("gru",)),
    Layer("nn.LSTM", ("lstm",)),
    OnnxRuntime(),
    JaxScan(),
    Reference(),
)
#: Our own modules: the same kernels with what a user's line of code adds.
MODULES = Layer("module", ("elman", "gru", "lstm"), "strnn_kernels", is_peer=False)
#: Not run unless asked for: minutes of compilation, or only of interest to us.
OPTIONAL_PEERS = (
    "wavefront compiled",
    "wavefront, levels compiled",
    "cell loop compiled",
    "reference",
)
