"""Averages with fused=True -> one kernel launch per device and dtypes, which waits for nothing."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .. import _fused
from .._slots import Group
from .._tensors import as_real
from ._average import Average, batches


class _Launch(_fused._Launch):
    """A launch whose parameters are averages, and whose gradients are the tensors of a model."""

    def __init__(
        self, kernels: Any, group: Group, averages: list[Tensor], params: list[Tensor]
    ) -> None:
        self.group = group
        self.sources = params
        members = [
            _fused._Member(group, a, _dense(a), {}, frozenset(), p.dtype)
            for a, p in zip(averages, params, strict=True)
        ]
        scalars = (
            _fused._DeviceScalars(kernels, members)
            if isinstance(group["n"], Tensor)
            else _fused._HostScalars(kernels, members, {})
        )
        super().__init__(kernels, members, scalars)

    def gradients(self) -> list[Any]:
        return self.sources

    def average(self, group: Group, params: list[Tensor]) -> None:
        self.group.update(group)
        self.sources = params
        self._refresh_grads()
        self.run(None, None)
        self.sources = []  # the model belongs to somebody else


# The launches of the last update, good for averages that still lie where they did.
_launches: WeakKeyDictionary[nn.Module, dict[Any, _Launch]] = WeakKeyDictionary()


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
    known, used = _launches.get(model, {}), dict[Any, _Launch]()
    left: tuple[list[Tensor], list[Tensor]] = ([], [])
    for olds, news in batches(*(_parts(average, tensors) for tensors in (averages, params))):
        kernels = _kernels(average, olds, news)
        if kernels is None:
            left[0].extend(olds)
            left[1].extend(news)
            continue
        places = tuple((t.data_ptr(), t.shape, t.stride()) for t in olds)
        key = (kernels.__name__, news[0].dtype, olds[0].dtype, type(n), places)
        used[key] = launch = known.get(key) or _Launch(kernels, dict(group), olds, news)
        launch.average(group, news)
    _launches[model] = used
    return left


def _kernels(average: Average, averages: list[Tensor], params: list[Tensor]) -> Any:
    """The module with the kernels; None for integers, and where there is none."""
    if not (averages[0].is_floating_point() and params[0].is_floating_point()):
        return None
    asked: Any = average
    return _fused._kernels(asked, {"fused": None, "params": averages})


def _parts(average: Average, tensors: list[Tensor]) -> list[Tensor]:
    """Tensors whose elements are those of a kernel; complex ones are left as they are otherwise."""
    return [as_real(t) if t.is_complex() and average.separable else t for t in tensors]


def _dense(tensor: Tensor) -> Tensor:
    return tensor if _fused._is_dense(tensor) else torch.empty_like(tensor)
