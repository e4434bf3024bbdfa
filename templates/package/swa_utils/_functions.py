"""torch's averaging functions, as methods of averages: they can be pickled."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ._average import PARAM_LIST, Number
from .ema import EMA
from .swa import SWA


def get_ema_avg_fn(decay: float = 0.999) -> Callable[[Tensor, Tensor, Number], Tensor]:
    """The exponential moving average of one tensor, for `avg_fn`.

    Args:
        decay: the weight of the average before, between 0 and 1.

    Raises:
        ValueError: `decay` is not between 0 and 1.
    """
    return EMA(decay).each


def get_ema_multi_avg_fn(decay: float = 0.999) -> Callable[[PARAM_LIST, PARAM_LIST, Number], None]:
    """The exponential moving average of a list of tensors in place, for `multi_avg_fn`.

    Args:
        decay: the weight of the average before, between 0 and 1.

    Raises:
        ValueError: `decay` is not between 0 and 1.
    """
    return EMA(decay).multi


def get_swa_avg_fn() -> Callable[[Tensor, Tensor, Number], Tensor]:
    """The mean of one tensor over all models, for `avg_fn`."""
    return SWA().each


def get_swa_multi_avg_fn() -> Callable[[PARAM_LIST, PARAM_LIST, Number], None]:
    """The mean of a list of tensors over all models in place, for `multi_avg_fn`."""
    return SWA().multi
