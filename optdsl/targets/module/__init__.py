"""The class: constructor, checks, slots, documentation."""

from optdsl.targets.module.lower import lower

__all__ = ["lower"]
