"""One tensor at a time."""

from optdsl.targets.eager.lower import lower

__all__ = ["lower"]
