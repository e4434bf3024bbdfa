"""Operations on lists of tensors where `torch._foreach_*` does not give the for-loop's bits."""

from __future__ import annotations

from typing import Any

import torch

from ._tensors import Tensors

HALF = (torch.float16, torch.bfloat16)


def scale_(tensors: Tensors, factor: Any) -> None:
    """Multiply in place by a number, or by one for each tensor.

    On the CPU `_foreach_mul_` rounds the number to a half type first, where `mul_` multiplies in
    float32.
    """
    if not tensors or tensors[0].dtype not in HALF or tensors[0].device.type != "cpu":
        torch._foreach_mul_(tensors, factor)
        return
    factors = factor if isinstance(factor, list) else [factor] * len(tensors)
    for tensor, each in zip(tensors, factors, strict=True):
        tensor.mul_(each)
