"""What every schedule of this package shares: counting, rates of the groups, checkpoints.

The classes are torch's by inheritance, by the names of their attributes, which are the format of
checkpoints, and by the methods that torch's combinators call: `_initial_step`, `_update_lr`,
`_get_closed_form_lr`. The code is not: torch's constructor replaces `optimizer.step`.

A class of this package has formulas and checks, and says with class attributes where values are:

    per_group     arguments with one value for all groups or a list: kept as the list `<name>s`
    grouped       arguments kept in the parameter groups, under their name
    functions     attributes that hold a function or a list of them: in no checkpoint
    observed      attributes in checkpoints that are not loaded from there
    unsaved       attributes that are in no checkpoint
    fractional    whether epochs may be fractions
    targets       what is driven besides `parameter`; `_closed_<target>` has its form

Its constructor sets attributes and calls the one here with the values of `per_group` and `grouped`
arguments; ABSENT is the value of one that does not exist. Methods that a class may have:

    _check()                            raise ValueError for an argument out of its range
    _check_group(group)                 the same for the values of a group
    _begin(group)                       first values of what the parameter groups keep
    _closed(t, base_lr[, group])        the rate of epoch t
    _chain(t, lr, base_lr[, group])     the same from the current rate
    _closed_momentum(t[, group])        the value of a target
    _observe(t)                         attributes that follow the epoch

`group` is there where a class has values in `per_group` or `grouped`.
"""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, ClassVar, SupportsFloat

from torch.optim import Optimizer
from torch.optim.lr_scheduler import EPOCH_DEPRECATION_WARNING, LRScheduler, ReduceLROnPlateau

from ._calls import versions, warn_of_order, watch
from ._function import Function
from ._parameters import Parameter, Rate, copied, unless_it_fails

LR = "lr"
# An argument that does not exist for what the others are.
ABSENT: Any = object()


class Group:
    """A parameter group as formulas see it: the schedule's lists have one value in it, and what is
    written goes into the group of the optimizer."""

    __slots__ = ("_parameter", "lists", "values")

    def __init__(self, values: dict[str, Any], lists: dict[str, Any], parameter: str) -> None:
        self.values = values
        self.lists = lists
        self._parameter = parameter

    def key(self, name: str) -> str:
        """The name in the optimizer's group: a schedule of the weight decay keeps its `max_lr` as
        `max_weight_decay`, so that it shares nothing with a schedule of the rate."""
        if self._parameter == LR or not name.endswith("_lr"):
            return name
        return name[: -len(LR)] + self._parameter

    def __getitem__(self, name: str) -> Any:
        return self.lists[name] if name in self.lists else self.values[self.key(name)]

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[self.key(name)] = value


