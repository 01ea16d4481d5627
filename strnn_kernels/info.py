"""What is installed, what was compiled, what can run here, and why the rest cannot.

Run as ``python -m strnn_kernels.info``.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .backends import backends, native, tf32
from .notation import CELLS
from .topology import PLANNER, PLANNER_REASON


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    if not torch.cuda.is_available():
        built = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
        found = [f"for {name} {version}" for name, version in built.items() if version]
        return f"none (torch is built {found[0] if found else 'without CUDA'})"
    names = []
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        names.append(f"{gpu.name} ({getattr(gpu, 'gcnArchName', f'sm_{gpu.major}{gpu.minor}')})")
    return ", ".join(names)


def _cuda_plan(dtype: str, cell: str = "relu") -> str:
    """What the CUDA backend would run on this GPU for the sweep of 288 slices of SEED."""
    if native.CUDA_UNAVAILABLE:
        return "none"
    try:
        from ._planner import plan_cuda_sweep
    except ImportError:
        return "unknown: the planner was not compiled"
    gpu = torch.cuda.get_device_properties(0)
    per_block = gpu.shared_memory_per_block_optin  # type: ignore[attr-defined]
    shared = (per_block, gpu.shared_memory_per_multiprocessor)
    device = (gpu.major * 10 + gpu.minor, gpu.multi_processor_count, *shared)
    sizes = {"B": 288, "N": 62, "D": 4, "C": 5, "H": 30, "K": 10, "groups": 13, "slots": 13}
    kind = {"dtype": dtype, "is_backward": False, "cell": CELLS.index(cell)}
    return ", ".join(f"{k} {v}" for k, v in plan_cuda_sweep(**sizes, **kind, device=device).items())


def info() -> dict[str, dict[str, str]]:
    """The report as sections of name -> text."""
    planner = PLANNER if PLANNER_REASON is None else f"{PLANNER} ({PLANNER_REASON})"
    return {
        "versions": {
            "strnn-kernels": _version("strnn-kernels"),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
        "machine": {
            "cpu": platform.machine(),
            "threads": str(torch.get_num_threads()),
            "gpu": _gpus(),
        },
        "compiled": {
            "topology planner": planner,
            "cpu kernels": native.cpu_capabilities() or native.CPU_UNAVAILABLE or "none",
            "cpu instruction set in use": native.cpu_capability() or "none",
            "cuda plan, SEED, float32": _cuda_plan("float32"),
            "cuda plan, SEED, bfloat16": _cuda_plan("bfloat16"),
            "cuda plan, SEED, gru": _cuda_plan("float32", "gru"),
            "gpu products of float32": "tf32" if tf32.is_allowed(torch.float32) else "exact",
            "cuda kernels": native.cuda_architectures() or native.CUDA_UNAVAILABLE or "none",
        },
        "backends": {name: reason or "available" for name, reason in backends().items()},
    }


def main() -> None:
    """Prints the report."""
    for section, rows in info().items():
        print(section)
        for name, text in rows.items():
            print(f"  {name:<28}{text}")


if __name__ == "__main__":
    main()
