"""A model whose parameters are averages over other models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from ._average import PARAM_LIST, Average, Number, batches, own
from .swa import SWA

Named = list[tuple[str, Tensor]]


class AveragedModel(swa_utils.AveragedModel):
    """A copy of a model whose parameters are averages of those it is updated with.

    The first model is copied; each later one enters by `average`, `avg_fn` or `multi_avg_fn`, by
    default with the weight that makes the result the mean. The attribute `module` has the averages,
    the buffer `n_averaged` counts the models. It is a `torch.optim.swa_utils.AveragedModel`, for
    training loops that ask, and their `state_dict`s are interchangeable.

    Args:
        model: what is copied; it is not changed.
        device: where the averages are kept; by default where the model is.
        avg_fn: (average, parameter, number of models before) -> the next average.
        multi_avg_fn: the same over lists of tensors, in place.
        use_buffers: whether buffers are averaged, too; otherwise those of the last model are
            copied. Integers are averaged in floats and truncated, conditions are copied.
        average: one of this package's averages, such as `EMA(0.999)`.
        foreach: average lists of tensors at once; by default where torch does. Not for functions.
        fused: average all tensors of a device in one kernel. Not for functions.

    Raises:
        AssertionError: more than one of `avg_fn`, `multi_avg_fn` and `average` is given.
        ValueError: `foreach` or `fused` does not go with the other arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        device: int | torch.device | None = None,
        avg_fn: Callable[[Tensor, Tensor, Number], Tensor] | None = None,
        multi_avg_fn: Callable[[PARAM_LIST, PARAM_LIST, Number], None] | None = None,
        use_buffers: bool = False,
        *,
        average: Average | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        functions = [f for f in (avg_fn, multi_avg_fn) if f is not None]
        if functions and average is not None:
            raise AssertionError("Only one of avg_fn, multi_avg_fn and average should be provided")
        if average is not None and not isinstance(average, Average):
            raise TypeError(f"average should be an Average, got {type(average).__name__}")
        if functions and (foreach is not None or fused):
            raise ValueError("`foreach` and `fused` are not for functions: pass `average`")
        if foreach and fused:
            raise ValueError("`fused` and `foreach` cannot be `True` together.")
        super().__init__(model, device, avg_fn, multi_avg_fn, use_buffers)
        self.average, self.foreach, self.fused = average, foreach, fused

    def update_parameters(self, model: nn.Module) -> None:
        """Let a model enter the averages.

        Args:
            model: of the same parameters and buffers in the same order; their names may differ, as
                they do in a model that another one wraps.

        Raises:
            ValueError: a parameter or a buffer is missing or has another shape; no average has
                changed then. A hyperparameter that is a function is out of its range.
        """
        averages, params = _matched(
            "parameter", list(self.module.named_parameters()), list(model.named_parameters())
        )
        kept, buffers = _matched(
            "buffer", list(self.module.named_buffers()), list(model.named_buffers())
        )
        if self.use_buffers:
            averages, params = averages + kept, params + buffers
            kept, buffers = [], []
        if self.fused:
            averages, params = self._fused_update(averages, params)
        if averages:
            self._update(_detached(averages), _detached(params), int(self.n_averaged))
        for buffer, other in zip(_detached(kept), _detached(buffers), strict=True):
            buffer.copy_(other)
        self.n_averaged += 1

    def _fused_update(
        self, averages: list[Tensor], params: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the kernels; what there is none for is left."""
        from . import _kernels

        return _kernels.update(self, self.average or SWA(), averages, params)

    def _update(self, averages: list[Tensor], params: list[Tensor], n: int) -> None:
        each, multi = own(self.avg_fn, "each"), own(self.multi_avg_fn, "multi")
        if n == 0:
            for average, param in zip(averages, params, strict=True):
                average.copy_(param)
        elif each is not None:
            each.update(averages, params, n, lists=False)
        elif multi is not None:
            multi.update(averages, params, n, lists=True)
        elif self.avg_fn is not None:
            for average, param in zip(averages, params, strict=True):
                count = self.n_averaged.to(average.device)
                average.copy_(self.avg_fn(average, param, count))
        elif self.multi_avg_fn is not None:
            for olds, news in batches(averages, params):
                count = self.n_averaged.to(olds[0].device)
                self.multi_avg_fn(olds, news, count)
        else:
            (self.average or SWA()).update(averages, params, n, self.foreach)


def _detached(tensors: list[Tensor]) -> list[Tensor]:
    """What may be written to although gradients are recorded, as they are in users' functions."""
    return [tensor.detach() for tensor in tensors]


def _matched(what: str, averaged: Named, model: Named) -> tuple[list[Tensor], list[Tensor]]:
    """The averages, and the model's tensors where the averages are. Raises ValueError if they do
    not belong together."""
    if [t.shape for _, t in averaged] != [t.shape for _, t in model]:
        _refuse(what, averaged, model)
    averages = [average for _, average in averaged]
    params = [
        param if param.device == average.device else param.to(average.device)
        for average, (_, param) in zip(averages, model, strict=True)
    ]
    return averages, params


def _refuse(what: str, averaged: Named, model: Named) -> None:
    for mine, other in zip_longest(averaged, model):
        if mine is None:
            raise ValueError(f"The averaged model has no {what} for '{other[0]}'")
        if other is None:
            raise ValueError(f"The model has no {what} for '{mine[0]}'")
        if mine[1].shape != other[1].shape:
            raise ValueError(
                f"The {what} '{other[0]}' has shape {tuple(other[1].shape)}, its average "
                f"'{mine[0]}' has shape {tuple(mine[1].shape)}"
            )
