"""Build of the compiled parts; everything else stands in pyproject.toml.

Two extensions: ``strnn_kernels._C`` (the CPU ops, through torch's stable ABI: one binary for torch
2.10 and later) and ``strnn_kernels._planner`` (the compiler of topologies, pybind11, no torch).
Without a C++ compiler the package installs without them, says so, and ``python -m
strnn_kernels.info`` repeats it; STRNN_CPU=1 makes that an error, STRNN_CPU=0 leaves them out.
"""

import os
import shutil
import sys

from setuptools import setup

CSRC = "csrc"
# Errno and traps are never read: without them the compiler may vectorise calls and speculate.
# -Wno-psabi: vectors never cross the library's boundary; -Wno-maybe-uninitialized: false alarms
# from gcc 12's own intrinsics.
COMPILE_FLAGS = [
    "-O3",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
STABLE_ABI = [("TORCH_TARGET_VERSION", "0x020a000000000000")]


def has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "c++").split()[0]) is not None


def compiled_parts():
    wanted = os.environ.get("STRNN_CPU", "")
    if wanted == "0":
        return [], {}
    if not has_compiler():
        message = "strnn-kernels: no C++ compiler found (CXX or c++)"
        if wanted == "1":
            sys.exit(message)
        print(message + "; installing without the CPU backend", file=sys.stderr)
        return [], {}
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    ops = CppExtension(
        "strnn_kernels._C",
        [
            f"{CSRC}/bindings.cpp",
            f"{CSRC}/cpu/dispatch.cpp",
            f"{CSRC}/cpu/capability_baseline.cpp",
            f"{CSRC}/cpu/capability_avx2.cpp",
            f"{CSRC}/cpu/capability_avx512.cpp",
        ],
        define_macros=STABLE_ABI,
        extra_compile_args=COMPILE_FLAGS,
        py_limited_api=True,
    )
    planner = CppExtension(
        "strnn_kernels._planner",
        [f"{CSRC}/planner.cpp"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=["-O2", "-fvisibility=hidden"],
    )
    return [ops, planner], {"build_ext": BuildExtension}


ext_modules, cmdclass = compiled_parts()
setup(ext_modules=ext_modules, cmdclass=cmdclass)
