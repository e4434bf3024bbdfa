"""What the backends share: the numbers of a batch, and the tensors that its kernel takes."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Iterator, Sequence
from itertools import compress
from operator import not_
from typing import Any

from torch import Tensor

from .._tensors import number
from ._members import Member, laid_as
from ._watch import address

# Calls of kernels in this process, for tests and benchmarks.
launches = 0

# The values of a member's scalar slots.
Scalars = tuple[float, ...]


class Numbers:
    """The scalar program in Python: a row of the table for all members with the same inputs."""

    def __init__(self, program: Any, members: Sequence[Member], scalars: Sequence[Scalars]) -> None:
        self.program = program
        alike: dict[Hashable, Member] = {}
        self._begin()
        # The row of each member.
        self.rows = [
            self._row(alike.setdefault(member.likeness(program), member), values)
            for member, values in zip(members, scalars, strict=True)
        ]

    def _begin(self) -> None:
        self.places: dict[Hashable, int] = {}
        # For each row one of its members, and the values of their scalar slots.
        self.examples: list[Member] = []
        self.scalars: list[Scalars] = []

    def _row(self, example: Member, values: Scalars) -> int:
        """The row of members like this one with these values."""
        row = self.places.setdefault((id(example), values), len(self.examples))
        if row == len(self.examples):
            self.examples.append(example)
            self.scalars.append(values)
        return row

    def advance(self, present: bytes | None = None) -> list[tuple[float, ...]]:
        """The table of the next step; scalar slots have their new values behind it. Where not all
        members are `present`, the others keep theirs, and a row may become two."""
        program, rows, examples, scalars = self.program, self.rows, self.examples, self.scalars
        end = program.COLUMNS - len(program.SCALAR_SLOTS)

        def of_row(row: int) -> tuple[float, ...]:
            given = map(number, examples[row].given(program))
            found: tuple[float, ...] = program.scalars(*given, *scalars[row])
            return found

        if present is None or b"\0" not in present:
            table = list(map(of_row, range(len(examples))))
            self.scalars = [row[end:] for row in table]
            return table
        moving, resting = {*compress(rows, present)}, {*compress(rows, map(not_, present))}
        blank = (0.0,) * program.COLUMNS
        table = [of_row(row) if row in moving else blank for row in range(len(examples))]
        self._begin()
        moved = {row: self._row(examples[row], table[row][end:]) for row in moving}
        rested = {row: self._row(examples[row], scalars[row]) for row in resting}
        self.rows = [
            (moved if here else rested)[row] for row, here in zip(rows, present, strict=True)
        ]
        return table


class Batch:
    """Members that one call of a kernel updates. A backend has the tables and the call."""

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        count = len(members)
        # Of the gradients: where they are, and whether they are there.
        self.gradients: Any = (ctypes.c_uint64 * count)()
        self.present: Any = (ctypes.c_bool * count)()
        self.copies = [(i, m.param, m.flat) for i, m in enumerate(members) if m.flat is not m.param]
        # Gradients in another layout than their parameter are copied in each step.
        self.relaid = [i for i, member in enumerate(members) if member.is_relaid]

    def take(self, grads: Sequence[Tensor | None]) -> None:
        """Let the next call update the members with these gradients."""
        self.gradients[:] = [0 if grad is None else address(grad) for grad in grads]
        self.present[:] = [grad is not None for grad in grads]

    def run(
        self,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        grads: Sequence[Tensor] | None = None,
    ) -> None:
        """Update the members that have a gradient: what has been taken. Where gradients are not
        those of the parameters, they are given here, too."""
        for _ in self.phases(grad_scale, found_inf, grads):
            raise AssertionError("a batch does not make a number of all parameters by itself")

    def phases(
        self,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        grads: Sequence[Tensor] | None = None,
    ) -> Iterator[None]:
        """The same, which stops at each barrier: terms are in `reduced`, where totals take their
        places before it goes on."""
        laid = []  # what kernels read in the place of gradients
        for index in self.relaid:
            if self.present[index]:
                member = self.members[index]
                grad: Any = member.param.grad if grads is None else grads[index]
                laid.append(laid_as(grad, member.flat))
                self.gradients[index] = address(laid[-1])
        copies = [(param, flat) for index, param, flat in self.copies if self.present[index]]
        for param, flat in copies:
            flat.copy_(param)
        yield from self.calls(grad_scale, found_inf)
        for param, flat in copies:
            param.copy_(flat)

    def calls(self, grad_scale: Tensor | None, found_inf: Tensor | None) -> Iterator[None]:
        raise NotImplementedError

    @property
    def reduced(self) -> Tensor:
        """What passes have made of each member's elements: a row for each, float64."""
        raise NotImplementedError
