"""A running average: one tensor, lists of them, and the update that kernels are made of."""

from optdsl.targets.average.lower import NOTE, lower, update_of
from optdsl.targets.average.view import View

__all__ = ["NOTE", "View", "lower", "update_of"]
