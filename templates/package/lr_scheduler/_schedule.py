"""Any hyperparameters as functions of the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from ._calls import watch
from ._function import Form
from ._parameters import Parameter, Rate, copied, unless_it_fails
from ._scheduler import LR, ClosedScheduler, not_resumed


class Schedule(ClosedScheduler):
    """Drives hyperparameters of an optimizer, this package's or torch's, by functions of the epoch.

    Args:
        optimizer (Optimizer): whose hyperparameters are driven.
        functions: a function of `(t, base)` that gives the value of epoch `t` where `base` is the
            group's first value, or a dict of such functions for several hyperparameters. Schedules
            give them: `CosineAnnealingLR.function(T_max=100)`.
        last_epoch (int): the epoch to resume behind. Default: -1, a new schedule.
        parameter (str): the path of the hyperparameter where `functions` is one function:
            "weight_decay", "betas[1]"; "momentum" is the first of the betas where there is no
            other. Default: "lr".

    Raises:
        TypeError: it is no optimizer, or no function.
        ValueError: a group has no such number, or a function gives NaN or infinity.
        KeyError: `last_epoch` is given and a group does not say with which value it began.

    Example::

        Schedule(optimizer, {
            "lr": CosineAnnealingLR.function(T_max=100),
            "weight_decay": lambda t, base: base * (1 + t / 100),
        })
    """

    fractional: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer,
        functions: Form | Mapping[str, Form],
        last_epoch: int = -1,
        *,
        parameter: str = LR,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        self._forms = dict(functions) if isinstance(functions, Mapping) else {parameter: functions}
        if not self._forms:
            raise ValueError("Schedule expects at least one hyperparameter, but got none.")
        for path, form in self._forms.items():
            if not callable(form):
                raise TypeError(f"{path} should be a function, but got {type(form).__name__}")
            Parameter.at(path).require(optimizer)
        self.last_epoch = last_epoch
        self._bases: dict[str, list[Rate]] = {path: [] for path in self._forms}
        watch(optimizer)
        with unless_it_fails(optimizer):
            self._initial_step()

    @property
    def parameters(self) -> tuple[str, ...]:
        """The paths of what is driven."""
        return tuple(self._forms)

    @property
    def base_lrs(self) -> list[Rate]:  # type: ignore[override]
        """The first values of the first hyperparameter: the rates, where there is one."""
        return self._bases[self.parameters[0]]

    def get_last_values(self, parameter: str) -> list[Rate]:
        """The current values of a hyperparameter, one for each group."""
        return Parameter.at(parameter).read_each(self.optimizer)

    def _admit(self) -> None:
        groups = self.optimizer.param_groups
        for path, bases in self._bases.items():
            parameter, initial = Parameter.at(path), f"initial_{path}"
            parameter.unshare(self.optimizer)
            new = groups[len(bases) :]
            for index, group in enumerate(new):
                if self.last_epoch == -1 or bases:
                    group.setdefault(initial, copied(parameter.read(group)))
                elif initial not in group:
                    raise KeyError(not_resumed(initial, index))
            self._bases[path] = [*bases, *(copied(group[initial]) for group in new)]

    def _values(self, path: str, t: float) -> list[Rate]:
        values: list[Rate] = [self._forms[path](t, copied(base)) for base in self._bases[path]]
        for value in values:
            if not (isinstance(value, Tensor) or math.isfinite(value)):
                raise ValueError(f"{path} would be {value} at epoch {t}")
        return values

    def _closed_rates(self) -> list[Rate]:
        return self._values(self.parameters[0], self.last_epoch)

    def _update_lr(self, epoch: float | None = None) -> None:
        t = self.last_epoch + 1 if epoch is None else epoch
        self._admit()
        all_values = {path: self._values(path, t) for path in self._forms}
        self.last_epoch = math.floor(t)
        for path, values in all_values.items():
            Parameter.at(path).write_each(self.optimizer, values)
        self._last_lr = self.get_last_values(self.parameters[0])

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: the epoch, and the first values by their paths."""
        return {"last_epoch": self.last_epoch, "base_values": deepcopy(self._bases)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of a schedule of the same hyperparameters.

        Raises:
            ValueError: it is of others. Nothing has then been loaded.
        """
        bases = deepcopy(state_dict["base_values"])
        if bases.keys() != self._bases.keys():
            raise ValueError(
                f"a schedule of {', '.join(bases)}, not of {', '.join(self.parameters)}"
            )
        self._bases = {path: bases[path] for path in self._forms}
        self.last_epoch = state_dict["last_epoch"]
        self._last_lr = self._closed_rates()
