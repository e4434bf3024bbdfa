"""Averages with fused=True -> one call of a kernel per device and dtypes."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from .._fused._backends import (
    batch_of,
    has_kernel,
    program_of,
    say_missing,
    what_lacks_kernels,
)
from .._fused._members import Member, flat_of
from .._fused._watch import has_version, likeness_test
from .._slots import Group
from .._tensors import as_real
from ._average import Average, batches


class _Update:
    """One call for averages, in the place of parameters, and what enters them, in that of
    gradients."""

    def __init__(
        self, program: Any, group: Group, members: list[Member], params: list[Tensor]
    ) -> None:
        self.group = group
        self.batch = batch_of(program, members, isinstance(group["n"], Tensor), {})
        averages = [member.param for member in members]
        self.are_like = likeness_test([*averages, *params])
        self.places = _places(averages)

    def holds(self, averages: list[Tensor], params: list[Tensor]) -> bool:
        """Whether the tensors are those, or others like them in the place of the params."""
        return self.are_like(*averages, *params) and _places(averages) == self.places

    def run(self, group: Group, averages: list[Tensor], params: list[Tensor]) -> None:
        self.group.update(group)
        self.batch.take(params)
        self.batch.run(None, None, params)
        increment_version(filter(has_version, averages))


# The calls of the last update, good for averages that still lie where they did.
_updates: WeakKeyDictionary[nn.Module, dict[Any, _Update]] = WeakKeyDictionary()


@torch.no_grad()
def update(
    model: nn.Module, average: Average, averages: list[Tensor], params: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Let a model enter the averages of `model` that there is a kernel for.

    Args:
        model: has the number of models before in `n_averaged`, which stays on its device unless an
            average on another one or a function of `average` asks for it.
        average: how a model enters.
        averages: on any devices.
        params: of the next model, each where its average is.

    Returns:
        The averages that are left, and their params.
    """
    n: Any = model.n_averaged
    if not (average.is_constant and all(a.device == n.device for a in averages)):
        n = int(n)
        if n == 0:
            return averages, params  # the first model is copied, whatever the numbers are
    group = {**average.at(n), "maximize": False}
    known, used = _updates.get(model, {}), dict[Any, _Update]()
    left: tuple[list[Tensor], list[Tensor]] = ([], [])
    for olds, news in batches(*(_parts(average, tensors) for tensors in (averages, params))):
        key = (average.kernels, olds[0].device, olds[0].dtype, news[0].dtype, type(n))
        last = known.get(key)
        current = last if last is not None and last.holds(olds, news) else None
        if current is None:
            current = _update_of(average, dict(group), olds, news)
        if current is None:
            left[0].extend(olds)
            left[1].extend(news)
            continue
        used[key] = current
        current.run(group, olds, news)
    _updates[model] = used
    return left


def _update_of(
    average: Average, group: Group, averages: list[Tensor], params: list[Tensor]
) -> _Update | None:
    """None for integers, and where there is no kernel."""
    if not (averages[0].is_floating_point() and params[0].is_floating_point()):
        return None
    asked: Any = average
    what = what_lacks_kernels(asked, {"params": averages})
    if what:
        say_missing(what)
        return None
    program = program_of(asked)
    members = [Member(group, average, flat_of(average), {}) for average in averages]
    for member, param in zip(members, params, strict=True):
        member.takes(param)
    if not has_kernel(program, members[0]):
        return None
    return _Update(program, group, members, params)


def _parts(average: Average, tensors: list[Tensor]) -> list[Tensor]:
    """Tensors whose elements are those of a kernel; complex ones are left as they are otherwise."""
    return [as_real(t) if t.is_complex() and average.separable else t for t in tensors]


def _places(tensors: list[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))
