"""One tensor at a time, out of place."""

from optdsl.targets.functional.lower import lower

__all__ = ["lower"]
