"""Build of the compiled parts; everything else stands in pyproject.toml.

Three extensions: ``strnn_kernels._C`` (the CPU ops) and ``strnn_kernels._C_cuda`` (the CUDA ops),
both through torch's stable ABI: one binary for torch 2.10 and later; and ``strnn_kernels._planner``
(the compiler of topologies, pybind11, no torch). Without a C++ compiler, or with one that refuses
them, the package installs without them, without nvcc or beside a torch without CUDA it installs
without _C_cuda; it says so, and keeps the reason as <module>.reason.txt beside the package's files,
where ``python -m strnn_kernels.info`` and the errors find it. STRNN_CPU=1 and STRNN_CUDA=1 make
that an error, 0 leaves the part out. TORCH_CUDA_ARCH_LIST, MAX_JOBS and CUDA_HOME mean what they
mean to torch.utils.cpp_extension.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CSRC = "csrc"
CPU_MODULES = ("_C", "_planner")
CUDA_MODULES = ("_C_cuda",)
# Errno and traps are never read: without them the compiler may vectorise calls and speculate.
# -Wno-psabi: vectors never cross the library's boundary; -Wno-maybe-uninitialized: false alarms
# from gcc 12's own intrinsics, of which clang does not know.
COMPILE_FLAGS = [
    "-O3",
    "-g0",  # Python's own flags have -g, which takes a fifth more; STRNN_CXXFLAGS=-g brings it back
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-unknown-warning-option",
    "-Wno-maybe-uninitialized",
    *os.environ.get("STRNN_CXXFLAGS", "").split(),  # sanitizers, say; what comes last counts
]
NVCC_FLAGS = ["-O3", "-Xcompiler", "-fvisibility=hidden"]
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000")]


def has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "c++").split()[0]) is not None


def is_demanded(switch: str) -> bool:
    return os.environ.get(switch, "") == "1"


#: Why a module of the package is not built.
REASONS: dict[str, str] = {}


def left_out(modules: tuple[str, ...], switch: str, reason: str | None) -> bool:
    """Whether a part is not built; a reason is an error if the part was demanded."""
    if os.environ.get(switch, "") == "0":
        reason = f"{switch}=0"
    elif reason and is_demanded(switch):
        sys.exit(f"strnn-kernels: {switch}=1, but {reason}")
    for module in modules if reason else ():
        leave_out(module, reason)
    return bool(reason)


def leave_out(module: str, reason: str) -> None:
    REASONS[module] = reason
    print(f"strnn-kernels: installing without strnn_kernels.{module}: {reason}", file=sys.stderr)


def keep_reasons(command) -> None:
    """Leaves the reasons, and nothing of an older build, where a build command puts the package."""
    is_in_place = command.editable_mode or getattr(command, "inplace", False)
    folder = Path("." if is_in_place else command.build_lib) / "strnn_kernels"
    for module in (*CPU_MODULES, *CUDA_MODULES):
        note = folder / f"{module}.reason.txt"
        note.unlink(missing_ok=True)
        if module in REASONS:
            for old in (*folder.glob(f"{module}.*so"), *folder.glob(f"{module}.*pyd")):
                old.unlink()
            note.write_text(REASONS[module] + "\n")


class BuildPackage(build_py):
    """The Python files, and why there are no others."""

    def run(self):
        super().run()
        keep_reasons(self)


def build_parts_command():
    from torch.utils.cpp_extension import BuildExtension

    class BuildParts(BuildExtension):
        """The compiled parts; one that was not demanded may fail."""

        def finalize_options(self):
            super().finalize_options()
            if self.editable_mode:  # where every other build has its objects: none is made twice
                build = self.distribution.get_command_class("build")(self.distribution)
                build.finalize_options()
                self.build_temp = build.build_temp

        def run(self):
            super().run()
            keep_reasons(self)

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:
                if not ext.optional:
                    raise
                compiler = os.environ.get("CXX", "c++")
                switch = "STRNN_CPU" if ext.name.split(".")[-1] in CPU_MODULES else "STRNN_CUDA"
                leave_out(
                    ext.name.split(".")[-1],
                    f"{compiler} did not compile it ({type(error).__name__}: {error}). "
                    f"{switch}=1 pip install -v --no-build-isolation . shows its messages; CXX "
                    "chooses another compiler, of which g++ 12 and clang 14 are known to work",
                )

    return BuildParts


def cuda_target(kind: str) -> str:
    """Where conda has CUDA's headers (kind "include") and libraries ("lib"): by target."""
    from torch.utils.cpp_extension import CUDA_HOME

    target = {"aarch64": "sbsa-linux"}.get(platform.machine(), f"{platform.machine()}-linux")
    return os.path.join(CUDA_HOME, "targets", target, kind)


