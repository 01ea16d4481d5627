"""The one rule for products of float32: exact, unless the user allows TF32 for matrix products."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result  # dynamo guards this setting itself, and compiles again
def is_allowed(dtype: torch.dtype) -> bool:
    """Whether products of operands of this dtype may be made of TF32."""
    return dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
