"""The fields of `templates/program.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    name: str
    # Names that a kernel's tables are made by.
    slots: str
    scalar_slots: str
    # Names that decide how the kernel is specialised.
    options: str
    optional_slots: str
    deciding: str
    # The scalar program.
    column_count: int
    input_count: int
    # How many reductions each pass before the last makes.
    reductions: str
    # After which of these passes all parameters make numbers together, and by what.
    barriers: str
    uses_math: bool
    uses_numbers: bool
    uses_torch: bool
    given: Lines
    head: Lines
    body: Lines
    results: Lines
