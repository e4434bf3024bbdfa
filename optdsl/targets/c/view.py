"""The fields of `templates/c.c.jinja`."""

from __future__ import annotations

from dataclasses import dataclass

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A number that a kernel reads from the table. `place` is its index in a row as text; a `flag`
    is a condition, stored as 0 or 1."""

    name: str
    place: str
    flag: bool


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of the kernel. `row` and `scales` are its rows in the table of addresses as text,
    `present` the condition that it exists. `get` makes a number of an element, `put` rounds it
    back: lines, empty where there is nothing to do. `kept`: its cells change."""

    name: str
    type: str
    row: str
    scales: str
    present: str
    get: str
    put: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Term:
    """A number that a pass makes: `first` is what an element gives where its branch is not taken,
    `take` and `left` bring that to the number of a piece, `made` to that of the tensor."""

    name: str
    first: Lines
    take: str
    left: str
    made: str


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over the elements: the function `loop`, and `name`, which calls it. `conditions` are
    the flags for each of which the loop is compiled twice. The last pass `updates`; the others have
    `terms`, and the function `total` makes the numbers of a tensor of its pieces'."""

    name: str
    loop: str
    does: str
    updates: bool
    conditions: tuple[Column, ...]
    reads_row: bool
    reads_reduced: bool
    columns: tuple[Column, ...]
    numbers: Lines
    uses_grad: bool
    operands: tuple[Operand, ...]
    body: Lines
    call: Lines
    total: str
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class View:
    """`narrow` is the condition that all operands have 16 bits, `blocked` that one is stored in
    blocks. `stages` has a line for each pass before the last."""

    name: str
    note: Lines
    column_count: int
    operand_count: int
    reduction_count: int
    narrow: Lines
    blocked: Lines
    passes: tuple[Pass, ...]
    stages: Lines