def why_no_cuda() -> str | None:
    """Why the CUDA part cannot be built here, or None."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, include_paths

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    nvcc = os.path.join(CUDA_HOME or "", "bin", "nvcc")
    if not os.path.exists(nvcc):
        return "no nvcc was found (CUDA_HOME)"
    known = [os.path.join(CUDA_HOME, "include"), *include_paths("cuda", False)]
    known = list(dict.fromkeys([*known, cuda_target("include")]))
    if not any(os.path.exists(os.path.join(path, "cuda_runtime_api.h")) for path in known):
        return f"cuda_runtime_api.h is in none of {', '.join(known)}"
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    major = version.partition("release ")[2].partition(".")[0]
    if major != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {major}, torch of CUDA {torch.version.cuda}"
    return None


def cpu_extensions():
    import pybind11
    from torch.utils.cpp_extension import CppExtension

    ops = CppExtension(
        "strnn_kernels._C",
        [
            f"{CSRC}/bindings.cpp",
            f"{CSRC}/cpu/dispatch.cpp",
            f"{CSRC}/cpu/capability_baseline.cpp",
            f"{CSRC}/cpu/capability_avx2.cpp",
            f"{CSRC}/cpu/capability_avx512.cpp",
            f"{CSRC}/cpu/capability_avx512_bf16.cpp",
            f"{CSRC}/cpu/capability_avx512_amx.cpp",
            f"{CSRC}/cpu/capability_neon.cpp",
            f"{CSRC}/cpu/capability_neon_bf16.cpp",
        ],
        define_macros=STABLE_ABI,
        extra_compile_args=COMPILE_FLAGS,
        py_limited_api=True,
        optional=not is_demanded("STRNN_CPU"),
    )
    planner = CppExtension(
        "strnn_kernels._planner",
        [f"{CSRC}/planner.cpp", f"{CSRC}/cuda/planner.cpp"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
        optional=not is_demanded("STRNN_CPU"),
    )
    return [ops, planner]


def cuda_extension():
    import torch
    from torch.utils.cpp_extension import CUDAExtension

    # nvcc knows sm_100 from CUDA 12.8 on. Without a list torch's builder asks the machine's GPU,
    # which a build machine need not have.
    knows_100 = tuple(map(int, torch.version.cuda.split("."))) >= (12, 8)
    os.environ.setdefault(
        "TORCH_CUDA_ARCH_LIST", "8.0;9.0a;10.0+PTX" if knows_100 else "8.0;9.0+PTX"
    )
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"]
    kernels = Path(CSRC, "cuda")
    sources = [kernels / "planner.cpp", *sorted(kernels.glob("*.cu"))]
    return CUDAExtension(
        "strnn_kernels._C_cuda",
        [f"{CSRC}/bindings_cuda.cpp", *map(str, sources)],
        define_macros=[
            *STABLE_ABI,
            ("USE_CUDA", None),
            ("STRNN_CUDA_ARCHITECTURES", f'"{architectures}"'),
        ],
        include_dirs=[cuda_target("include")],
        library_dirs=[cuda_target("lib")],
        extra_compile_args={"cxx": COMPILE_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
        optional=not is_demanded("STRNN_CUDA"),
    )


def compiled_parts():
    extensions = []
    no_compiler = None if has_compiler() else "no C++ compiler was found (CXX or c++)"
    if not left_out(CPU_MODULES, "STRNN_CPU", no_compiler):
        extensions += cpu_extensions()
    if not left_out(CUDA_MODULES, "STRNN_CUDA", no_compiler or why_no_cuda()):
        extensions.append(cuda_extension())
    return extensions, {"build_ext": build_parts_command()} if extensions else {}


ext_modules, cmdclass = compiled_parts()
setup(ext_modules=ext_modules, cmdclass={"build_py": BuildPackage, **cmdclass})
