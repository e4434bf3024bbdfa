"""Operators on numbers that may be tensors without dimensions -> numbers, or tensors.

An optimizer's `_functional` update calls them where Python has no symbol that serves both. Tensors
among the numbers are float64, as Python's are: they round like the host's, and next to a tensor
with dimensions torch takes that one's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import c_float
from typing import Any

import torch
from torch import Tensor


def single(value: float) -> float:
    """The nearest float32."""
    return c_float(value).value


def wide(value: Any) -> Any:
    """A hyperparameter's value: a tensor of one element in float64, without dimensions."""
    return value.double().reshape(()) if isinstance(value, Tensor) else value


def like(tensor: Tensor, value: Any) -> Tensor:
    """A number as a tensor without dimensions, of another's dtype and device."""
    if isinstance(value, Tensor):
        return value.to(tensor)
    return torch.full((), value, dtype=tensor.dtype, device=tensor.device)


def full_like(tensor: Tensor, value: Any) -> Tensor:
    """A tensor like another one, filled with a number."""
    return like(tensor, value).expand_as(tensor).clone()


def choose(condition: Any, then: Any, orelse: Any) -> Any:
    """One of two values, by a condition on numbers.

    Where gradients are recorded Python takes it: through `torch.where` a NaN of the other side
    would reach them. A tensor is a fresh one either way, of the shape that `torch.where` gives it.
    """
    if torch.is_grad_enabled() or not isinstance(condition, Tensor):
        return _beside(*((then, orelse) if condition else (orelse, then)))
    sides = [then, orelse]
    devices = [s.device for s in sides if isinstance(s, Tensor)]
    device = next((d for d in devices if d.type != "cpu"), condition.device)
    if not devices:
        sides = [torch.full((), side, dtype=torch.float64, device=device) for side in sides]
    return torch.where(condition.to(device), *sides)


def _beside(taken: Any, other: Any) -> Any:
    """One of two values, in the shape and the dtype that both have together."""
    if isinstance(other, Tensor) and (not isinstance(taken, Tensor) or taken.dim() < other.dim()):
        return full_like(other, taken)
    if not isinstance(taken, Tensor):
        return taken
    if isinstance(other, Tensor):
        typed = taken.to(torch.result_type(taken, other))
        taken, _ = torch.broadcast_tensors(typed, other)  # type: ignore[no-untyped-call]
    return taken.clone()


def where(mask: Tensor, then: Any, orelse: Any, param: Tensor) -> Tensor:
    """One of two numbers for each element, as exact as the parameter's dtype."""
    # Next to a parameter without dimensions numbers stay float64.
    kind = param if param.dim() else param.double()
    return torch.where(mask, like(kind, then), like(kind, orelse))


def _pair(
    numbers: Callable[..., Any], tensors: Callable[..., Tensor], left: Any, right: Any
) -> Any:
    """An operator of Python for numbers, of torch if one of them is a tensor."""
    if isinstance(left, Tensor):
        return tensors(left, right if isinstance(right, Tensor) else like(left, right))
    if isinstance(right, Tensor):
        return tensors(like(right, left), right)
    return numbers(left, right)


def maximum(left: Any, right: Any) -> Any:
    return _pair(max, torch.maximum, left, right)


def minimum(left: Any, right: Any) -> Any:
    return _pair(min, torch.minimum, left, right)


def lerp(start: Tensor, end: Tensor, weight: Any) -> Tensor:
    """`torch.lerp`, which wants tensors of one dtype."""
    dtype = torch.promote_types(start.dtype, end.dtype)
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    start, end = start.to(dtype), end.to(dtype)
    return torch.lerp(start, end, weight.to(start) if isinstance(weight, Tensor) else weight)


def addmm(tensor: Tensor, left: Tensor, right: Tensor, beta: Any, alpha: Any) -> Tensor:
    """`torch.addmm`, which wants numbers."""
    if isinstance(beta, Tensor) or isinstance(alpha, Tensor):
        return torch.add(beta * tensor, alpha * (left @ right))
    return torch.addmm(tensor, left, right, beta=beta, alpha=alpha)


def both(left: Any, right: Any) -> Any:
    return left & right


def either(left: Any, right: Any) -> Any:
    return left | right


def negation(condition: Any) -> Any:
    return condition.logical_not() if isinstance(condition, Tensor) else not condition


def sqrt(value: Any) -> Any:
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def exp(value: Any) -> Any:
    return value.exp() if isinstance(value, Tensor) else math.exp(value)


def log(value: Any) -> Any:
    return value.log() if isinstance(value, Tensor) else math.log(value)


def sin(value: Any) -> Any:
    return value.sin() if isinstance(value, Tensor) else math.sin(value)


def cos(value: Any) -> Any:
    return value.cos() if isinstance(value, Tensor) else math.cos(value)


def floor(value: Any) -> Any:
    return value.floor() if isinstance(value, Tensor) else math.floor(value)
