"""Kernel time on a GPU by graph replay: `python -m bench.gpu_time out.json`.

Forward, and forward with backward, of the shared benchmark cases on every backend for GPUs that
runs here: the time of a replay divided by the calls in the graph, medians of interleaved rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import replace

import torch

import strnn_kernels as sk
from strnn_kernels.testing import BENCHMARKS

CALLS = 10  # in one graph
ROUNDS = 15
#: The size that the issue's targets speak of, beside the shared cases.
SEED = replace(next(c for c in BENCHMARKS if c.name == "S1"), name="seed-288", B=288, K=0)


def graph_of(run):
    """A CUDA graph of CALLS runs."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    return graph


def replay_us(graph) -> float:
    """Microseconds of one call in the graph."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / CALLS


def graphs_of(case, dtype, backend):
    """The graphs of a case by their names."""
    inputs = {
        name: value.cuda().requires_grad_(value.is_floating_point())
        for name, value in case.inputs(dtype=dtype).items()
    }
    leaves = [value for value in inputs.values() if value.requires_grad]
    call = case.bind(sk, inputs)
    with sk.use_backend(backend):
        slope = torch.ones_like(call())

        def forward():
            with torch.no_grad():
                call()

        def both():
            torch.autograd.grad(call(), leaves, slope)

        return {"forward": graph_of(forward), "forward+backward": graph_of(both)}


def main(path: str) -> None:
    """Times every case, prints the rows and writes them."""
    rows = []
    backends = [name for name in ("cuda", "triton") if sk.backends()[name] is None]
    for case in (SEED, *BENCHMARKS):
        for dtype in (torch.float32, torch.bfloat16):
            graphs = {
                (backend, mode): graph
                for backend in backends
                for mode, graph in graphs_of(case, dtype, backend).items()
            }
            times = {key: [] for key in graphs}
            for _ in range(ROUNDS):
                for key, graph in graphs.items():
                    times[key].append(replay_us(graph))
            for (backend, mode), found in times.items():
                row = {"case": case.name, "dtype": str(dtype), "backend": backend, "mode": mode}
                rows.append(row | {"us": statistics.median(found), "us_least": min(found)})
                print(*rows[-1].values())
    about = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__}
    with open(path, "w") as file:
        json.dump({"machine": about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
