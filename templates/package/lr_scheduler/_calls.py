"""Whether the optimizer has taken a step, which torch wants before the first of a schedule.

torch replaces `optimizer.step` on the instance to see it called. A hook sees the same without
touching it: the hook runs in steps that were wrapped, overridden by a method that calls the
original, or compiled. It is one function for all optimizers and holds none, so it makes no cycle.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_HELP = "See more details at https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
_OVERRIDDEN = (
    "Seems like `optimizer.step()` has been overridden after learning rate scheduler "
    "initialization. Please, make sure to call `optimizer.step()` before "
    f"`lr_scheduler.step()`. {_HELP}"
)
_TOO_EARLY = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. In PyTorch 1.1.0 and "
    "later, you should call them in the opposite order: `optimizer.step()` before "
    "`lr_scheduler.step()`.  Failure to do this will result in PyTorch skipping the first value "
    f"of the learning rate schedule. {_HELP}"
)


def _note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # torch's schedulers keep what they saw under this name, too.
    optimizer._opt_called = True  # type: ignore[attr-defined]


def watch(optimizer: Optimizer) -> None:
    """See the steps that an optimizer takes from now on. Optimizers that were copied or unpickled
    have lost their hooks."""
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", None)
    if hooks is not None and _note not in hooks.values():
        optimizer.register_step_post_hook(_note)


def versions(optimizer: Optimizer) -> int:
    """A number that changes when a parameter does."""
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    return sum(p._version for p in tensors if not p.is_inference())


def warn_of_order(optimizer: Optimizer, before: int | None) -> None:
    """Warn, at the place that called the caller, of a step of the optimizer that is missing.

    Silent where there may have been one: parameters are not what they were (`before`), a gradient
    is not finite, so that a `GradScaler` may have skipped it, or a graph may have replayed it.
    """
    if getattr(optimizer, "_opt_called", False) or before != versions(optimizer):
        return
    if any(group.get("capturable") for group in optimizer.param_groups):
        return
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    if not all(_is_finite(grad) for grad in grads if grad is not None):
        return
    own = vars(optimizer).get("step")
    is_torchs = own is None or hasattr(own, "_wrapped_by_lr_sched")
    message = _TOO_EARLY if is_torchs else _OVERRIDDEN
    warnings.warn(message, UserWarning, stacklevel=3)


def _is_finite(grad: Tensor) -> bool:
    return bool(torch.isfinite(grad._values() if grad.is_sparse else grad).all())