class Scheduler(LRScheduler):
    """Base of all schedules of one hyperparameter, most often of the learning rate."""

    per_group: ClassVar[tuple[str, ...]] = ()
    grouped: ClassVar[tuple[str, ...]] = ()
    functions: ClassVar[tuple[str, ...]] = ()
    observed: ClassVar[tuple[str, ...]] = ()
    unsaved: ClassVar[tuple[str, ...]] = ()
    fractional: ClassVar[bool] = False

    # The path of the hyperparameter; an attribute of the instance, so in checkpoints, where it is
    # another than torch's.
    parameter: str = LR

    def __init__(
        self, optimizer: Optimizer, last_epoch: int = -1, parameter: str = LR, **values: Any
    ) -> None:
        self.base_lrs: list[Rate] = []
        self._take(optimizer, parameter, values)
        self.last_epoch = last_epoch
        self._versions: int | None = versions(optimizer)
        watch(optimizer)
        with unless_it_fails(optimizer):
            self._enter(values)
            self._initial_step()

    @classmethod
    def _function(cls, **arguments: Any) -> Function:
        return Function(cls, arguments)

    @property
    def targets(self) -> tuple[str, ...]:
        return ()

    @property
    def _parameter(self) -> Parameter:
        return Parameter.at(self.parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # Whether the copied optimizer had taken a step is not known.
        self._versions = None
        watch(self.optimizer)

    # Construction

    def _take(self, optimizer: Optimizer, parameter: str, values: dict[str, Any]) -> None:
        """Keep arguments and check them. The optimizer is as it was afterwards."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer = optimizer
        if parameter != LR:
            self.parameter = parameter
        self._parameter.require(optimizer)
        self._single: dict[str, bool] = {}
        for name, value in values.items():
            if value is not ABSENT:
                self._spread(name, value)
        if "momentum" in self.targets:
            if not all(Parameter.at("momentum").is_in(g) for g in optimizer.param_groups):
                raise ValueError(
                    "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"
                )
            self.use_beta1 = "betas" in optimizer.defaults
        for target in self.targets:
            Parameter.at(target).require(optimizer)
        self._check()
        for index in range(len(optimizer.param_groups)):
            group = self._group(index)
            planned = Group(dict(group.values), group.lists, parameter)
            self._fill(planned, index, values)
            self._check_group(planned)

    def _spread(self, name: str, value: Any) -> None:
        """Keep an argument that is one value for all groups or a list with one for each."""
        groups = self.optimizer.param_groups
        is_list = isinstance(value, (list, tuple))
        if is_list and len(value) != len(groups):
            raise ValueError(self._length_error(name, len(value), len(groups)))
        self._single[name] = not is_list
        if name in self.per_group:
            each = value if is_list else [value] * len(groups)
            setattr(self, f"{name}s", [copied(v) for v in each])

    def _length_error(self, name: str, given: int, groups: int) -> str:
        if f"{name}s" in self.functions:
            return f"Expected {groups} {name}s, but got {given}"
        return (
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {given} values, param_groups has {groups}."
        )

    def _check(self) -> None:
        """Raise ValueError for an argument out of its range."""

    def _check_group(self, group: Group) -> None:
        """Raise ValueError for a group's value out of its range."""

    def _begin(self, group: Group) -> None:
        """Give a group the first values of what it keeps."""

    def _enter(self, values: dict[str, Any]) -> None:
        """Put into each group what is kept there; its value becomes the base of the schedule."""
        parameter = self._parameter
        parameter.unshare(self.optimizer)
        for target in self.targets:
            Parameter.at(target).unshare(self.optimizer)
        for index in range(len(self.optimizer.param_groups)):
            self._fill(self._group(index), index, values)
            self._enter_group(index)

    def _fill(self, group: Group, index: int, values: dict[str, Any]) -> None:
        """Put a group's values of the arguments into it."""
        for name in self.grouped:
            value = values.get(name, ABSENT)
            if value is not ABSENT:
                group[name] = copied(value if self._single[name] else value[index])

    def _enter_group(self, index: int) -> None:
        parameter, group = self._parameter, self._group(index)
        self._begin(group)
        initial = f"initial_{self.parameter}"
        if self.last_epoch == -1:
            if "base_lr" in self.per_group:
                parameter.write(group.values, group["base_lr"])
            group.values.setdefault(initial, copied(parameter.read(group.values)))
        elif initial not in group.values:
            raise KeyError(not_resumed(initial, index))
        if "base_lr" not in self.per_group:
            self.base_lrs = [*self.base_lrs, copied(group.values[initial])]

    # Groups

    def _lists(self) -> dict[str, list[Any]]:
        return {name: getattr(self, f"{name}s") for name in self.per_group if name in self._single}

    def _group(self, index: int) -> Group:
        values = {name: values[index] for name, values in self._lists().items()}
        return Group(self.optimizer.param_groups[index], values, self.parameter)

    def _views(self) -> list[tuple[Group, ...]]:
        """What the forms take behind their numbers, for each group."""
        groups = self.optimizer.param_groups
        if not (self.per_group or self.grouped):
            return [()] * len(groups)
        lists, parameter = self._lists(), self.parameter
        return [
            (Group(group, {name: values[index] for name, values in lists.items()}, parameter),)
            for index, group in enumerate(groups)
        ]

    def _extend(self, known: int) -> None:
        """Give groups that were added since the values that all have. What was a list has none for
        them: RuntimeError is raised, unless somebody has lengthened it."""
        groups = self.optimizer.param_groups
        for name in self.per_group:
            values = getattr(self, f"{name}s", None)
            if values is not None and len(values) < len(groups):
                self._require_single(name, f"{name}s", len(values))
                more = [copied(values[-1]) for _ in groups[len(values) :]]
                setattr(self, f"{name}s", [*values, *more])
        for index in range(known, len(groups)):
            group = self._group(index)
            for name in self.grouped:
                if name in self._single and group.key(name) not in group.values:
                    self._require_single(name, name, known)
                    group[name] = copied(self._group(known - 1)[name])

    def _require_single(self, name: str, field: str, given: int) -> None:
        if not self._single[name]:
            raise RuntimeError(self._growth_error(field, given))

    def _growth_error(self, field: str, given: int) -> str:
        return (
            "The number of param groups in the `optimizer` "
            f"({len(self.optimizer.param_groups)}) differs from when `{type(self).__name__}` was "
            f"initialized ({given}), usually due to a new param group being added to the "
            f"optimizer. Please modify the `{field}` field to match the length of the "
            "`optimizer` param groups."
        )

    def _admit(self) -> None:
        """Take in the groups that were added since: each begins with the rate that it has."""
        known = len(self.base_lrs)
        if known == len(self.optimizer.param_groups) and not self.per_group:
            return
        self._extend(known)
        for index in range(known, len(self.optimizer.param_groups)):
            self._parameter.unshare(self.optimizer)
            values = self.optimizer.param_groups[index]
            values.setdefault(f"initial_{self.parameter}", copied(self._parameter.read(values)))
            self._check_group(self._group(index))
            self._enter_group(index)

    # Steps

    def _observe(self, t: float) -> None:
        """Refresh the attributes that follow the epoch."""

    def _closed(self, *args: Any, **kwargs: Any) -> Rate:
        """The rate of an epoch."""
        raise NotImplementedError

    def _chain(self, *args: Any, **kwargs: Any) -> Rate:
        """The rate of an epoch from the current one."""
        raise NotImplementedError

    def _initial_step(self) -> None:
        self._step_count = 0
        self._get_lr_called_within_step = False
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    def step(self, epoch: float | None = None) -> None:
        """Give every group its rate of the next epoch.

        Args:
            epoch: deprecated, but for schedules that take fractions: the epoch, instead of the
                next one, in closed form.
        """
        if self.fractional:
            if epoch is not None and epoch < 0:
                raise ValueError(f"Expected non-negative epoch, but got {epoch}")
        else:
            if self._step_count == 1:
                warn_of_order(self.optimizer, self._versions)
            if epoch is not None:
                warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        self._update_lr(epoch)
        if not self.fractional:
            self._step_count += 1

    def _update_lr(self, epoch: float | None = None) -> None:
        self._admit()
        before = self.last_epoch
        self.last_epoch = before + 1 if epoch is None else epoch  # type: ignore[assignment]
        self._get_lr_called_within_step = True
        try:
            self._observe(self.last_epoch)
            form = self.get_lr
            if epoch is not None:
                form = getattr(self, "_get_closed_form_lr", form)
            rates = form()
            targets = {name: self._target_values(name) for name in self.targets}
        except BaseException:
            self.last_epoch = before
            self._observe(max(0, before))
            raise
        finally:
            self._get_lr_called_within_step = False
        if self.fractional:
            self.last_epoch = math.floor(self.last_epoch)
        self._last_lr = self._parameter.write_each(self.optimizer, rates)
        for name, values in targets.items():
            Parameter.at(name).write_each(self.optimizer, values)

    def _warn_if_asked(self) -> None:
        if not self._get_lr_called_within_step:
            warnings.warn(
                "To get the last learning rate computed by the scheduler, "
                "please use `get_last_lr()`.",
                UserWarning,
                stacklevel=3,
            )

    def _closed_rates(self) -> list[Rate]:
        t, pairs = self.last_epoch, zip(self.base_lrs, self._views(), strict=True)
        return [self._closed(t, copied(base), *view) for base, view in pairs]

    def _chained_rates(self) -> list[Rate]:
        t, rates = self.last_epoch, self._parameter.read_each(self.optimizer)
        triples = zip(rates, self.base_lrs, self._views(), strict=True)
        return [self._chain(t, lr, copied(base), *view) for lr, base, view in triples]

    def _target_values(self, name: str) -> list[Rate]:
        form = getattr(self, f"_closed_{name}")
        return [form(self.last_epoch, *view) for view in self._views()]

    # Checkpoints

    _PRIVATE: ClassVar[frozenset[str]] = frozenset({"optimizer", "_single", "_versions"})

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint: attributes under torch's names. Functions are not in it; of other
        callable objects there are the attributes."""
        kept_out = {*self._PRIVATE, *self.unsaved}
        state = {name: value for name, value in vars(self).items() if name not in kept_out}
        for name in self.functions:
            value = state[name]
            state[name] = [_saved(f) for f in value] if isinstance(value, list) else _saved(value)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this schedule, ours or torch's.

        Raises:
            ValueError: an argument in it is out of its range, or it is of a schedule of another
                hyperparameter. Nothing has then been loaded.
        """
        parameter = state_dict.get("parameter", LR)
        if parameter != self.parameter:
            raise ValueError(f"a schedule of {parameter}, not of {self.parameter}")
        kept_out = {*self._PRIVATE, *self.unsaved, *self.observed, *self.functions}
        state = {name: value for name, value in state_dict.items() if name not in kept_out}
        loaded = object.__new__(type(self))
        vars(loaded).update(vars(self) | deepcopy(state))
        loaded._check()
        # Groups that the schedule does not know yet are checked when it takes them in.
        groups: list[Any] = self.optimizer.param_groups
        known = [groups, loaded._last_lr, *loaded._lists().values()]
        for index in range(min(len(values) for values in known)):
            loaded._check_group(loaded._group(index))
        for name in self.functions:
            functions, saved = getattr(self, name), state_dict.get(name)
            if not isinstance(functions, list):
                functions, saved = [functions], [saved]
            for function, values in zip(functions, saved or (), strict=False):
                if values is not None:
                    vars(function).update(deepcopy(values))
        vars(self).update(vars(loaded))
        # In a sequence, a schedule that has not begun stands before epoch 0.
        self._observe(max(0, self.last_epoch))


def not_resumed(initial: str, index: int) -> str:
    """What is wrong when a group does not say with which value it began."""
    return (
        f"param {initial!r} is not specified in param_groups[{index}] when resuming "
        "scheduler with last_epoch >= 0.\nThis typically happens when:\n1. You're trying "
        "to resume training from a checkpoint but haven't properly loaded the optimizer "
        "state\n2. You're using last_epoch >= 0 for a fresh training run (not recommended)"
    )


def _saved(function: Any) -> Any:
    # A class that is called has no attributes of its own to save.
    is_constant = isinstance(function, (types.FunctionType, type))
    if is_constant or not hasattr(function, "__dict__"):
        return None
    return deepcopy(vars(function))


class ChainScheduler(Scheduler):
    """A schedule that gives the next rate from the current one, so that several can act on one
    optimizer and a user may change a rate between steps."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_closed" in vars(cls):
            # torch asks for the closed form by this name, and whether there is one.
            cls._get_closed_form_lr = cls._closed_rates  # type: ignore[attr-defined]

    def get_lr(self) -> list[Rate]:
        """The rate of each group for this epoch. For the last rates, call `get_last_lr()`."""
        self._warn_if_asked()
        return self._chained_rates()


class ClosedScheduler(Scheduler):
    """A schedule that gives the rate from the epoch alone."""

    # Whether the rate is shift(t) + base * scale(t), whatever the base.
    affine: ClassVar[bool] = False

    def get_lr(self) -> list[Rate]:
        """The rate of each group for this epoch. For the last rates, call `get_last_lr()`."""
        self._warn_if_asked()
        return self._closed_rates()

    def _chain(self, t: float, lr: Rate, base_lr: Rate, *group: Group) -> Rate:
        """The rate of an epoch from that of the epoch before, where one follows from the other."""
        if not self.affine:
            raise NotImplementedError(f"{type(self).__name__} has no chain form")
        if t < 1:
            return self._closed(t, lr, *group)
        if self._is_initial:
            return lr
        shift, before = self._closed(t, 0.0, *group), self._closed(t - 1, 0.0, *group)
        scale_before = self._closed(t - 1, 1.0, *group) - before
        size = max(abs(float(before)), abs(float(base_lr)))
        if abs(float(base_lr * scale_before)) <= 1e-9 * size:
            # Nothing is left of the rate to go on from, but for what roundings left.
            return self._closed(t, base_lr, *group)
        scale = self._closed(t, 1.0, *group) - shift
        return shift + (lr - before) * (scale / scale_before)

    def _get_closed_form_lr(self) -> list[Rate]:
        return self._closed_rates()


class MetricScheduler(Scheduler, ReduceLROnPlateau):
    """A schedule that follows a metric. It takes no step when constructed.

    Extends torch's `ReduceLROnPlateau`, whose arithmetic it does not use, because that is the type
    by which torch's combinators and training loops tell that `step` takes a metric.
    """

    def __init__(self, optimizer: Optimizer, parameter: str = LR, **values: Any) -> None:
        self._take(optimizer, parameter, values)
        self._parameter.unshare(optimizer)
        self.last_epoch = 0
        self._last_lr = self._parameter.read_each(optimizer)
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
        self._last_lr = self._parameter.read_each(self.optimizer)

    def _length_error(self, name: str, given: int, groups: int) -> str:
        return f"expected {groups} {name}s, got {given}"

    def _spread(self, name: str, value: Any) -> None:
        super()._spread(name, value)
        # torch keeps in the checkpoint whether there was one value.
        setattr(self, f"default_{name}", value if self._single[name] else None)

    def _groups(self) -> Iterator[Group]:
        """Each group with its values of the arguments. A single value serves groups that were
        added since; for a list RuntimeError is raised."""
        count = len(self.optimizer.param_groups)
        for name in self._single:
            default = getattr(self, f"default_{name}")
            given = len(getattr(self, f"{name}s"))
            if given != count and default is None:
                raise RuntimeError(self._growth_error(f"{name}s", given))
            if given != count:
                setattr(self, f"{name}s", [default] * count)
        self._parameter.unshare(self.optimizer)
        yield from (self._group(index) for index in range(count))

    def _rate(self, group: Group) -> float:
        return float(self._parameter.read(group.values))

    def _set_rate(self, group: Group, rate: float) -> None:
        self._parameter.write(group.values, rate)
