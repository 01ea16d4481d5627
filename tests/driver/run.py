"""Builds driver.cpp with other compilers, for other processors, and runs the cases: run.py BUILD...

What a build needs and this machine lacks is an error that says how to get it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "driver"
SOURCES = (
    ROOT / "tests" / "driver" / "driver.cpp",
    *(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in
      ("dispatch", "capability_baseline", "capability_avx2", "capability_avx512",
       "capability_avx512_bf16", "capability_avx512_amx", "capability_neon",
       "capability_neon_bf16")),
)  # fmt: skip
#: Warnings are errors, but for the two that setup.py knows to be false.
FLAGS = ("-std=c++17", "-O2", "-g1", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Werror",
         "-Wno-psabi", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized")  # fmt: skip
#: Emulated processors: one with everything, and one with nothing that armv8.0-a does not have.
ARM = (
    ("qemu-aarch64", "-cpu", "max", "-E", "STRNN_CPU_CAPABILITY=neon_bf16"),
    ("qemu-aarch64", "-cpu", "cortex-a53"),
)
#: The instruction sets of x86-64, each if the machine has it.
X86 = tuple(
    ("env", f"STRNN_CPU_CAPABILITY={name}")
    for name in ("baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx")
)
UNSUPPORTED = "this machine does not have it"
#: What no processor here runs has to compile; it is not optimised.
_CPU = Path("/proc/cpuinfo")
CANNOT_RUN = "capability_avx512" if _CPU.exists() and "avx512f" not in _CPU.read_text() else ""


@dataclass(frozen=True)
class Build:
    """A compiler with its flags, what its programs run under, and the Debian packages it takes.

    ``made`` is where setup.py has left the kernels' objects, if they are not to be compiled again.
    """

    compiler: tuple[str, ...]
    under: tuple[tuple[str, ...], ...]
    packages: str
    made: Path | None = None

    @property
    def missing(self) -> str | None:
        """What to install or build before, or None."""
        tools = {self.compiler[0], *(way[0] for way in self.under)}
        lacking = [tool for tool in sorted(tools) if shutil.which(tool) is None]
        if lacking:
            return f"{', '.join(lacking)} not found: apt-get install {self.packages}"
        if self.made and not any(self.made.rglob("dispatch.o")):
            return "its objects were not built: make test-sanitize builds and runs it"
        return None


_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_CROSS = "g++-aarch64-linux-gnu qemu-user"
BUILDS = {
    "g++": Build(("g++",), X86, "g++"),
    "clang": Build(("clang++",), X86, "clang"),
    "threads": Build(("clang++", "-fsanitize=thread"), X86, "clang libclang-rt-dev"),
    "sanitize": Build(("g++", *_SANITIZE), X86, "g++", ROOT / "build" / "sanitize"),
    "arm": Build(("aarch64-linux-gnu-g++", "-static"), ARM, _CROSS),
    "arm-clang": Build(
        ("clang++", "--target=aarch64-linux-gnu", "-static"), ARM, f"clang {_CROSS}"
    ),
}


def _text(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def compile_source(command: tuple[str, ...], source: Path) -> Path:
    """The object file; compiled only if the flags or any source of the kernels changed."""
    if CANNOT_RUN and source.stem.startswith(CANNOT_RUN):
        command = (*command, "-O0")
    depends = source.read_bytes() + _text(ROOT / "csrc" / "common") + _text(ROOT / "csrc" / "cpu")
    key = hashlib.sha1(depends + " ".join(command).encode()).hexdigest()[:16]
    to = BUILD / f"{source.stem}-{key}.o"
    if not to.exists():
        part = to.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-c", str(source), "-o", str(part)], check=True)
        part.rename(to)
    return to


def link(name: str, pool: ThreadPoolExecutor) -> Path:
    """The driver of a build."""
    build = BUILDS[name]
    command = (build.compiler[0], *FLAGS, *build.compiler[1:])
    sources = SOURCES[:1] if build.made else SOURCES
    objects = list(pool.map(lambda source: compile_source(command, source), sources))
    if build.made:
        objects += [next(build.made.rglob(f"{source.stem}.o")) for source in SOURCES[1:]]
    to = BUILD / name
    subprocess.run([*command, *map(str, objects), "-pthread", "-o", str(to)], check=True)
    return to


def run(name: str, program: Path, cases: Path) -> bool:
    """Whether the driver found every result inside its bound, on one thread and on three.

    Emulated, which takes long, on three on the newer processor and on one on the older.
    """
    good, ways = True, BUILDS[name].under
    runs = (
        zip(ways, ("3", "1"), strict=True) if ways is ARM else itertools.product(ways, ("1", "3"))
    )
    for way, threads in runs:
        done = subprocess.run(
            [*way, str(program), str(cases), threads], capture_output=True, text=True
        )
        is_unsupported = UNSUPPORTED in done.stderr
        good &= done.returncode == 0 or is_unsupported
        print(name, *way[1:], f"threads={threads}", (done.stdout + done.stderr).strip())
    return good


def main(names: list[str]) -> None:
    """Builds and runs each; exits with 1 if one fails."""
    missing = [f"{name}: {BUILDS[name].missing}" for name in names if BUILDS[name].missing]
    if missing:
        sys.exit("\n".join(missing))
    BUILD.mkdir(parents=True, exist_ok=True)
    cases = BUILD / f"cases-{'-'.join(names)}"  # its own, beside another run
    writer = subprocess.Popen([sys.executable, str(Path(__file__).with_name("cases.py")), cases])
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        programs = {}
        for name in names:
            try:
                programs[name] = link(name, pool)
            except subprocess.CalledProcessError as error:
                sys.exit(
                    f"{name}: {' '.join(error.cmd)} failed; it takes the Debian packages "
                    f"{BUILDS[name].packages}"
                )
    if writer.wait():
        sys.exit("cases.py failed")
    if not all([run(name, program, cases) for name, program in programs.items()]):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
