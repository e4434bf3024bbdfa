"""The names that emitted modules take from elsewhere: name -> module, `""` for `import name`.

A module's imports follow from them, and so does what a spec cannot call its own names.
"""

from __future__ import annotations

STANDARD = {"math": "", "Any": "typing", "ClassVar": "typing", "Callable": "collections.abc"}
TORCH = {"torch": "", "Tensor": "torch", "ParamsT": "torch.optim.optimizer"}
# The shared modules of the package.
RUNTIME = {
    "_numbers": ".",
    "scale_": "._foreach",
    **dict.fromkeys(("Optimizer", "Routine", "Row"), "._optimizer"),
    **dict.fromkeys(("Group", "Rows", "Slot"), "._slots"),
    **dict.fromkeys(("as_complex", "as_complex_list", "as_real", "as_real_list"), "._tensors"),
    **dict.fromkeys(("dot", "full_like", "max_abs", "number", "zeros_along"), "._tensors"),
}
