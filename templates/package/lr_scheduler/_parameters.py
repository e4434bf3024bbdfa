"""Where a hyperparameter is in a parameter group: how it is read, and how it is written."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

# The value of a hyperparameter: most often a learning rate.
Rate = float | Tensor


def copied(rate: Rate) -> Rate:
    """A rate that nothing else changes: optimizers change tensors in place."""
    # To ask whether a number is a tensor takes longer than all else of a step.
    return rate if type(rate) is float or not isinstance(rate, Tensor) else rate.clone()


class Parameter:
    """A hyperparameter by its path: `lr`, `weight_decay`, `betas[1]`. `momentum` is the first of
    the betas in a group that has no momentum."""

    __slots__ = ("_index", "_name", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        match = re.fullmatch(r"(\w+)\[(\d+)\]", path)
        self._name = match[1] if match else path
        self._index = int(match[2]) if match else None

    @classmethod
    @functools.cache
    def at(cls, path: str) -> Parameter:
        """The hyperparameter of a path, which is read once: steps ask for it often."""
        return cls(path)

    def _place(self, group: dict[str, Any]) -> tuple[str, int | None]:
        if self.path == "momentum" and "momentum" not in group:
            return "betas", 0
        return self._name, self._index

    def _key(self, groups: list[dict[str, Any]]) -> str | None:
        """The name under which all groups have the value itself, if there is one."""
        if self._index is not None:
            return None
        is_plain = self.path != "momentum" or all("momentum" in group for group in groups)
        return self._name if is_plain else None

    def read(self, group: dict[str, Any]) -> Rate:
        """The value itself: if it is a tensor, the optimizer's. Raises KeyError, IndexError or
        TypeError where there is none."""
        name, index = self._place(group)
        value: Rate = group[name] if index is None else group[name][index]
        return value

    def write(self, group: dict[str, Any], value: Rate) -> None:
        """Change the value. A tensor stays the same object: captured graphs read it. It is never
        the object `value`, which may be an argument of the schedule."""
        old = self.read(group)
        if isinstance(old, Tensor):
            old.fill_(value.squeeze() if isinstance(value, Tensor) else value)
        else:
            self._replace(group, copied(value))

    def read_each(self, optimizer: Optimizer) -> list[Rate]:
        """Copies of the values of all groups."""
        groups = optimizer.param_groups
        name = self._key(groups)
        return [copied(group[name] if name else self.read(group)) for group in groups]

    def write_each(self, optimizer: Optimizer, values: list[Rate]) -> list[Rate]:
        """Change the values of all groups. Returns copies of what they are now."""
        groups = optimizer.param_groups
        name = self._key(groups)
        others = []
        for group, value in zip(groups, values, strict=True):
            if name and type(value) is float and type(group[name]) is float:
                group[name] = value
            else:
                others.append((group, value))
        if others:
            # An optimizer that has loaded a checkpoint may have tensors that groups share.
            self.unshare(optimizer)
        for group, value in others:
            self.write(group, value)
        return self.read_each(optimizer)

    def _replace(self, group: dict[str, Any], value: Rate) -> None:
        name, index = self._place(group)
        if index is None:
            group[name] = value
        else:
            parts = group[name]
            group[name] = type(parts)((*parts[:index], value, *parts[index + 1 :]))

    def is_in(self, group: dict[str, Any]) -> bool:
        """Whether the group has a number there."""
        try:
            return _is_number(self.read(group))
        except (KeyError, IndexError, TypeError):
            return False

    def require(self, optimizer: Optimizer) -> None:
        """Raise ValueError, with what can be scheduled, unless each group has a number there."""
        if all(self.is_in(group) for group in optimizer.param_groups):
            return
        known = [
            p for p in _numbers(optimizer.defaults) if Parameter.at(p).is_in(optimizer.defaults)
        ]
        raise ValueError(
            f"{self.path!r} is no number in the parameter groups of {type(optimizer).__name__}. "
            f"What can be scheduled: {', '.join(known)}."
        )

    def unshare(self, optimizer: Optimizer) -> None:
        """Give each group a tensor of its own, and the groups that are added later another: what is
        written to one changes no other. The first of several keeps the tensor."""
        seen: list[Tensor] = []
        # A class that wraps an optimizer may have no defaults.
        for group in (*optimizer.param_groups, getattr(optimizer, "defaults", {})):
            if not self.is_in(group):
                continue
            value = self.read(group)
            if any(value is other for other in seen):
                value = copied(value)
                self._replace(group, value)
            if isinstance(value, Tensor):
                seen.append(value)


@contextlib.contextmanager
def unless_it_fails(optimizer: Optimizer) -> Iterator[None]:
    """Put the parameter groups back as they were when something in the block fails."""
    before = [
        (group, dict(group), [(v, v.clone()) for v in group.values() if isinstance(v, Tensor)])
        for group in optimizer.param_groups
    ]
    try:
        yield
    except BaseException:
        for group, values, tensors in before:
            group.clear()
            group.update(values)
            for tensor, value in tensors:
                tensor.copy_(value)
        raise


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point()
    # NumPy's scalars are numbers, too.
    return isinstance(value, Real) and not isinstance(value, bool)


def _numbers(defaults: dict[str, Any]) -> Iterable[str]:
    """The paths of everything that may be a number."""
    for name, value in defaults.items():
        if isinstance(value, (tuple, list)):
            yield from (f"{name}[{index}]" for index in range(len(value)))
        else:
            yield name
