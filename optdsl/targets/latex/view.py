"""The fields of `templates/latex.md.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """Equations under a heading."""

    title: str
    equations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Rows are cells of a Markdown table, without its outer bars."""

    title: str
    doc: str
    citations: tuple[str, ...]
    hypers: tuple[str, ...]
    conditions: tuple[str, ...]
    states: tuple[str, ...]
    sections: tuple[Section, ...]
