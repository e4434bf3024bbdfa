"""One kernel launch for all tensors, and the scalar program on the device."""

from optdsl.targets.triton.lower import lower
from optdsl.targets.triton.view import View

__all__ = ["View", "lower"]
