"""Ready models built on `strnn_kernels`, one file for each system."""

from strnn_models.strnn import STRNN

__all__ = ["STRNN"]
