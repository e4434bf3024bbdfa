"""What the backends share: the numbers of a batch, and the tensors that its kernel takes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from .._tensors import number
from ._members import Member, laid_as, lies_as

# Calls of kernels in this process, for tests and benchmarks.
launches = 0


class Numbers:
    """The scalar program in Python: a row of the table for all members with the same inputs."""

    def __init__(
        self, program: Any, members: Sequence[Member], scalars: Sequence[tuple[float, ...]]
    ) -> None:
        """`scalars` are the values of each member's scalar slots."""
        self.program = program
        classes: dict[Hashable, int] = {}
        examples: list[tuple[Member, tuple[float, ...]]] = []
        # The row of each member.
        self.rows: list[int] = []
        for each, values in zip(members, scalars, strict=True):
            row = classes.setdefault((each.likeness(program), values), len(examples))
            if row == len(examples):
                examples.append((each, values))
            self.rows.append(row)
        self.examples = [each for each, _ in examples]
        # The values of the scalar slots, for each row.
        self.scalars = [values for _, values in examples]

    def advance(self) -> list[tuple[float, ...]]:
        """The table of the next step; scalar slots have their new values behind it."""
        program = self.program
        table: list[tuple[float, ...]] = [
            program.scalars(*map(number, each.given(program)), *values)
            for each, values in zip(self.examples, self.scalars, strict=True)
        ]
        end = program.COLUMNS - len(program.SCALAR_SLOTS)
        self.scalars = [row[end:] for row in table]
        return table


class Batch:
    """Members that one call of a kernel updates. A backend has the tables and the call."""

    def __init__(self, members: list[Member], grads: list[Tensor]) -> None:
        self.members = members
        self.copies = [(m.param, m.flat) for m in members if m.flat is not m.param]
        # Gradients in another layout than their parameter are copied in each step.
        self.relaid = [
            i for i, (m, g) in enumerate(zip(members, grads, strict=True)) if not lies_as(g, m.flat)
        ]

    def run(self, grads: list[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        """Update the members. `grads` are like those that the batch was made with."""
        if self.relaid:
            grads = list(grads)
            for index in self.relaid:
                grads[index] = laid_as(grads[index], self.members[index].flat)
        for param, flat in self.copies:
            flat.copy_(param)
        self.call(grads, grad_scale, found_inf)
        for param, flat in self.copies:
            param.copy_(flat)

    def call(
        self, grads: list[Tensor], grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        raise NotImplementedError
