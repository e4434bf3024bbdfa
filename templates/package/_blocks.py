"""An update of large tensors on the CPU, where it has no kernel, by operations of torch on pieces.

An operation on a large tensor goes through memory from one end to the other, and an update has ten
of them. On a piece all but the first find it in the processor's cache. The bits are the same: each
element is updated by itself. Only in 16 bits and with several threads torch's own operations round
the last elements of each thread's part in another way, and a piece is divided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._fused._backends import program_of
from ._fused._members import is_dense, lies_as
from ._optimizer import Optimizer
from ._slots import Group, Rows
from ._tensors import Tensors

# Elements of a piece: fewer torch gives to one thread, more do not stay in the cache.
PIECE = 1 << 18
# A tensor of more elements is cut into pieces.
LARGE = 1 << 17


def update(optimizer: Optimizer, group: Group, rows: Rows) -> None:
    """Update rows whose parameters agree as `_multi_tensor` wants it: by pieces where tensors are
    large, as lists where they are not."""
    large = [index for index in range(len(rows.params)) if _is_cut(optimizer, group, rows, index)]
    small = [index for index in range(len(rows.params)) if index not in {*large}]
    if small:
        _update_part(optimizer._multi_tensor, group, rows, [(index, None) for index in small])
    if large:
        pieces = (range(0, rows.params[index].numel(), PIECE) for index in large)
        places = [(i, start) for i, starts in zip(large, pieces, strict=True) for start in starts]
        _update_part(optimizer._single_tensor, group, rows, places)


def _is_cut(optimizer: Optimizer, group: Group, rows: Rows, index: int) -> bool:
    """Whether the elements of a parameter, its gradient and its slots lie in memory in one order,
    and the update asks a parameter for nothing that its pieces do not have."""
    param: Tensor = rows.params[index]
    if param.device.type != "cpu" or param.numel() <= LARGE or not is_dense(param):
        return False
    others = (rows.grads, *(column for column in rows.slots.values() if column[0] is not None))
    inputs = program_of(optimizer).inputs
    return all(lies_as(column[index], param) for column in others) and bool(
        inputs(group, param, rows.unset) == inputs(group, _piece(param, 0), rows.unset)
    )


def _update_part(
    update: Callable[[Group, Rows], None],
    group: Group,
    rows: Rows,
    places: Sequence[tuple[int, int | None]],
) -> None:
    """Update pieces of some parameters, or the whole of each, as parameters of their own."""

    def cut(column: Tensors) -> Tensors:
        return [None if column[i] is None else _piece(column[i], start) for i, start in places]

    indices = [index for index, _ in places]
    vectors = {name: vector[indices] for name, vector in rows.vectors.items()}
    slots = {name: cut(column) for name, column in rows.slots.items()}
    part = Rows(cut(rows.params), cut(rows.grads), slots, rows.unset, vectors)
    update(group, part)
    for name, vector in rows.vectors.items():
        vector[indices] = part.vectors[name]


def _piece(tensor: Tensor, start: int | None) -> Any:
    if start is None:
        return tensor
    size = min(PIECE, tensor.numel() - start)
    return tensor.as_strided((size,), (1,), tensor.storage_offset() + start)
