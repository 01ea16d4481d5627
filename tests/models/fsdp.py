"""Trains with FSDP2 in two processes what one trains alone; run by test_train under torchrun."""

from __future__ import annotations

import torch
import torch.distributed as dist
from strnn_models import STRNN
from strnn_models.layers.backbone import FrameCNN
from strnn_models.systems.attention_pooling import AttentionPooling
from strnn_models.systems.categorical_dimensional import CategoricalDimensional
from strnn_models.systems.cnn_irnn import CNNIRNN
from strnn_models.systems.continuous import CNNLSTM, InflatedCNN
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

MODELS = {
    "strnn": lambda cnn: STRNN(lambda1=2.0, lambda2=1.0),
    "cnn_irnn": lambda cnn: CNNIRNN(3, 16, backbone=cnn, input_std=0.1),
    "categorical": lambda cnn: CategoricalDimensional(3, backbone=cnn, dropout=0.0, cell="elman"),
    "attention": lambda cnn: AttentionPooling(3, backbone=cnn),
    "lstm": lambda cnn: CNNLSTM(3, backbone=cnn, hidden_size=8),
    "inflated": lambda cnn: InflatedCNN(3, backbone=cnn),
}


def scores(output) -> Tensor:
    if hasattr(output, "log_probs"):
        return output.log_probs
    output = getattr(output, "scores", output)
    return output if output.ndim == 2 else output.mean(1)


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores(model(x)), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if isinstance(model, STRNN):
            model.proximal_step_(1e-2)


def main() -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(0)
    clips, electrodes = torch.rand(8, 4, 1, 8, 8), torch.randn(8, 9, 62, 5)
    y = torch.randint(3, (8,))
    for name, make in MODELS.items():
        x = electrodes if name == "strnn" else clips
        models = []
        for _ in range(2):
            torch.manual_seed(1)
            models.append(make(FrameCNN(1, [4])))
        alone, sharded = models
        fully_shard(sharded, mesh=mesh)
        train(alone, x, y)
        train(sharded, x[rank::count], y[rank::count])
        for key, value in sharded.state_dict().items():
            torch.testing.assert_close(
                value.full_tensor(), alone.state_dict()[key], rtol=1e-3, atol=1e-4
            )
        if name == "strnn":
            zeros = (sharded.spatial.projection.weight.full_tensor() == 0).float().mean()
            assert 0.05 < zeros < 0.95
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
