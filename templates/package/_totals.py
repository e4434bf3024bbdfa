"""Numbers that are made of all parameters: what each has a part in them with, and the total.

Both are tensors without dimensions, float64 where the device has it. They stay on their devices:
nothing here waits for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _tensors

# A total by its name; None where no parameter has a part in it.
Totals = dict[str, Any]


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


# What one parameter has a part in a total with.


def sum(tensor: Tensor) -> Tensor:
    return tensor.sum(dtype=_dtype(tensor))


def norm(tensor: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(tensor, dtype=_dtype(tensor))
    return length


def max_abs(tensor: Tensor) -> Tensor:
    return _tensors.max_abs(tensor).to(_dtype(tensor))


def dot(left: Any, right: Any) -> Tensor:
    """One of the two may be a number."""
    tensor = left if isinstance(left, Tensor) else right
    wide = (x.to(_dtype(tensor)) if isinstance(x, Tensor) else x for x in (left, right))
    return _tensors.dot(*wide)


# What becomes of the terms of all parameters, which are elements of one tensor.
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": Tensor.sum,
    "norm": torch.linalg.vector_norm,
    "max_abs": Tensor.max,
    "dot": Tensor.sum,
}


def beside(totals: Totals, param: Tensor) -> Totals:
    """The totals as numbers made of a parameter are: on its device, of its dtype."""
    dtype = param.real.dtype if param.is_complex() else param.dtype
    return {
        name: None if total is None else total.to(param.device, dtype)
        for name, total in totals.items()
    }


def total(operator: str, terms: list[Tensor | None]) -> Tensor | None:
    """What terms make together, in the order of the parameters; None is no part of it."""
    present = _whole([term for term in terms if term is not None])
    if not present:
        return None
    device = present[0].device
    return COMBINED[operator](torch.stack([term.to(device) for term in present]))


def _whole(terms: list[Any]) -> list[Any]:
    """The terms with those of sharded tensors put together by the processes that have parts: at
    once for all that are laid out alike."""
    layouts: dict[Any, list[int]] = {}
    for place, term in enumerate(terms):
        if hasattr(term, "placements"):
            layouts.setdefault((term.device_mesh, term.placements), []).append(place)
    terms = list(terms)
    for (mesh, placements), places in layouts.items():
        from torch.distributed.tensor import DTensor

        local = torch.stack([terms[place].to_local() for place in places])
        alike = DTensor.from_local(local, mesh, placements, run_check=False).full_tensor()
        for place, term in zip(places, alike.unbind(), strict=True):
            terms[place] = term
    return terms
