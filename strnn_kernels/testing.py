"""One table of cases for tests, gradient checks and benchmarks: what is timed is tested.

A `Case` names an op, a topology and sizes. It makes its own inputs and calls the op in any module
that has the functional signatures of this package: `strnn_kernels` itself,
`strnn_kernels.reference`, a peer of the benchmarks. `Expected` holds what the float64 reference
says of a case, and `tolerance` is the only place with a number in it.

Letters as in `strnn_kernels.notation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strnn_kernels import reference
from strnn_kernels.notation import CELLS, bias_rows, gates
from strnn_kernels.topology import Topology

#: Arguments of the ops that are tensors and have no derivative.
NOT_DIFFERENTIABLE = ("mask", "lengths")
#: Arguments that belong to one sequence each, not to all.
PER_SEQUENCE = ("x", "u", "g", "gate", "h", "h0", "c0", "mask", "lengths")
#: Inputs of a ReLU keep this far from zero; see `Case.inputs`.
KINK_MARGIN = 32 * torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Case:
    """One call of one op.

    Args:
        name: unique in the table; the id of the test and of the row in the benchmark.
        op: "spatial_rnn", "temporal_rnn", "sweep", "gated_sweep" or "sparse_projection".
        graph: makes the topology; a chain of T steps for "temporal_rnn".
        B: sequences.
        H: hidden width.
        C: input width, for the ops that have an input product.
        K: projected rows, 0 for no projection.
        activation: one of `strnn_kernels.notation.ACTIVATIONS`, of an Elman cell.
        cell: "elman", "gru" or "lstm"; the ops that have an input product know the gated ones.
        reduce: of several predecessors, "sum", "mean" or None, in "spatial_rnn".
        has_c0: whether an lstm starts from a given carry.
        returns_carry: whether an lstm's c is part of the output, stacked on h.
        dtype: storage of all floating inputs.
        has_bias: whether the input product has a bias.
        has_mask: whether some nodes of some sequences are switched off.
        has_h0: whether the recurrence starts from a given state.
        has_lengths: whether sequences have their own lengths, uniform in 1..T.
        slices: time slices of one sample; B is samples x slices. For code that loops over time.
        density: share of the projection's weights that are not exactly zero.
    """

    name: str
    op: str
    graph: Callable[[], Topology]
    B: int
    H: int
    C: int = 0
    K: int = 0
    activation: str = "relu"
    dtype: torch.dtype = torch.float32
    has_bias: bool = True
    has_mask: bool = False
    has_h0: bool = False
    has_lengths: bool = False
    slices: int = 1
    density: float = 1.0
    cell: str = "elman"
    reduce: str | None = None
    has_c0: bool = False
    returns_carry: bool = False

    def __str__(self) -> str:
        return self.name

    @cached_property
    def topology(self) -> Topology:
        """The topology of the case, made once."""
        return self.graph()

    @property
    def N(self) -> int:
        """Nodes, or time steps."""
        return self.topology.num_nodes

    @property
    def D(self) -> int:
        """Directions."""
        return self.topology.num_directions

    @property
    def code(self) -> int:
        """The cell's place in `strnn_kernels.notation.CELLS`."""
        return CELLS.index(self.activation if self.cell == "elman" else self.cell)

    @property
    def needs_cells(self) -> bool:
        """Whether it asks for a gated cell or a mean, which not every family of kernels has."""
        return self.cell != "elman" or self.reduce == "mean"

    @property
    def mean(self) -> bool:
        """Whether the states of predecessors are averaged, not added."""
        return self.reduce == "mean" or (self.reduce is None and self.cell != "elman")

    @cached_property
    def P(self) -> int:
        """The largest number of predecessors of a node, at least 1."""
        nodes, directions = range(self.N), range(self.D)
        return max(1, *(len(self.topology.predecessors(d, n)) for d in directions for n in nodes))

    def smooth(self, **changes: Any) -> Case:
        """The case with changes, and with tanh in place of a ReLU.

        In 16 bits rounding decides a ReLU's derivative at many states.
        """
        activation = "tanh" if self.activation == "relu" else self.activation
        return replace(self, **{"activation": activation, **changes})

    def inputs(
        self,
        seed: int = 0,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        requires_grad: bool = False,
        oracle: ModuleType | Any = reference,
    ) -> dict[str, Tensor]:
        """Random tensors of a scale at which nothing explodes and nothing dies, by argument name.

        The spectral radius of the recurrent weight is about 1/P, since the states of P predecessors
        are added. All dtypes see the same numbers, each rounded once.

        Among a million states one lies so near the kink of a ReLU that rounding decides its
        derivative, and then right gradients differ by far more than rounding. Sequences with such a
        state are drawn again; `oracle` computes the states, in float64.
        """
        make = torch.Generator().manual_seed(seed)
        B, N, D, C, H, K = self.B, self.N, self.D, self.C, self.H, self.K

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=make, dtype=torch.float64) * scale

        G = gates(self.code)

        def recurrent_weight() -> Tensor:
            return normal(D, G * H, H, scale=1 / (self.P * H**0.5))

        def projection() -> Tensor:
            weight = normal(D, K, N, scale=N**-0.5)
            return weight * (torch.rand(D, K, N, generator=make) < self.density)

        t: dict[str, Tensor] = {}
        if self.op in ("spatial_rnn", "temporal_rnn"):
            t["x"] = normal(B, N, C)
            t["w_ih"] = normal(D, G * H, C, scale=C**-0.5)
            t["w_hh"] = recurrent_weight()
            if self.has_bias:
                t["bias"] = normal(D, bias_rows(self.code) * H, scale=0.1)
            if K:
                t["projection"] = projection()
        elif self.op == "sweep":
            t["u"] = normal(B, N, D, H)
            t["w"] = recurrent_weight()
        elif self.op == "gated_sweep":
            t["g"] = normal(B, N, D, H)
            t["gate"] = torch.rand(B, N, D, H, generator=make, dtype=torch.float64)
            t["w"] = recurrent_weight()
        elif self.op == "sparse_projection":
            t["h"] = normal(B, N, D, H)
            t["weight"] = projection()
        else:
            raise ValueError(f"Case: no op is named {self.op!r}")
        if self.has_h0:
            t["h0"] = normal(B, D, H)
        if self.has_c0:
            t["c0"] = normal(B, D, H)
        if self.has_mask:
            t["mask"] = torch.rand(B, N, generator=make) < 0.7
        if self.has_lengths:
            t["lengths"] = torch.randint(1, N + 1, (B,), generator=make)
        if CELLS[self.code] == "relu" and {"x", "u"} & set(t):
            self._redraw_kinks(t, normal, oracle)
        for name, value in t.items():
            if name in NOT_DIFFERENTIABLE:
                t[name] = value.to(device)
            else:
                t[name] = value.to(device, dtype or self.dtype).requires_grad_(requires_grad)
        return t

    def live(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Which nodes of which sequences take part, bool (B, N), by mask or lengths."""
        if "lengths" in inputs:
            return torch.arange(self.N) < inputs["lengths"].cpu()[:, None]
        some = next(inputs[name] for name in PER_SEQUENCE if name in inputs)
        return (
            inputs["mask"].cpu()
            if "mask" in inputs
            else torch.ones(len(some), self.N, dtype=torch.bool)
        )

    def _redraw_kinks(
        self, t: dict[str, Tensor], normal: Callable[..., Tensor], oracle: Any
    ) -> None:
        varied = t["x" if "x" in t else "u"]
        rows = torch.arange(self.B)
        for _ in range(300):
            rows = rows[
                self._has_kink(
                    {n: v[rows] if n in PER_SEQUENCE else v for n, v in t.items()}, oracle
                )
            ]
            if len(rows) == 0:
                return
            varied[rows] = normal(len(rows), *varied.shape[1:])
        raise RuntimeError(
            f"Case {self.name}: too many states for a ReLU; take a smooth activation"
        )

    def _has_kink(self, t: Mapping[str, Tensor], oracle: Any) -> Tensor:
        """Bool (B,): whether a live node's pre-activation is within KINK_MARGIN of zero."""
        D, N, H = self.D, self.N, self.H
        w = t["w_hh" if "w_hh" in t else "w"]
        u = t["u"] if "u" in t else torch.einsum("bnc,dhc->bndh", t["x"], t["w_ih"])
        u = u + t.get("bias", 0)
        with torch.no_grad():
            h = self.run(oracle, {name: value for name, value in t.items() if name != "projection"})
        live = self.live(t)
        predecessors = [self.topology.predecessors(d, n) for n in range(N) for d in range(D)]
        edges = [(p * D + i % D, i) for i, ps in enumerate(predecessors) for p in ps]
        source, target = torch.tensor(edges, dtype=torch.long).view(-1, 2).T
        h = h.flatten(1, 2)
        total = torch.zeros_like(h).index_add(1, target, h[:, source]).unflatten(1, (N, D))
        if "h0" in t:
            is_start = (
                torch.tensor([not ps for ps in predecessors])
                .view(N, D)
                .expand(len(h), N, D)
                .clone()
            )
            if "lengths" in t:
                is_start[:, :, 1:] = (torch.arange(N) == t["lengths"][:, None] - 1)[..., None]
            total = total + is_start[..., None] * t["h0"][:, None]
        a = u + torch.einsum("bndh,dgh->bndg", total, w)
        return ((a.abs() < KINK_MARGIN) & live[..., None, None]).view(len(h), N * D * H).any(dim=1)

    def bind(self, module: ModuleType | Any, inputs: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        """The call of `module`'s function of this name, with all arguments in place."""
        call: dict[str, Any] = dict(inputs)
        if self.op in ("sweep", "gated_sweep", "spatial_rnn"):
            call["topology"] = self.topology
        if self.op in ("sweep", "spatial_rnn", "temporal_rnn"):
            call["activation"] = self.activation
        if self.op in ("spatial_rnn", "temporal_rnn"):
            call.setdefault("bias", None)
        if self.cell != "elman":
            call["cell"] = self.cell
        if self.reduce is not None:
            call["reduce"] = self.reduce
        if self.op == "temporal_rnn":
            call["bidirectional"] = self.D == 2
        function = getattr(module, self.op)
        if self.returns_carry:
            return lambda: torch.stack(function(**call, return_carry=True))
        return partial(function, **call)

    def run(self, module: ModuleType | Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """The output of `module`'s function of this name on `inputs`."""
        return self.bind(module, inputs)()

    def output_gradient(self, like: Tensor, seed: int = 0) -> Tensor:
        """A fixed random gradient of the output, with the shape, dtype and device of `like`."""
        make = torch.Generator().manual_seed(seed + 1)
        return torch.randn(like.shape, generator=make, dtype=torch.float64).to(like)

    def results(
        self,
        module: ModuleType | Any,
        inputs: Mapping[str, Tensor],
        *,
        gradients: bool = True,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """The output, as "output", and the gradient of every floating input, as "d" + its name."""
        leaves = {
            name: value.detach().clone().requires_grad_(gradients)
            for name, value in inputs.items()
            if name not in NOT_DIFFERENTIABLE
        }
        output = self.run(module, {**inputs, **leaves})
        found = {"output": output.detach()}
        if gradients:
            dy = self.output_gradient(output, seed)
            slopes = torch.autograd.grad(
                output, list(leaves.values()), dy, allow_unused=True, materialize_grads=True
            )
            found |= {"d" + name: slope for name, slope in zip(leaves, slopes, strict=True)}
        return found


@dataclass(frozen=True)
class Expected:
    """What a case must give: in float64, and what the same-dtype reference makes of it."""

    case: Case
    exact: dict[str, Tensor]
    same_dtype: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        case: Case,
        inputs: Mapping[str, Tensor],
        *,
        gradients: bool = True,
        seed: int = 0,
        allow_tf32: bool = False,
        oracle: ModuleType | Any = reference,
    ) -> Expected:
        """The results of `oracle` on `inputs` as they are, and on the same numbers in float64.

        TF32 has the fraction of float16, so with `allow_tf32` the reference in float16 stands for
        that in the dtype of `inputs`: it rounds the same operands as much, and results besides.
        """

        def results(dtype: torch.dtype | None) -> dict[str, Tensor]:
            given = {n: v.to(dtype) if v.is_floating_point() else v for n, v in inputs.items()}
            return case.results(oracle, given, gradients=gradients, seed=seed)

        same = results(torch.float16 if allow_tf32 else None)
        if allow_tf32:
            same = {name: value.float() for name, value in same.items()}
        return cls(case, results(torch.float64), same)

    def check(self, actual: Mapping[str, Tensor], who: str = "", *, slack: float = 1.0) -> None:
        """Holds "output" and the gradients in `actual` against the reference.

        Args:
            actual: results by name.
            who: whose they are, for the message.
            slack: times the bound; above 1 for code that is not ours and may round as it likes.

        Raises:
            AssertionError: a tensor is unknown, of the wrong shape, not finite or too far off.
        """
        unknown = set(actual) - set(self.exact)
        assert not unknown, f"{who} {self.case.name}: no result is named {sorted(unknown)}"
        for name, value in actual.items():
            assert_close_to_reference(
                value,
                self.same_dtype[name],
                self.exact[name],
                what=f"{who} {self.case.name}: {name}".strip(),
                gradient=name != "output",
                slack=slack,
            )


def tolerance(dtype: torch.dtype, *, gradient: bool = False) -> tuple[float, float]:
    """`(factor, floor)` with which error <= factor * error of the reference + floor.

    A backend adds the same products in another order, so its error is of the size of that of
    PyTorch in the same dtype; which of the two is larger is chance. Twice (gradients, sums of more
    terms: three times) that error tells a wrong kernel from an unlucky one without a number that
    was fitted to a case. The floor, as a share of the largest value, is for cases in which PyTorch
    happens to be exact: a few roundings in float32 and float64, where it also covers the
    activations (1e-6), and one rounding of the stored result in 16-bit types.
    """
    roundings = 1 if dtype in (torch.bfloat16, torch.float16) else 8
    return (3.0 if gradient else 2.0), roundings * torch.finfo(dtype).eps


def assert_close_to_reference(
    actual: Tensor,
    same_dtype: Tensor,
    exact: Tensor,
    *,
    what: str = "result",
    gradient: bool = False,
    slack: float = 1.0,
) -> None:
    """Asserts that `actual` is as close to `exact` as `tolerance` asks.

    Args:
        actual: the result under test.
        same_dtype: the reference in the dtype of `actual`.
        exact: the reference in float64.
        what: name of the result, for the message.
        gradient: whether it is a gradient.
        slack: times the bound.

    Raises:
        AssertionError: with both errors and the bound.
    """
    shapes = f"must have shape {tuple(exact.shape)}, got {tuple(actual.shape)}"
    assert actual.shape == exact.shape, f"{what} {shapes}"
    assert actual.dtype == same_dtype.dtype, (
        f"{what} must be {same_dtype.dtype}, got {actual.dtype}"
    )
    assert bool(actual.isfinite().all()), f"{what} has values that are not finite"
    if actual.numel() == 0:
        return
    error = (actual.double() - exact.to(actual.device)).abs().max().item()
    bound = slack * error_bound(same_dtype, exact, gradient=gradient)
    assert error <= bound, (
        f"{what} is {error:.3g} away from float64; at most {bound:.3g} is allowed (some times the "
        f"error of the {actual.dtype} reference, plus the floor; see tolerance)"
    )


def error_bound(same_dtype: Tensor, exact: Tensor, *, gradient: bool = False) -> float:
    """The largest error that `tolerance` leaves to a result, from both references."""
    factor, floor = tolerance(same_dtype.dtype, gradient=gradient)
    error = (same_dtype.double() - exact.to(same_dtype.device)).abs().max().item()
    scale = max(exact.abs().max().item(), torch.finfo(same_dtype.dtype).tiny)
    return factor * error + floor * scale


@contextmanager
def tf32(is_allowed: bool = True) -> Iterator[None]:
    """Inside, the user allows TF32 for matrix products, or does not."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if is_allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def assert_a_graph_keeps_to_tf32(case: Case, functions: Any, device: Any = "cpu") -> None:
    """Asserts that a compiled graph follows the user's setting, and a backward its forward.

    Args:
        case: whose results differ with TF32.
        functions: a module with the op of the case.
        device: of its tensors.
    """
    leaves = case.inputs(device=device, requires_grad=True)
    compiled = torch.compile(case.bind(functions, leaves), fullgraph=True, backend="aot_eager")
    with tf32(False):
        exact = compiled()
    with tf32():
        y = compiled()
        expected = case.results(functions, leaves)
    with tf32(False):
        slopes = torch.autograd.grad(y, list(leaves.values()), case.output_gradient(y))
        again = compiled()
    assert torch.equal(y, expected["output"])
    assert torch.equal(exact, again) and not torch.equal(exact, y)
    for name, slope in zip(leaves, slopes, strict=True):
        assert torch.equal(slope, expected["d" + name]), name


def calls_without_memory(
    case: Case, functions: Any, device: Any = "cpu"
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls, forward and backward, in which one tensor's storage is freed, as FSDP does.

    Args:
        case: without lengths, which torch reads before the op does.
        functions: a module with the op of the case.
        device: of its tensors.

    Yields:
        What is freed, and the call.
    """
    inputs = case.inputs(device=device)
    for name, t in inputs.items():
        # As a whole, and as a part, whose pointer is not null but an offset to it.
        for freed in (t.clone(), torch.stack((t, t))[1]):
            freed.untyped_storage().resize_(0)
            yield name, partial(case.run, functions, {**inputs, name: freed})
    for name in (*inputs, "dy"):
        leaves = {
            n: v.clone().requires_grad_(n not in NOT_DIFFERENTIABLE) for n, v in inputs.items()
        }
        y = case.run(functions, leaves)
        dy = case.output_gradient(y)
        (leaves | {"dy": dy})[name].untyped_storage().resize_(0)
        yield f"{name}, backward", partial(y.backward, dy)


def with_odd_bytes(mask: Tensor) -> Tensor:
    """The same mask, each true value another byte that is not zero."""
    byte = torch.arange(1, mask.numel() + 1, device=mask.device).remainder(255) + 1
    return (mask * byte.view(mask.shape)).to(torch.uint8).view(torch.bool)


def assert_zeros_are_not_read(
    functions: Any, dtype: torch.dtype, device: Any = "cpu", *, H: int = 19, K: int = 5
) -> None:
    """Asserts that a projection's zeros read no state, and its other weights infinite ones too.

    Fused and apart. All finite numbers are small and whole, so every sum is exact.

    Args:
        functions: a module with the ops.
        dtype: of all tensors.
        device: of all tensors.
        H: width of the states.
        K: projected rows.
    """
    make = torch.Generator().manual_seed(0)
    topology = Topology.dag([[*[[]] * 39, [38]], [*[[]] * 39, [37, 38]]])
    B, N, D = 6, topology.num_nodes, topology.num_directions
    x, w_ih, G = (
        torch.randint(-1, 2, shape, generator=make) for shape in ((B, N, 1), (D, H, 1), (D, K, N))
    )
    x, w_ih, w_hh, G = (
        t.to(device, dtype) for t in (x, 2 * w_ih.abs() - 1, torch.eye(H).expand(D, H, H), G)
    )
    for b, n, value in (
        (0, 1, torch.inf), (1, 2, -torch.inf), (2, 3, torch.nan),
        (3, 1, torch.inf), (3, 2, -torch.inf), (4, 35, torch.inf),
    ):  # fmt: skip
        x[b, n] = value
    states = partial(functions.spatial_rnn, x, w_ih, w_hh, None, topology, activation="identity")
    h = states()
    weight = G[None, :, :, :, None]
    expected = torch.where(weight != 0, weight * h.transpose(1, 2)[:, :, None], 0).sum(3)
    for is_kind in (torch.isposinf, torch.isneginf, torch.isnan, torch.isfinite):
        assert is_kind(expected[:5]).any()
    with torch.no_grad():
        found = {"fused": states(projection=G)}
    found["fused, for a gradient"] = states(projection=G.clone().requires_grad_()).detach()
    found["apart"] = functions.sparse_projection(h, G)
    for how, s in found.items():
        torch.testing.assert_close(
            s, expected, rtol=0, atol=0, equal_nan=True, msg=partial("{}: {}".format, how)
        )


def with_shared_slots(topology: Topology) -> Topology:
    """The topology, its programs changed so that what nothing reads shares a slot with what is.

    A node that nothing follows gets the slot of an earlier one of its group, forward and reversed:
    only a backend that stores no state that nobody reads is right then.

    Raises:
        ValueError: there is no such pair.
    """
    num_pairs = 0
    for turned in (topology, topology.reversed()):
        program = turned.program("levels")
        slot = program._joined[program.node.size :][: program.node.size].reshape(program.node.shape)
        for d, i in np.argwhere(program.num_succ == 0).tolist():
            ends = program.group_ptr[d]
            earlier = np.arange(ends[np.searchsorted(ends, i, "right") - 1], i)
            read = earlier[program.num_succ[d, earlier] > 0]
            if read.size:
                slot[d, i] = slot[d, read[0]]
                num_pairs += 1
    if not num_pairs:
        raise ValueError(f"with_shared_slots: {topology} has no two such nodes")
    return topology


def _holes() -> np.ndarray:
    mask = np.ones((5, 6), dtype=bool)
    mask[0, 0] = mask[2, 2:4] = mask[4, 5] = False
    return mask


def _diamond() -> Topology:
    """Two unrelated directions, up to four predecessors, two roots in one of them."""
    return Topology.dag([[[], [0], [0], [1, 2], [0, 1, 2, 3]], [[4], [], [1, 4], [], [3, 1]]])


def _maker(op: str) -> Callable[..., Case]:
    return lambda name, graph, **options: Case(name, op, graph, **options)


_space, _time, _sweep, _gated, _project = map(
    _maker, ("spatial_rnn", "temporal_rnn", "sweep", "gated_sweep", "sparse_projection")
)
_grid = partial(partial, Topology.grid)
_cross = partial(partial, Topology.grid, neighbourhood="cross")
_line = partial(partial, Topology.grid, neighbourhood="line")
_chain = partial(partial, Topology.chain)
_cap = partial(Topology.montage, "seed-62")

#: Small and odd: every op, topology, activation and option, H = 1 and beside the vector widths, B =
#: 1, N = 1.
CONFORMANCE = (
    _space("corner-3x4-h30", _grid(3, 4), B=5, C=5, H=30, K=4),
    _space("corner-4x3-states", _grid(4, 3), B=3, C=7, H=33, activation="tanh"),
    _space("corner-1x1", _grid(1, 1), B=2, C=3, H=8, K=2, activation="sigmoid"),
    _space("corner-1x5-b1-h1", _grid(1, 5), B=1, C=1, H=1, activation="tanh"),
    _space("corner-mask", _grid(4, 4), B=6, C=5, H=16, K=3, has_mask=True),
    _space("corner-holes", _grid(5, 6, mask=_holes()), B=4, C=6, H=31, K=5),
    _space("corner-no-bias", _grid(3, 3), B=2, C=40, H=17, has_bias=False),
    _space("corner-sparse", _grid(4, 4), B=3, C=5, H=30, K=6, density=0.2),
    _space("cross-4x4", _cross(4, 4), B=3, C=20, H=30, activation="identity"),
    _space("line-3x5", _line(3, 5), B=4, C=16, H=24, activation="sigmoid"),
    _space("cap-small", _cap, B=7, C=5, H=30, K=10, slices=7),
    _space("diamond", _diamond, B=13, C=4, H=12, activation="tanh", has_mask=True),
    _time("chain-t9", _chain(9), B=6, C=30, H=30, K=5),
    _time("chain-t1-b1", _chain(1), B=1, C=2, H=33, activation="tanh"),
    _time("chain-tanh-h0", _chain(7), B=5, C=8, H=20, activation="tanh", has_h0=True),
    _time("chain-lengths", _chain(8), B=9, C=6, H=30, has_lengths=True),
    _time("chain-lengths-h0", _chain(6), B=17, C=3, H=1, has_lengths=True, has_h0=True),
    _time("chain-lengths-k", _chain(5), B=4, C=3, H=9, K=2, activation="tanh", has_lengths=True),
    _time("chain-causal", _chain(11, bidirectional=False), B=3, C=65, H=64),
    _time("chain-sigmoid", _chain(3), B=12, C=4, H=15, activation="sigmoid"),
    _time("chain-wide", _chain(4), B=2, C=130, H=129, activation="identity"),
    _time("chain-h264", _chain(3), B=2, C=9, H=264, activation="sigmoid", dtype=torch.bfloat16),
    _space("gru-corner", _grid(3, 4), B=5, C=5, H=30, K=4, cell="gru"),
    _space("gru-line-mask", _line(3, 5), B=4, C=7, H=17, cell="gru", has_mask=True),
    _space(
        "gru-sum-no-bias", _cross(3, 3), B=3, C=20, H=9, cell="gru", reduce="sum", has_bias=False
    ),
    _space("lstm-corner-mask", _grid(4, 4), B=6, C=5, H=16, K=3, cell="lstm", has_mask=True),
    _space("lstm-holes", _grid(5, 6, mask=_holes()), B=3, C=33, H=31, cell="lstm"),
    _space("lstm-sum", _diamond, B=13, C=4, H=5, cell="lstm", reduce="sum"),
    _space("lstm-1x1-h1", _grid(1, 1), B=1, C=1, H=1, K=2, cell="lstm"),
    _space("elman-mean", _grid(3, 5), B=3, C=4, H=18, activation="tanh", reduce="mean"),
    _time("gru-t9", _chain(9), B=6, C=30, H=30, K=5, cell="gru", density=0.5),
    _time("gru-lengths-h0", _chain(7), B=17, C=3, H=20, cell="gru", has_lengths=True, has_h0=True),
    _time("gru-causal", _chain(6, bidirectional=False), B=1, C=65, H=64, cell="gru"),
    _time("lstm-t9", _chain(9), B=6, C=30, H=30, K=5, cell="lstm"),
    _time(
        "lstm-states",
        _chain(5),
        B=3,
        C=8,
        H=33,
        cell="lstm",
        has_h0=True,
        has_c0=True,
        returns_carry=True,
    ),
    _time(
        "lstm-lengths",
        _chain(8),
        B=15,
        C=6,
        H=20,
        cell="lstm",
        has_lengths=True,
        has_h0=True,
        has_c0=True,
    ),
    _time(
        "lstm-carry-lengths",
        _chain(4, bidirectional=False),
        B=4,
        C=130,
        H=129,
        cell="lstm",
        has_lengths=True,
        has_c0=True,
        returns_carry=True,
    ),
    _sweep("sweep-corner", _grid(4, 5), B=3, H=30),
    _sweep("sweep-mask-h0", _grid(3, 3), B=8, H=33, activation="tanh", has_mask=True, has_h0=True),
    _sweep("sweep-diamond", _diamond, B=2, H=1, activation="sigmoid", has_h0=True),
    _sweep("sweep-line", _line(2, 7), B=1, H=48, activation="identity"),
    _sweep("sweep-h272", _diamond, B=2, H=272, activation="sigmoid", dtype=torch.bfloat16),
    _gated("gated-corner", _grid(4, 3), B=3, H=30),
    _gated("gated-diamond", _diamond, B=14, H=7),
    _gated("gated-chain", _chain(10), B=5, H=33),
    _project("project", _grid(3, 4), B=5, H=30, K=4, density=0.5),
    _project("project-h1", _chain(3), B=1, H=1, K=1),
)

#: The sizes of the field. S: space, T: time; G, L: the same with a gru, an lstm. 4 is 2 with
#: sequences of their own lengths, 5 one live sequence, 6 one step of it.
BENCHMARKS = (
    _space("S1", _cap, B=144, C=5, H=30, K=10, slices=9),
    _space("S2", _grid(32, 32), B=16, C=64, H=64),
    _space("S3", _grid(16, 16), B=32, C=128, H=128),
    _time("T1", _chain(9), B=64, C=30, H=30),
    _time("T2", _chain(128), B=32, C=128, H=128),
    _time("T3", _chain(512), B=8, C=256, H=256),
    _time("T4", _chain(128), B=32, C=128, H=128, has_lengths=True),
    _time("T5", _chain(64), B=1, C=64, H=64),
    _time("T6", _chain(1, bidirectional=False), B=1, C=64, H=64, has_h0=True),
    _time("G1", _chain(9), B=64, C=30, H=30, cell="gru"),
    _time("G2", _chain(128), B=32, C=128, H=128, cell="gru"),
    _time("G3", _chain(512), B=8, C=256, H=256, cell="gru"),
    _time("G4", _chain(128), B=32, C=128, H=128, cell="gru", has_lengths=True),
    _time("G5", _chain(64), B=1, C=64, H=64, cell="gru"),
    _time("G6", _chain(1, bidirectional=False), B=1, C=64, H=64, cell="gru", has_h0=True),
    _time("L1", _chain(9), B=64, C=30, H=30, cell="lstm"),
    _time("L2", _chain(128), B=32, C=128, H=128, cell="lstm"),
    _time("L3", _chain(512), B=8, C=256, H=256, cell="lstm"),
    _time("L4", _chain(128), B=32, C=128, H=128, cell="lstm", has_lengths=True),
    _time("L5", _chain(64), B=1, C=64, H=64, cell="lstm"),
    _time(
        "L6", _chain(1, bidirectional=False), B=1, C=64, H=64, cell="lstm", has_h0=True, has_c0=True
    ),
    _space("L-S2", _grid(32, 32), B=16, C=64, H=64, cell="lstm"),
)


def sweep_arguments(
    x: Tensor, w_hh: Tensor, tables: tuple, cell: int, *, w_ih: Tensor | None = None,
    bias: Tensor | None = None, mask: Tensor | None = None, h0: Tensor | None = None,
    c0: Tensor | None = None, entry: Tensor | None = None, projection: Tensor | None = None,
    mean: bool = False, keep_h: bool = True, keep_c: bool = False, keep_last: bool = False,
    save: bool = False, allow_tf32: bool = False,
) -> tuple:  # fmt: skip
    """The arguments of the raw op sweep_fwd in its order; `tables` as in `registration.sweep`."""
    weights = ([] if w is None else [w] for w in (w_ih, bias, w_hh))
    return (
        x, *weights, mask, h0, c0, entry, projection, *tables, cell, mean, keep_h, keep_c,
        keep_last, save, allow_tf32,
    )  # fmt: skip


def sweep_backward_arguments(
    x: Tensor, h: Tensor, w_hh: Tensor, tables: tuple, cell: int, *, dh: Tensor | None = None,
    ds: Tensor | None = None, dc: Tensor | None = None, dh_n: Tensor | None = None,
    dc_n: Tensor | None = None, saved: Tensor | None = None, need_dx: bool = True,
    allow_tf32: bool = False, mean: bool = False, **inputs: Any,
) -> tuple:  # fmt: skip
    """The same for the raw op sweep_bwd; `inputs` as `sweep_arguments` takes them."""
    _, *tensors = sweep_arguments(x, w_hh, tables, cell, **inputs)[:9]
    saved = x.new_empty(0) if saved is None else saved
    return (
        dh, ds, dc, dh_n, dc_n, x, h, saved, *tensors, *tables[1:], cell, mean, need_dx, allow_tf32,
    )  # fmt: skip


def find(name: str) -> Case:
    """The case of that name.

    Raises:
        KeyError: with the names that exist.
    """
    for case in CONFORMANCE + BENCHMARKS:
        if case.name == name:
            return case
    names = " ".join(case.name for case in CONFORMANCE + BENCHMARKS)
    raise KeyError(f"no case is named {name!r}; there are {names}")
