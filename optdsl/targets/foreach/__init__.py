"""Lists of tensors."""

from optdsl.targets.foreach.lower import lower

__all__ = ["lower"]
