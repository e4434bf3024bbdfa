"""What every average shares: its numbers, and its two forms over tensors of any dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices

from .._slots import Group
from .._tensors import Tensors, as_real, as_real_list, number

# What a function that averages lists is given.
PARAM_LIST = tuple[Tensor, ...] | list[Tensor]
Number = Tensor | int


class Average:
    """Base of the averages of this package: how the average of `n` models takes in another one.

    A hyperparameter that is a number may be a function of `n` instead, which is then called for
    each model behind the first. `each` and `multi` can be given to torch's `AveragedModel`, too;
    bound methods, they can be pickled.
    """

    # The module of this package with the fused GPU kernel.
    kernels: ClassVar[str] = ""
    # Whether real and imaginary parts of complex tensors can be elements of their own, and whether
    # complex arithmetic gives the same.
    separable: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def __init__(self, group: Group) -> None:
        self.group = group
        self.at(1)

    @staticmethod
    def check(group: Group) -> None:
        """Raise ValueError for a hyperparameter out of its range."""

    @staticmethod
    def _each(group: Group, average: Tensor, param: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def _multi(group: Group, averages: Tensors, params: Tensors) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.group.items())
        return f"{type(self).__name__}({given})"

    @property
    def is_constant(self) -> bool:
        """Whether no hyperparameter is a function of the number of models."""
        return not any(map(callable, self.group.values()))

    def at(self, n: int) -> Group:
        """The hyperparameters with which model number `n` enters, counted from 0.

        Raises:
            ValueError: one is out of its range.
        """
        group = {name: v(n) if callable(v) else v for name, v in self.group.items()}
        group["n"] = n
        self.check(group)
        return group

    @torch.no_grad()
    def each(self, average: Tensor, param: Tensor, n: Number) -> Tensor:
        """The next average of one tensor, which is not changed: torch's `avg_fn`.

        Args:
            average: of the models before.
            param: the same tensor of the next model.
            n: how many models there were before.

        Raises:
            ValueError: a hyperparameter that is a function is out of its range.
        """
        return self._next(self.at(number(n)), average, param)

    def multi(self, averages: PARAM_LIST, params: PARAM_LIST, n: Number) -> None:
        """Bring a list of averages up to date in place: torch's `multi_avg_fn`. The arguments are
        those of `each`, as lists; tensors of several dtypes may stand in one."""
        self.update(averages, params, n, lists=True)

    @torch.no_grad()
    def update(
        self, averages: Sequence[Tensor], params: Sequence[Tensor], n: Number, lists: bool | None
    ) -> None:
        """Let model number `n`, counted from 0, enter the averages: with `lists` as lists of
        tensors of one dtype, which integers have no form for, else tensor by tensor; None decides
        by the device as torch does."""
        group = self.at(number(n))
        for olds, news in batches(averages, params):
            dtype = torch.promote_types(olds[0].dtype, news[0].dtype)
            device = olds[0].device.type
            listed = device in _get_foreach_kernels_supported_devices() if lists is None else lists
            if not (listed and (dtype.is_floating_point or dtype.is_complex)):
                for old, new in zip(olds, news, strict=True):
                    old.copy_(self._next(group, old, new))
                continue
            wide = olds if olds[0].dtype == dtype else [old.to(dtype) for old in olds]
            news = news if news[0].dtype == dtype else [new.to(dtype) for new in news]
            if dtype.is_complex and not self.linear:
                self._multi(group, as_real_list(wide), as_real_list(news))
            else:
                self._multi(group, wide, news)
            if wide is not olds:
                torch._foreach_copy_(olds, wide)

    def _next(self, group: Group, average: Tensor, param: Tensor) -> Tensor:
        if average.dtype is torch.bool:
            return param  # there is nothing between two conditions: the last one holds
        if average.is_complex() and param.is_complex() and not self.linear:
            real = self._each(group, as_real(average), as_real(param))
            return torch.view_as_complex(real)
        return self._each(group, average, param)


def batches(
    averages: Sequence[Tensor], params: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Lists of averages of one device and one dtype, as their params are, in the given order."""
    found: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for average, param in zip(averages, params, strict=True):
        key = (average.device, average.dtype, param.dtype)
        olds, news = found.setdefault(key, ([], []))
        olds.append(average)
        news.append(param)
    yield from found.values()


def own(function: Callable[..., Any] | None, form: str) -> Average | None:
    """The average whose `form` a function is; None for any other function, also for one that a
    class of a user has in the place of the form."""
    is_form = getattr(function, "__func__", None) is getattr(Average, form)
    average = getattr(function, "__self__", None)
    return average if isinstance(average, Average) and is_form else None
