"""What the tests of the video models have in common."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from strnn_models.layers.backbone import FrameCNN


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_layout(monkeypatch):
    """Pictures are drawn where they stand: to arrange them takes half the time of a report."""
    if find_spec("matplotlib"):
        name = "matplotlib.layout_engine.do_constrained_layout"
        monkeypatch.setattr(name, lambda *_, **__: None)


@pytest.fixture
def small_cnn():
    """A frame CNN of six channels for frames of at least 4 x 4."""
    return FrameCNN(2, (4, 6), convs=1)


@pytest.fixture
def same_gradients():
    """Holds a model against its twin: same outputs, same gradients of x and of every parameter."""

    def check(module, model, twin, x):
        results = []
        for run in (model, twin):
            module.zero_grad(set_to_none=True)
            leaf = x.clone().requires_grad_()
            outputs = run(leaf)
            outputs = (
                [o for o in outputs if o is not None]
                if type(outputs) is not torch.Tensor
                else [outputs]
            )
            loss = sum(
                (o * torch.linspace(-1, 2, o.numel()).view_as(o).to(o)).sum() for o in outputs
            )
            loss.backward()
            grads = {name: p.grad for name, p in module.named_parameters()}
            results.append(([o.detach() for o in outputs], grads, leaf.grad))
        assert all(grad is not None for grad in results[1][1].values())
        torch.testing.assert_close(results[0], results[1])

    return check
