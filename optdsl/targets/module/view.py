"""The fields of `templates/module.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    summary: str
    name: str
    base: str
    headline: str
    documentation: tuple[str, ...]
    attributes: tuple[str, ...]
    parameters: tuple[str, ...]
    construction: tuple[str, ...]
    checks: tuple[str, ...]
    routine: str
