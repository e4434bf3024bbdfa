"""Updates that need numbers of all parameters: batches go on together, from barrier to barrier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _totals
from ._batch import Batch

# After how many passes there is one, and which numbers of each tensor become one: their places, and
# by what.
Barriers = tuple[tuple[int, tuple[tuple[int, str], ...]], ...]

# What becomes of the terms of all tensors. For a norm a kernel leaves sums of squares.
COMBINED: dict[str, Callable[[Tensor], Tensor]] = {
    **_totals.COMBINED,
    "norm": lambda terms: terms.sum().sqrt(),
}


def run(
    barriers: Barriers,
    batches: Sequence[Batch],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Update the members of all batches, each of which has some gradients."""
    if not batches:
        return
    walkers = [batch.phases(grad_scale, found_inf) for batch in batches]
    # Without those that rest: a plan may have these, or not, and a sum rounds by its length.
    present = [_present(batch) for batch in batches]
    for _, totals in barriers:
        for walker in walkers:
            next(walker)
        columns = [batch.reduced for batch in batches]
        for place, operator in totals:
            # In the order of the members: the same terms give the same bits.
            device = columns[0].device
            terms = torch.cat(
                [each[:, place][of].to(device) for each, of in zip(columns, present, strict=True)]
            )
            total = COMBINED[operator](terms)
            for each in columns:
                each[:, place] = total
    for walker in walkers:
        for _ in walker:
            raise AssertionError("there is no barrier behind the last one")


def _present(batch: Batch) -> Any:
    """The index of the members that have a gradient."""
    present = list(batch.present)
    return slice(None) if all(present) else torch.tensor(present)
