"""Several schedules on one optimizer: one after the other, or together.

Their children are schedules of this package or torch's, and torch's combinators take these. A
schedule acts in one of two ways, which decides how it goes together with others. A *chain* gives
the next rate from the current one, whoever made that. An *absolute* schedule gives the rate of an
epoch from the first rate, and overwrites what others did.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from ._function import pieces, relative
from ._parameters import Parameter, Rate, copied
from ._scheduler import LR, ClosedScheduler

_ABSOLUTE = (
    ClosedScheduler,
    lr_scheduler.LambdaLR,
    lr_scheduler.CosineAnnealingWarmRestarts,
    lr_scheduler.CyclicLR,
    lr_scheduler.OneCycleLR,
    lr_scheduler.SequentialLR,
)


def _children(scheduler: LRScheduler) -> list[LRScheduler]:
    return list(getattr(scheduler, "_schedulers", ()))


def _tree(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    yield scheduler
    for child in _children(scheduler):
        yield from _tree(child)


def _is_absolute(scheduler: LRScheduler) -> bool:
    return isinstance(scheduler, _ABSOLUTE) or any(map(_is_absolute, _children(scheduler)))


def _paths(scheduler: LRScheduler) -> set[str]:
    """The hyperparameters that a schedule drives, but for momentum beside the rate."""
    children = _children(scheduler)
    if children:
        return set().union(*map(_paths, children))
    return set(getattr(scheduler, "parameters", (getattr(scheduler, "parameter", LR),)))


def _epoch(scheduler: LRScheduler) -> int:
    while not hasattr(scheduler, "last_epoch"):
        scheduler = _children(scheduler)[0]
    return scheduler.last_epoch


def _rewind(scheduler: LRScheduler) -> None:
    """Let `_start` begin at epoch 0."""
    for each in _tree(scheduler):
        if hasattr(each, "last_epoch"):
            each.last_epoch = -1


def _start(scheduler: LRScheduler) -> None:
    """Take the first step, which a constructor takes. That of torch's combinators is none: a chain
    would begin with its second rate, a sequence would count one epoch too many."""
    children = _children(scheduler)
    if isinstance(scheduler, _Combined) or not children:
        scheduler._initial_step()
    elif isinstance(scheduler, lr_scheduler.SequentialLR):
        scheduler.last_epoch = 0
        first = children[bisect_right(scheduler._milestones, 0)]
        _start(first)
        scheduler._last_lr = first.get_last_lr()
    else:
        for child in children:
            _start(child)
        scheduler._last_lr = children[-1].get_last_lr()


def _write_first(scheduler: LRScheduler) -> None:
    """Give the groups the values with which a schedule begins."""
    for path in _paths(scheduler):
        for group in scheduler.optimizer.param_groups:
            Parameter.at(path).write(group, group[f"initial_{path}"])


def _restart(scheduler: LRScheduler) -> None:
    """Begin at epoch 0, whatever was before."""
    if _children(scheduler):
        _write_first(scheduler)
        _rewind(scheduler)
        _start(scheduler)
    else:
        # Not `_start`: as in torch, the rate is that of the closed form.
        scheduler._update_lr(0)


def _repeat(scheduler: LRScheduler, steps: int) -> None:
    """Take steps that were taken before: nobody has to be warned of anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()


