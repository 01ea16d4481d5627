"""The sparse projection as a module."""

from __future__ import annotations

import math

import torch
from torch import nn

from strnn_kernels import checks, functional


class SparseProjection(nn.Module):
    """s[b, d, k] = sum over n of weight[d, k, n] h[b, n, d].

    An L1 penalty with a proximal step makes exact zeros.

    Args:
        num_directions: D.
        num_nodes: N.
        projection_size: K.
        device: of the weight.
        dtype: of the weight.

    Attributes:
        weight: (D, K, N), uniform in +-1 / sqrt(N) at first, as nn.Linear over the nodes would be.

    Source: the sparse projection of STRNN (Zhang et al., IEEE Trans. Cybernetics 49(3), 2019).
    """

    def __init__(
        self,
        num_directions: int,
        num_nodes: int,
        projection_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        D = checks.positive(name, "num_directions", num_directions)
        N = checks.positive(name, "num_nodes", num_nodes)
        K = checks.positive(name, "projection_size", projection_size)
        self.weight = nn.Parameter(torch.empty((D, K, N), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight anew."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Projects h (B, N, D, H) to (B, D, K, H)."""
        return functional.sparse_projection(h, self.weight)

    def penalty(self) -> torch.Tensor:
        """The L1 norm of the weight, a scalar with a gradient."""
        return self.weight.abs().sum()

    def proximal_step_(self, amount: float) -> None:
        """Shrinks every entry by amount (learning rate x penalty) and stops at exact zero."""
        functional.soft_threshold_(self.weight, amount)

    def density(self) -> float:
        """The share of entries that are not exactly zero."""
        return torch.count_nonzero(self.weight.detach()).item() / self.weight.numel()

    def extra_repr(self) -> str:
        """The sizes."""
        D, K, N = self.weight.shape
        return f"num_directions={D}, num_nodes={N}, projection_size={K}"
