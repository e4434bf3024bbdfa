"""What updates call beside torch: numbers, complex views, fillings, reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# What `torch._foreach_*` takes and gives; None stands for a slot that does not exist.
Tensors = list[Any] | tuple[Any, ...]


def number(value: Any) -> Any:
    """A hyperparameter's value: a tensor of one element is read as float64. Where gradients are
    recorded it stays a tensor, which they reach."""
    if not isinstance(value, Tensor):
        return value
    return value.double().reshape(()) if torch.is_grad_enabled() else value.item()


def as_real(tensor: Any) -> Any:
    """A complex tensor as a real one with a last dimension of 2; None stays None."""
    return None if tensor is None else torch.view_as_real(tensor)


def as_real_list(tensors: Tensors) -> Tensors:
    return [as_real(tensor) for tensor in tensors]


def as_complex(tensor: Tensor) -> Tensor:
    """The complex tensor that `as_real` showed."""
    return torch.view_as_complex(tensor)


def as_complex_list(tensors: Tensors) -> tuple[Tensor, ...]:
    return tuple(as_complex(tensor) for tensor in tensors)


def full_like(param: Tensor, value: Any) -> Tensor:
    """A tensor like the parameter, filled; a complex one with the value in both parts, as torch."""
    if isinstance(value, Tensor):
        both = torch.complex(value, value) if param.is_complex() else value
        return both.to(param).expand_as(param).clone()
    return torch.full_like(param, complex(value, value) if param.is_complex() else value)


def max_abs(tensor: Tensor) -> Tensor:
    """The largest magnitude; 0 of an empty tensor."""
    magnitudes = tensor.abs()
    if tensor.numel() and hasattr(magnitudes, "placements"):
        return _largest_of_shards(magnitudes)
    return magnitudes.max() if tensor.numel() else tensor.new_zeros(())


def _largest_of_shards(tensor: Any) -> Tensor:
    """The same of a DTensor: torch finds no largest element of a shard that has none."""
    from torch.distributed.tensor import DTensor, Partial

    placements = [Partial("max") if p.is_shard() else p for p in tensor.placements]
    local = max_abs(tensor.to_local())
    return DTensor.from_local(local, tensor.device_mesh, placements, run_check=False)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """The sum of products, of tensors of any shape."""
    return (left * right).sum()


def zeros_along(param: Tensor, dim: int) -> Tensor:
    """Zeros of the parameter's shape, with size 1 along one dimension."""
    shape = list(param.shape)
    shape[dim] = 1
    return param.new_zeros(shape)
