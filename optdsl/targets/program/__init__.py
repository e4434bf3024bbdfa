"""What fused kernels of all backends share: the scalar program, and the kernel as an analysis."""

from optdsl.targets.program.kernel import Kernel, kernel_of
from optdsl.targets.program.lower import lower, view
from optdsl.targets.program.view import View

__all__ = ["Kernel", "View", "kernel_of", "lower", "view"]
