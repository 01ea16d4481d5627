"""A twin of each system in plain PyTorch, which the tests hold it against. Never fast.

STRNN's has the same constructor and parameters. Those of the video models take a model, whose
parameters and 2-D backbone they use, and the model's arguments, and give the model's outputs.
"""

from strnn_models.reference.strnn import STRNN

__all__ = ["STRNN"]
