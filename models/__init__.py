"""Ready models built on `strnn_kernels`: published systems, their layers, data and training."""

import sys

from strnn_models.layers import backbone, fusion, losses, postprocess
from strnn_models.systems import (
    attention_pooling,
    categorical_dimensional,
    cnn_irnn,
    continuous,
    strnn,
)
from strnn_models.systems.attention_pooling import AttentionPooling
from strnn_models.systems.categorical_dimensional import CategoricalDimensional
from strnn_models.systems.cnn_irnn import CNNIRNN
from strnn_models.systems.continuous import CNNLSTM, InflatedCNN
from strnn_models.systems.strnn import STRNN

__all__ = [
    "CNNIRNN",
    "CNNLSTM",
    "STRNN",
    "AttentionPooling",
    "CategoricalDimensional",
    "InflatedCNN",
]

# What was imported as strnn_models.losses, say, before it had a folder still is: the same module.
for _module in (
    *(backbone, fusion, losses, postprocess),
    *(attention_pooling, categorical_dimensional, cnn_irnn, continuous, strnn),
):
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module
