"""What every schedule of this package shares: how rates reach the optimizer, and checkpoints.

Counting, the warnings about the order of calls, `step(epoch)` and the names in a checkpoint are
torch's own: these classes extend torch's, and a schedule of this package loads torch's checkpoints
and torch loads ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import copy, deepcopy
from typing import Any, SupportsFloat

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import EPOCH_DEPRECATION_WARNING, LRScheduler, ReduceLROnPlateau

Rate = float | Tensor


def copied(rate: Rate) -> Rate:
    """A rate that nothing else changes: optimizers change tensors in place."""
    return rate.clone() if isinstance(rate, Tensor) else rate


def set_lr(group: dict[str, Any], lr: Rate) -> None:
    """Give a group its rate. A tensor stays the same object: captured graphs read it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr.squeeze() if isinstance(lr, Tensor) else lr)
    else:
        group["lr"] = lr


class _Checked(LRScheduler):
    """A schedule that says which arguments it takes."""

    def _check(self) -> None:
        """Raise ValueError for an argument out of its range."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this schedule, ours or torch's.

        Raises:
            ValueError: an argument in it is out of its range. Nothing has then been loaded.
        """
        loaded = copy(self)
        loaded.__dict__.update(deepcopy(state_dict))
        loaded._check()
        self.__dict__.update(loaded.__dict__)


class ChainScheduler(_Checked):
    """A schedule that gives the next rate from the current one, so that several can act on one
    optimizer and a user may change a rate between steps."""

    def __init__(self, optimizer: Optimizer, last_epoch: int) -> None:
        self._check()
        super().__init__(optimizer, last_epoch)

    def _chain(self, t: int, lr: Rate, base_lr: Rate) -> Rate:
        """The rate of epoch `t` where `lr` is the current one."""
        raise NotImplementedError

    def get_lr(self) -> list[Rate]:
        """The rate of each group for this epoch. For the last rates, call `get_last_lr()`."""
        if not self._get_lr_called_within_step:
            warnings.warn(
                "To get the last learning rate computed by the scheduler, "
                "please use `get_last_lr()`.",
                UserWarning,
                stacklevel=2,
            )
        return [
            self._chain(self.last_epoch, copied(group["lr"]), copied(base_lr))
            for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True)
        ]


class ClosedScheduler(ChainScheduler):
    """A schedule that also gives the rate from the epoch alone: `step(epoch)` uses this form, and
    so does `step()` where the schedule has no other."""

    def _closed(self, t: int, base_lr: Rate) -> Rate:
        """The rate of epoch `t`."""
        raise NotImplementedError

    def _chain(self, t: int, lr: Rate, base_lr: Rate) -> Rate:
        return self._closed(t, base_lr)

    def _get_closed_form_lr(self) -> list[Rate]:
        # torch asks for the closed form by this name.
        return [self._closed(self.last_epoch, copied(base_lr)) for base_lr in self.base_lrs]


class MetricScheduler(_Checked, ReduceLROnPlateau):
    """A schedule that follows a metric. It takes no step when constructed.

    Extends torch's `ReduceLROnPlateau`, whose arithmetic it does not use, because that is the type
    by which torch's combinators and training loops tell that `step` takes a metric.
    """

    def __init__(self, optimizer: Optimizer, **per_group: Any) -> None:
        self._check()
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        for name, value in per_group.items():
            self._spread(name, value)
        self.last_epoch = 0
        self._last_lr = [copied(group["lr"]) for group in optimizer.param_groups]
        self._reset()

    def _reset(self) -> None:
        """Give every state its first value."""
        raise NotImplementedError

    def _update(self, t: int, metric: float) -> None:
        """Change the states, and the rates of the groups."""
        raise NotImplementedError

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take the metric of an epoch.

        Args:
            metrics: a number, or a tensor of one element.
            epoch: deprecated.
        """
        metric = float(metrics)
        if epoch is None:
            epoch = self.last_epoch + 1
        else:
            warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        self.last_epoch = epoch
        self._update(epoch, metric)
        self._last_lr = [copied(group["lr"]) for group in self.optimizer.param_groups]

    def _spread(self, name: str, value: Any) -> None:
        """Keep an argument that is one value for all groups or a list with one for each."""
        groups = self.optimizer.param_groups
        each = list(value) if isinstance(value, (list, tuple)) else [value] * len(groups)
        if len(each) != len(groups):
            raise ValueError(f"expected {len(groups)} {name}s, got {len(each)}")
        default = None if isinstance(value, (list, tuple)) else value
        self.__dict__.update({f"default_{name}": default, f"{name}s": each})

    def _groups(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Each group with its values of the named arguments. A single value serves groups that were
        added since; for a list RuntimeError is raised."""
        groups = self.optimizer.param_groups
        for name in names:
            given = len(getattr(self, f"{name}s"))
            default = getattr(self, f"default_{name}")
            if given != len(groups) and default is None:
                raise RuntimeError(
                    f"The number of param groups in the `optimizer` ({len(groups)}) differs from "
                    f"when `{type(self).__name__}` was initialized ({given}), usually due to a new "
                    f"param group being added to the optimizer. Please modify the `{name}s` field "
                    "to match the length of the `optimizer` param groups."
                )
            if given != len(groups):
                self._spread(name, default)
        yield from zip(groups, *(getattr(self, f"{n}s") for n in names), strict=True)
