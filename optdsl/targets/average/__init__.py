"""A running average: one tensor at a time, lists of them, and one kernel launch for all."""

from optdsl.targets.average.lower import kernel, lower

__all__ = ["kernel", "lower"]
