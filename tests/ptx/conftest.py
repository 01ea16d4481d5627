"""What is executed; without nvcc the CUDA half is skipped, and says so."""

from __future__ import annotations

import os

import pytest

from tests.ptx import build

# What is compiled without ptxas is not for others.
os.environ["TRITON_CACHE_DIR"] = str(build.BUILD / "triton")


def pytest_addoption(parser):
    """Everything, not the choice that CI runs."""
    parser.addoption("--exhaustive", action="store_true", help="tests/ptx: every case there is")


@pytest.fixture(scope="session")
def is_exhaustive(request) -> bool:
    """Whether everything is to be run."""
    return request.config.getoption("--exhaustive", default=False)


@pytest.fixture(scope="session")
def cuda():
    """The CUDA backend, compiled for sm_80 and sm_90a."""
    if build.missing():
        pytest.skip(f"the CUDA half is compiled by nvcc: {build.missing()}")
    return build.cuda()


@pytest.fixture
def wanted(is_exhaustive):
    """wanted(x): skips what is left out of CI, where x is false."""

    def check(is_in_ci: bool) -> None:
        if not (is_in_ci or is_exhaustive):
            pytest.skip("left out; --exhaustive runs it")

    return check
