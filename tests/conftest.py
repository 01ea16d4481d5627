import pytest, torch
@pytest.fixture(autouse=True)
def s():
    torch.set_num_threads(1); yield
