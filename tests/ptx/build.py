"""Compiles what the tests execute: the machine by g++, the CUDA backend by nvcc.

Everything is kept under build/ptx by the text it was made of, so that nothing is made twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "ptx"
SOURCES = ROOT / "csrc" / "cuda"
CUDA_HOME = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
NVCC = CUDA_HOME / "bin" / "nvcc"
#: What is compiled for; 90a as setup.py has it, for clusters.
ARCHITECTURES = {80: "80", 90: "90a"}


def missing() -> str | None:
    """What the CUDA half needs and this machine lacks, or None."""
    return None if NVCC.exists() else f"no {NVCC}; set CUDA_HOME"


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr[-4000:]}")


def _text(source: Path, seen: set[Path]) -> str:
    """The text of a file and of all that it includes by a relative path, each once."""
    source = source.resolve()
    if source in seen or not source.exists():
        return ""
    seen.add(source)
    text = source.read_text()
    included = re.findall(r'^#include "(.+)"', text, re.M)
    places = [p for name in included for p in (source.parent / name, ROOT / name)]
    return text + "".join(_text(place, seen) for place in places)


def _key(*texts: object) -> str:
    return hashlib.sha256("\0".join(map(str, texts)).encode()).hexdigest()[:20]


def _made(to: Path, command: Sequence[object]) -> Path:
    """The file or folder, after the command has made it as `to` + ".part" if it is not there."""
    if not to.exists():
        part = to.with_name(f"{to.name}.{os.getpid()}")
        to.parent.mkdir(parents=True, exist_ok=True)
        _run([part if word == "TO" else word for word in command])
        part.replace(to)
    return to


def _object(source: Path, *flags: object) -> Path:
    to = BUILD / f"{source.stem}-{_key(_text(source, set()), *flags)}.o"
    return _made(to, ["g++", "-fPIC", *flags, "-c", source, "-o", "TO"])


def _link(name: str, objects: Iterable[Path], *libraries: str) -> Path:
    objects = list(objects)
    to = BUILD / f"{name}-{_key(*(o.relative_to(BUILD) for o in objects))}.so"
    flags = ("-shared", "-Wl,-Bsymbolic", "-Wl,--no-undefined")
    return _made(to, ["g++", *flags, *objects, *libraries, "-o", "TO"])


def _parallel(function, sources: Iterable[Path]) -> list[Path]:
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", 2))) as pool:
        return list(pool.map(function, sources))


def machine() -> Path:
    """The library that executes decoded PTX."""
    flags = ("-std=c++20", "-O2", "-march=native", "-ffp-contract=off", "-Wall", "-Wextra")
    sources = sorted((HERE / "executor").glob("*.cpp"))
    return _link("machine", _parallel(lambda source: _object(source, *flags), sources))


def _compile(source: Path, architectures: Sequence[int]) -> Path:
    """A folder with a kernel file's PTX and host object, by nvcc without ptxas."""
    codes = [f"compute_{ARCHITECTURES[a]}" for a in architectures]
    flags = ["-O3", "-std=c++17", "-lineinfo", "-Xcompiler", "-fPIC"]
    flags += [f"-gencode=arch={code},code={code}" for code in codes]
    to = BUILD / f"{source.stem}-{_key(_text(source, set()), *flags)}"
    script = 'mkdir -p "$0/keep" && "$@" --keep-dir "$0/keep" -o "$0/host.o"'
    made = _made(to, ["sh", "-c", script, "TO", NVCC, *flags, "--keep", "-c", source])
    for kept in (made / "keep").iterdir():
        if kept.suffix != ".ptx":
            kept.unlink()
    return made


def cuda(sources: Path = SOURCES, architectures: Sequence[int] = ()) -> tuple[Path, dict]:
    """The backend's own host code as a library, and its PTX files by architecture.

    Without `architectures` a file is compiled for the first that has its kernels: clusters are of
    sm_90, and no other source looks at the architecture. `sources` may be a changed copy of
    csrc/cuda, beside a copy of csrc/common.
    """
    folders_of_torch = (f"-I{folder}" for folder in include_paths())
    include = (f"-I{CUDA_HOME}/include", f"-I{ROOT}", *folders_of_torch, "-std=c++17", "-O1")
    # As setup.py has it.
    include += ("-DTORCH_TARGET_VERSION=0x020a000000000000",)
    kernels = sorted(sources.glob("*.cu"), key=lambda path: "tensor" not in path.name)

    def compiled(source: Path) -> Path:
        return _compile(source, architectures or ((90,) if source.stem == "cluster" else (80,)))

    folders = _parallel(compiled, kernels)
    host = (sources / "planner.cpp", *sorted((HERE / "host").glob("*.cpp")))
    objects = [*(f / "host.o" for f in folders), *(_object(h, *include) for h in host)]
    torch = (f"-L{folder}" for folder in library_paths())
    library = _link("host", objects, *torch, "-ltorch_cpu", "-lc10")
    # nvcc names a file after its architecture only where there are several.
    ending = "compute_{}.ptx" if len(architectures) > 1 else ".ptx"
    found = {
        a: [p for f in folders for p in (f / "keep").glob("*" + ending.format(ARCHITECTURES[a]))]
        for a in architectures or ARCHITECTURES
    }
    return library, found
