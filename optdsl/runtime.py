"""The names that emitted modules take from elsewhere: name -> module, `""` for `import name`.

A module's imports follow from them, and so does what a spec cannot call its own names.
"""

from __future__ import annotations

STANDARD = {
    "math": "",
    "bisect_right": "bisect",
    "Counter": "collections",
    **dict.fromkeys(("Callable", "Iterable"), "collections.abc"),
    **dict.fromkeys(("Any", "ClassVar", "Literal"), "typing"),
}
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
# What the modules of averages take from elsewhere in the package.
AVERAGE = {
    **{name: f".{module}" for name, module in RUNTIME.items()},
    "Average": "._average",
    "Tensors": ".._tensors",
}
# What the modules of schedules take from elsewhere in the package and in torch.
SCHEDULE = {
    "Optimizer": "torch.optim",
    **dict.fromkeys(("ChainScheduler", "ClosedScheduler", "MetricScheduler"), "._scheduler"),
    **dict.fromkeys(("ABSENT", "Group"), "._scheduler"),
    "Function": "._function",
    "Rate": "._parameters",
    **dict.fromkeys(("floor_log", "phase_of"), "._forms"),
}
