"""`_math.pow` on two numbers."""

import torch
import triton
import triton.language as tl

from generated._triton import _math


@triton.jit
def kernel(GIVEN, RESULT):
    tl.store(RESULT, _math.pow(tl.load(GIVEN), tl.load(GIVEN + 1)))


def of(base: float, exponent: float) -> float:
    result = torch.empty(1, dtype=torch.float64)
    kernel[(1,)](torch.tensor([base, exponent], dtype=torch.float64), result)
    return result.item()
