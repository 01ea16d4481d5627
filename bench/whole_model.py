"""A whole STRNN on the SEED cap: what a live headset waits for, and a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import torch
from strnn_models import STRNN
from strnn_models import reference as twins

#: Batch and whether gradients are taken, of each row.
ROWS = {"inference, batch 1": (1, False), "training step, batch 32": (32, True)}
TWIN, COMPILED = "reference twin", "reference twin, compiled"
SAMPLES = {"strnn_models.STRNN": 30, TWIN: 3, COMPILED: 3}


@dataclass(frozen=True)
class Contestant:
    """A model under test."""

    name: str
    call: Callable[[], Any]


def contestants(batch: int, is_training: bool, compiles: bool) -> list[Contestant]:
    """The fused model and its twin in plain PyTorch, with the same weights and input."""
    torch.manual_seed(0)
    fused, twin = STRNN(), twins.STRNN()
    twin.load_state_dict(fused.state_dict())
    x, y = torch.randn(batch, 9, 62, 5), torch.randint(3, (batch,))

    def ready(model):
        model.train(is_training)
        parameters = [p for p in model.parameters() if p.requires_grad]

        def call():
            if not is_training:
                with torch.inference_mode():
                    return model(x)
            loss = torch.nn.functional.cross_entropy(model(x), y)
            return torch.autograd.grad(loss, parameters)

        return call

    models = [Contestant("strnn_models.STRNN", ready(fused)), Contestant(TWIN, ready(twin))]
    if compiles:
        models.append(Contestant(COMPILED, ready(torch.compile(twin, dynamic=False))))
    return models


def measure(threads: int = 1, *, compiles: bool = False) -> list[dict[str, Any]]:
    """Medians and quartiles in ms, in alternating order, after the results were found equal.

    Args:
        threads: of torch.
        compiles: whether torch.compile of the twin takes part, for inference only: one inlined loop
            over cells, steps and directions, which takes minutes to compile.
    """
    torch.set_num_threads(threads)
    rows = []
    for row, (batch, is_training) in ROWS.items():
        models = contestants(batch, is_training, compiles and not is_training)
        results = [torch.cat([t.flatten() for t in _tuple(m.call())]) for m in models]
        for result in results[1:]:
            torch.testing.assert_close(results[0], result, rtol=1e-3, atol=1e-4)
        seconds: dict[str, list[float]] = {m.name: [] for m in models}
        for i in range(max(SAMPLES.values())):
            for model in models:
                if i < SAMPLES[model.name]:
                    start = time.perf_counter()
                    model.call()
                    seconds[model.name].append(time.perf_counter() - start)
        slow = quantiles(seconds[TWIN], n=4)[1]
        for name, found in seconds.items():
            low, median, high = quantiles(found, n=4)
            rows.append(
                {
                    "row": row,
                    "contestant": name,
                    "threads": threads,
                    "median_ms": 1e3 * median,
                    "quartiles_ms": [1e3 * low, 1e3 * high],
                    "ratio_to_twin": slow / median,
                }
            )
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The rows as cells of a table."""
    return [
        [
            r["row"],
            r["contestant"],
            f"{r['median_ms']:.3g} ({r['quartiles_ms'][0]:.3g} to {r['quartiles_ms'][1]:.3g})",
            f"{r['ratio_to_twin']:.3g}x",
        ]
        for r in rows
    ]


HEADER = ["whole STRNN", "who", "ms (quartiles)", "against the twin"]


def _tuple(value: Any) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
