"""Schedules as functions of the epoch: `f(t, base)`, without an optimizer."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from ._parameters import Rate, copied

if TYPE_CHECKING:
    from ._scheduler import Scheduler

# The value of an epoch from the epoch and the first value.
Form = Callable[..., Any]


class _Group(dict[str, Any]):
    """A parameter group with every number that a schedule may drive."""

    def __missing__(self, name: str) -> float:
        return 0.0


class _StandIn(Optimizer):
    """What a schedule is given in the place of an optimizer when nothing is to be driven."""

    def __init__(self) -> None:
        self.defaults = {"lr": 1.0, "momentum": 0.0}
        self.param_groups = [_Group(params=[], **self.defaults)]


class Function:
    """A schedule in closed form: `f(t, base)` is the rate of epoch `t` when the first is `base`.
    Made by the class method `function` of schedules, for example
    `CosineAnnealingLR.function(T_max=100)`.

    Args:
        schedule: the class of the schedule.
        arguments: those of its constructor, without the optimizer.

    Raises:
        ValueError: an argument is out of its range.
    """

    # LambdaLR, torch's too, puts into checkpoints what a function's `__dict__` has: nothing. The
    # arguments come from the constructor, and a class is no part of a checkpoint.
    __slots__ = ("__dict__", "_instance", "arguments", "schedule")

    def __init__(self, schedule: type[Scheduler], arguments: dict[str, Any]) -> None:
        self.schedule = schedule
        self.arguments = dict(arguments)
        self._instance = schedule(_StandIn(), **arguments)

    def __call__(self, t: float, base: Rate = 1.0) -> Rate:
        """The rate of an epoch.

        Args:
            t: the epoch, from 0.
            base: the rate that a group begins with.
        """
        instance = self._instance
        if not hasattr(instance, "_get_closed_form_lr"):
            return self._walk(t, base)
        instance._observe(t)
        return instance._closed(t, self._base(base), *instance._views()[0])

    def _walk(self, t: float, base: Rate) -> Rate:
        """The same where there is a chain alone: from epoch to epoch."""
        instance, view = self._instance, self._instance._views()[0]
        instance._is_initial = True
        rate = instance._chain(0, base, base, *view)
        instance._is_initial = False
        for epoch in range(1, math.floor(t) + 1):
            rate = instance._chain(epoch, rate, base, *view)
        return rate

    def chain(self, t: float, lr: Rate, base: Rate = 1.0) -> Rate:
        """The rate of an epoch from the rate of the epoch before. Raises NotImplementedError where
        the schedule has no such form.

        Args:
            t: the epoch, from 1.
            lr: the rate of epoch `t - 1`.
            base: the rate that a group begins with.
        """
        instance = self._instance
        instance._observe(t)
        return instance._chain(t, lr, self._base(base), *instance._views()[0])

    def _base(self, base: Rate) -> Rate:
        # Some schedules have a first rate of their own.
        instance = self._instance
        own = "base_lr" in instance.per_group or "initial_lr" in instance.grouped
        return instance.base_lrs[0] if own else copied(base)

    def __reduce__(self) -> Any:
        return Function, (self.schedule, self.arguments)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.schedule.__name__}.function({given})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and self.__reduce__() == other.__reduce__()

    __hash__ = None  # type: ignore[assignment]


def pieces(milestones: Sequence[Any], count: int) -> list[Any]:
    """The epochs at which the pieces of a sequence end. Raises ValueError unless they fit."""
    milestones = list(milestones)
    if len(milestones) != count - 1:
        raise ValueError(
            "Sequential Schedulers expects number of schedulers provided to be one more than the "
            f"number of milestone points, but got number of schedulers {count} and the number of "
            f"milestones to be equal to {len(milestones)}"
        )
    if not all(a <= b for a, b in zip([0, *milestones], milestones, strict=False)):
        raise ValueError(f"milestones have to be in order and not negative, but got {milestones}")
    return milestones


class _Sequence:
    __slots__ = ("__dict__", "functions", "milestones")

    def __init__(self, functions: Sequence[Form], milestones: Sequence[float]) -> None:
        self.functions = list(functions)
        self.milestones = pieces(milestones, len(self.functions))

    def __call__(self, t: float, base: Rate = 1.0) -> Rate:
        index = bisect_right(self.milestones, t)
        start = self.milestones[index - 1] if index else 0
        value: Rate = self.functions[index](t - start, base)
        return value

    def __repr__(self) -> str:
        return f"sequence({self.functions!r}, {self.milestones!r})"


class _Product:
    __slots__ = ("__dict__", "functions")

    def __init__(self, functions: Sequence[Form]) -> None:
        self.functions = list(functions)

    def __call__(self, t: float, base: Rate = 1.0) -> Rate:
        first, *others = self.functions
        value: Rate = first(t, base)
        for other in others:
            value = value * relative(other(t, base), base)
        return value

    def __repr__(self) -> str:
        return f"product({', '.join(map(repr, self.functions))})"


def relative(rate: Rate, base: Rate) -> Rate:
    """A rate as a multiple of the first one. Where that is 0 there is nothing to multiply."""
    return rate / base if base != 0 else 1.0


def sequence(functions: Sequence[Form], milestones: Sequence[float]) -> Form:
    """One function after the other, each from its own epoch 0 on.

    Args:
        functions: of `(t, base)`.
        milestones: the epochs at which the second and each further function begins.

    Raises:
        ValueError: there is not one milestone less than functions, or they are not in order.
    """
    return _Sequence(functions, milestones)


def product(*functions: Form) -> Form:
    """The functions together: what each makes of `base` multiplies the value of the first.

    Args:
        functions: of `(t, base)`; one at least.

    Raises:
        ValueError: there is no function.
    """
    if not functions:
        raise ValueError("product expects at least one function, but got none.")
    return _Product(functions)
