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
class View:
    name: str
    note: tuple[str, ...]
    slots: str
    scalar_slot_names: str
    # Names that decide how the kernel is specialised.
    options: str
    optional_slots: str
    deciding: str
    # The scalar program.
    column_count: int
    input_count: int
    uses_python_math: bool
    uses_torch: bool
    given: Lines
    scalars_head: Lines
    host_scalars: Lines
    host_results: Lines
    inputs: tuple[Entry, ...]
    scalar_slots: tuple[Entry, ...]
    device_scalars: Lines
    device_results: tuple[Entry, ...]
    # The kernel.
    tensors: tuple[Tensor, ...]
    columns: tuple[Entry, ...]
    new_scalar_slots: tuple[Entry, ...]
    addresses: Lines
    constants: Lines
    body: Lines
