"""The fields of `templates/triton.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that a kernel reads from memory. `place` is its offset as text, empty for the first;
    a `flag` is a condition, stored as 0 or 1."""

    name: str
    place: str
    flag: bool


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the kernel: the parameter, the gradient or a slot. `place` is the row of its
    addresses in the table; `load` and `store` are the kernel's lines."""

    name: str
    place: str
    load: Lines
    store: Lines


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the elements, and the function that handles a block of them, whose lines are
    `numbers` and `body`; `call` calls it. The last pass `stores`. The others keep what they make of
    a block, the lines `partial`; the function `total` makes numbers of all blocks of a tensor."""

    name: str
    does: str
    block: str
    block_does: str
    tensors: tuple[Tensor, ...]
    numbers: Lines
    uses_grad: bool
    body: Lines
    addresses: Lines
    stores: bool
    call: str
    partial: Lines
    partial_count: int
    total: str
    totals: Lines


@dataclass(frozen=True, slots=True)
class View:
    name: str
    launches: str
    note: tuple[str, ...]
    # The scalar program.
    column_count: int
    input_count: int
    inputs: tuple[Entry, ...]
    scalar_slots: tuple[Entry, ...]
    device_scalars: Lines
    device_results: tuple[Entry, ...]
    # The kernels.
    constants: Lines
    # The place of the address of a parameter's second tensor.
    other: str
    new_scalar_slots: tuple[Entry, ...]
    reduction_count: int
    passes: tuple[Pass, ...]
    stages: str