class _Combined(LRScheduler):
    """A schedule that has others."""

    _schedulers: Any  # torch's two classes do not agree on its type

    def _take(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None, nothing: str
    ) -> None:
        """Keep the schedulers. Raises ValueError or TypeError for those that do not fit."""
        name = type(self).__name__
        if len(schedulers) < 1:
            raise ValueError(
                f"{name} expects at least one scheduler{nothing}, but got no scheduler."
            )
        for index, scheduler in enumerate(schedulers):
            if not hasattr(scheduler, "optimizer"):
                raise TypeError(
                    f"{name} at index {index} should have `optimizer` as its attribute."
                )
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                raise ValueError(
                    f"{name} does not support `ReduceLROnPlateau` scheduler as it requires "
                    "additional kwargs to be specified when calling `step`, but got one at index "
                    f"{index} in the given schedulers sequence."
                )
            optimizer = optimizer or scheduler.optimizer
            if optimizer != scheduler.optimizer:
                raise ValueError(
                    f"{name} expects all schedulers to belong to the same optimizer, but got "
                    f"scheduler {type(scheduler).__name__} at index {index} has "
                    f"{scheduler.optimizer}, which is different from "
                    f"{type(optimizer).__name__}."
                )
        self.optimizer = schedulers[0].optimizer
        self._schedulers = list(schedulers)

    def _update_lr(self, epoch: int | None = None) -> None:
        # By this name torch's combinators begin a child at its epoch 0.
        if epoch is None:
            self.step()
        else:
            _restart(self)
            _repeat(self, epoch)

    def state_dict(self) -> dict[str, Any]:
        """The checkpoint, with those of the schedulers."""
        state = {name: value for name, value in vars(self).items() if name != "optimizer"}
        return state | {"_schedulers": [child.state_dict() for child in self._schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same combination, ours or torch's.

        Raises:
            ValueError: the number of schedulers is another, or one refuses its part. Nothing has
                then been loaded.
        """
        state = deepcopy(state_dict)
        parts = state.pop("_schedulers")
        if len(parts) != len(self._schedulers):
            raise ValueError(
                f"a checkpoint of {len(parts)} schedulers, not of {len(self._schedulers)}"
            )
        before = [(each, dict(vars(each))) for each in _tree(self)]
        try:
            for child, part in zip(self._schedulers, parts, strict=True):
                child.load_state_dict(part)
        except Exception:
            for each, attributes in before:
                vars(each).clear()
                vars(each).update(attributes)
            raise
        vars(self).update(state)


class SequentialLR(_Combined, lr_scheduler.SequentialLR):
    """One schedule after the other, each from its own epoch 0 on.

    Args:
        optimizer (Optimizer): whose learning rates follow the schedules.
        schedulers (list): schedules of that optimizer.
        milestones (list[int]): the epochs at which the second and each further schedule begins.
        last_epoch (int): the epoch to resume behind. Default: -1, a new schedule. The schedules
            are taken through all epochs until there: each acts as if there had been no stop.

    Raises:
        ValueError: no schedules, one of another optimizer or one that follows a metric; milestones
            that are not one less, not in order, or negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: list[LRScheduler],
        milestones: list[int],
        last_epoch: int = -1,
    ) -> None:
        self._take(schedulers, optimizer, "")
        self._milestones = pieces(milestones, len(schedulers))
        if last_epoch == -1:
            self.recursive_undo()
        else:
            _rewind(self)
        _write_first(self)
        self._initial_step()
        _repeat(self, last_epoch + 1)

    def recursive_undo(self, sched: LRScheduler | None = None) -> None:
        """Take back the epoch that the constructors of schedules have counted."""
        for each in _tree(self if sched is None else sched):
            if not _children(each):
                each.last_epoch -= 1

    def _initial_step(self) -> None:
        self.last_epoch = 0
        first = self._schedulers[bisect_right(self._milestones, 0)]
        _start(first)
        self._last_lr = first.get_last_lr()

    def step(self) -> None:  # type: ignore[override]
        """Give every group its rate of the next epoch."""
        epoch = self.last_epoch + 1
        index = bisect_right(self._milestones, epoch)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == epoch:
            _restart(scheduler)
        else:
            scheduler.step()
        self.last_epoch = epoch
        self._last_lr = scheduler.get_last_lr()


class ChainedScheduler(_Combined, lr_scheduler.ChainedScheduler):
    """Schedules that act together: their factors multiply.

    Where all are chains, each acts on the current rate in turn. Where one is absolute, it would
    overwrite what the others did: then each goes its own way from the first rate, and the rate is
    that of the first absolute schedule times what each of the others makes of its own first rate.

    Args:
        schedulers (sequence): schedules of one optimizer.
        optimizer (Optimizer, optional): that optimizer. Default: None, that of the schedules.

    Raises:
        ValueError: no schedules, one of another optimizer or one that follows a metric; an absolute
            schedule beside one of another hyperparameter.
    """

    def __init__(
        self, schedulers: Sequence[LRScheduler], optimizer: Optimizer | None = None
    ) -> None:
        self._take(schedulers, optimizer, " to be chained")
        if self._has_tracks():
            paths = sorted(_paths(self))
            if len(paths) > 1:
                raise ValueError(
                    f"{type(self).__name__} expects all schedulers to drive the same "
                    f"hyperparameter, but got schedulers of {', '.join(paths)}. Schedules of "
                    "different ones need not be chained."
                )
            self._isolate()
        self._settle()

    def _has_tracks(self) -> bool:
        return any(map(_is_absolute, self._schedulers))

    def _parameter(self) -> Parameter:
        return Parameter.at(min(_paths(self._schedulers[-1])))

    def _initial_step(self) -> None:
        for child in self._schedulers:
            if self._has_tracks():
                self._write(self._bases(child))
            _start(child)
        self._settle()

    def step(self) -> None:  # type: ignore[override]
        """Give every group its rate of the next epoch."""
        for child in self._schedulers:
            if self._has_tracks():
                self._write(child.get_last_lr())
            child.step()
        self._settle()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same combination, ours or torch's.

        Raises:
            ValueError: the number of schedulers is another, or one refuses its part. Nothing has
                then been loaded.
        """
        super().load_state_dict(state_dict)
        # In a checkpoint of torch's a chain has the rate that others made.
        if self._has_tracks() and self._product() != self._last_lr:
            before = self._parameter().read_each(self.optimizer)
            self._isolate()
            self._write(before)

    # Tracks

    def _isolate(self) -> None:
        """Give each schedule the rate that it would have by itself. Absolute ones have it, but for
        torch's: its `CyclicLR` begins with the rate that the group had."""
        for child in self._schedulers:
            if not isinstance(child, (ClosedScheduler, SequentialLR)):
                epoch = _epoch(child)
                self._write(self._bases(child))
                _rewind(child)
                _start(child)
                _repeat(child, epoch)

    def _bases(self, child: LRScheduler) -> list[Rate]:
        initial = f"initial_{self._parameter().path}"
        bases: list[Rate] = getattr(child, "base_lrs", [])
        # Combinators have none, nor has a child values of groups that it does not know yet.
        return [*bases, *(g[initial] for g in self.optimizer.param_groups[len(bases) :])]

    def _write(self, values: list[Rate]) -> None:
        parameter = self._parameter()
        groups = self.optimizer.param_groups
        for group, value in zip(groups, values, strict=False):
            parameter.write(group, value)
        # Every schedule begins with the same rate of a group that was added since.
        for group in groups[len(values) :]:
            initial = f"initial_{parameter.path}"
            parameter.write(group, group.setdefault(initial, copied(parameter.read(group))))

    def _product(self) -> list[Rate]:
        first = next(child for child in self._schedulers if _is_absolute(child))
        rates = [copied(rate) for rate in first.get_last_lr()]
        for child in self._schedulers:
            if child is not first:
                own = zip(child.get_last_lr(), self._bases(child), strict=True)
                rates = [r * relative(*other) for r, other in zip(rates, own, strict=True)]
        return rates

    def _settle(self) -> None:
        """Give the groups the rates that come of the schedulers'."""
        if self._has_tracks():
            self._write(self._product())
        self._last_lr = self._parameter().read_each(self.optimizer)
