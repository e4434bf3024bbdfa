"""One call for all tensors on the CPU: plain C, in which a compiler finds vector instructions."""

from optdsl.targets.c.lower import lower
from optdsl.targets.c.view import View

__all__ = ["View", "lower"]
