"""The emulator as fixtures; without g++ or the CUDA headers the tests that need it are skipped."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch


def _harness():
    name = "strnn_cuda_host_harness"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("harness.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def harness():
    found = _harness()
    if found.missing():
        pytest.skip(f"the emulator needs g++ and the CUDA headers: {found.missing()}")
    return found


@pytest.fixture(scope="session")
def switch(harness):
    return harness.Switch()


@pytest.fixture(scope="session")
def fast(harness):
    return harness.build("fast")


@pytest.fixture(scope="session")
def race(harness):
    return harness.build("race")


@pytest.fixture(autouse=True)
def one_thread():
    """The emulator runs on one thread; so does what it is compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
