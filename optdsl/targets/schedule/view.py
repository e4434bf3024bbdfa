"""The fields of `templates/schedule.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """`chain`, `closed`, `reset` and `update` are the bodies of methods, empty where a schedule has
    none; so are the equations of the documentation."""

    summary: str
    imports: tuple[str, ...]
    name: str
    base: str
    documentation: tuple[str, ...]
    arguments: tuple[str, ...]
    closed_equations: tuple[str, ...]
    chain_equations: tuple[str, ...]
    update_equations: tuple[str, ...]
    references: tuple[str, ...]
    parameters: tuple[str, ...]
    construction: tuple[str, ...]
    checks: tuple[str, ...]
    chain: tuple[str, ...]
    closed: tuple[str, ...]
    reset: tuple[str, ...]
    update: tuple[str, ...]
