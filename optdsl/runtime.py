"""The names of a package beside those of its definitions: name -> module, `""` for `import name`.

Some, emitted modules import; others, packages export. So a spec cannot call its own names so.
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
    **dict.fromkeys(("_numbers", "_totals"), "."),
    "scale_": "._foreach",
    **dict.fromkeys(("Optimizer", "Routine", "Row"), "._optimizer"),
    "precision": "._policy",
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
    **dict.fromkeys(("floor_log", "phase_of", "whole"), "._forms"),
}

# Not every supported torch has it, so `import *` does not ask for it.
RECENT = "swap_in_optimizer_params_and_state"
# What torch has beside algorithms, by the module: a package can stand in its place. Of these,
# `import *` does not ask for what torch's does not.
FROM_TORCH = {
    "torch.optim": ("Optimizer", "swa_utils", RECENT),
    "torch.optim.lr_scheduler": ("EPOCH_DEPRECATION_WARNING", "LRScheduler", "_LRScheduler"),
    "torch.optim.swa_utils": ("SWALR",),
}
UNLISTED = (RECENT, "EPOCH_DEPRECATION_WARNING", "_LRScheduler")
# What the runtime of optimizers has for users, and in which of its modules.
OPTIMIZER_RUNTIME = {"set_default": "_optimizer"}
# The same of schedules.
SCHEDULE_RUNTIME = {
    "ChainedScheduler": "_combine",
    "SequentialLR": "_combine",
    "Schedule": "_schedule",
    "Function": "_function",
    "product": "_function",
    "sequence": "_function",
}
# The same of averages.
AVERAGE_RUNTIME = {
    "AveragedModel": "_model",
    "PARAM_LIST": "_average",
    "get_ema_avg_fn": "_functions",
    "get_ema_multi_avg_fn": "_functions",
    "get_swa_avg_fn": "_functions",
    "get_swa_multi_avg_fn": "_functions",
    "update_bn": "_update_bn",
}
