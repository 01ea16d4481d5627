"""What is executed; without nvcc the CUDA half is skipped, and says so."""

from __future__ import annotations

import os

import pytest

from tests.ptx import build

# What is compiled without ptxas is not for others.
os.environ["TRITON_CACHE_DIR"] = str(build.BUILD / "triton")


@pytest.fixture(scope="session")
def cuda(is_exhaustive):
    """The CUDA backend; in CI each file for one architecture."""
    if build.missing():
        pytest.skip(f"the CUDA half is compiled by nvcc: {build.missing()}")
    return build.cuda(architectures=tuple(build.ARCHITECTURES) if is_exhaustive else ())
