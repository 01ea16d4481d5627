"""The process of an older build: two builds register the same ops, so each needs one of its own.

`python older.py FOLDER` answers pickled requests on standard input until it ends. It knows of the
package in FOLDER, and of nothing else that may be newer.
"""

from __future__ import annotations

import inspect
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def serve(folder: str) -> None:
    """Requests are (name of a function below, its arguments); answers (error or None, result)."""
    sys.path.insert(0, folder)
    import strnn_kernels as package

    if Path(folder).resolve() not in Path(package.__file__).resolve().parents:
        raise SystemExit(f"bench: {folder} has no strnn_kernels")
    calls: dict[str, Callable[[], Any]] = {}

    def lacks(op: str, arguments: Sequence[str]) -> str | None:
        known = inspect.signature(getattr(package, op)).parameters
        missing = [name for name in arguments if name not in known]
        return f"its {op} has no {', '.join(missing)}" if missing else None

    def prepare(
        threads: int, op: str, inputs: dict[str, Any], graph: Any, leaf: Sequence[str], dy: Tensor
    ) -> None:
        torch.set_num_threads(threads)
        function = getattr(package, op)
        if graph is not None:
            inputs["topology"] = graph()
        leaves = {name: inputs[name].requires_grad_() for name in leaf}
        given = {**inputs, **{name: value.detach().clone() for name, value in leaves.items()}}
        calls["inference"] = lambda: function(**given)
        calls["training"] = lambda: torch.autograd.grad(
            function(**inputs), list(leaves.values()), dy
        )

    def result(mode: str) -> Any:
        with package.use_backend("cpu"), torch.inference_mode(mode == "inference"):
            return calls[mode]()

    def seconds(mode: str, count: int) -> float:
        """Of a call, on average."""
        call = calls[mode]
        with package.use_backend("cpu"), torch.inference_mode(mode == "inference"):
            start = time.perf_counter()
            for _ in range(count):
                call()
            return (time.perf_counter() - start) / count

    functions = {"lacks": lacks, "prepare": prepare, "result": result, "seconds": seconds}
    while True:
        try:
            name, *arguments = pickle.load(sys.stdin.buffer)  # noqa: S301  (of who started us)
        except EOFError:
            return
        try:
            answer = None, functions[name](*arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            answer = str(error), None
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
