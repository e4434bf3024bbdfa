"""What the formulas of schedules call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._scheduler import Group


def phase_of(
    phases: Sequence[dict[str, Any]], target: str, t: float, group: Group
) -> tuple[float, Any, Any]:
    """The part that has gone by of the phase that an epoch is in, and the group's values between
    which a target moves there. Each phase has its last epoch, `end_step`; the last one lasts for
    ever, at its end."""
    start = 0.0
    for phase in phases:
        end = phase["end_step"]
        if t <= end or phase is phases[-1]:
            break
        start = end
    # A phase may be a single epoch: that is its end.
    progress = 1.0 if t >= end else (t - start) / (end - start)
    return progress, group[phase[f"start_{target}"]], group[phase[f"end_{target}"]]


def floor_log(x: float, base: float) -> int:
    """The largest whole n for which `base ** n <= x`: also where `math.log` falls on the other side
    of a whole number.

    Args:
        x: positive.
        base: above 1.
    """
    n = math.floor(math.log(x, base))
    while base**n > x:
        n -= 1
    while base ** (n + 1) <= x:
        n += 1
    return n


def whole(value: Any) -> int:
    """A whole number as an `int`, whatever it came as: a float, a number of NumPy's or a tensor.
    Raises ValueError for another number."""
    if not math.isfinite(value) or int(value) != value:
        raise ValueError(f"expected a whole number, but got {value}")
    return int(value)
