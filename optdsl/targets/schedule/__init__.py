"""One class of the emitted `lr_scheduler` module for each schedule."""

from optdsl.targets.schedule.documentation import equations, page
from optdsl.targets.schedule.lower import lower

__all__ = ["equations", "lower", "page"]
