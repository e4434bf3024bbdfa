"""The fields of `templates/average.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    """`checks`, `each` and `multi` are the bodies of methods."""

    name: str
    headline: str
    documentation: tuple[str, ...]
    attributes: tuple[str, ...]
    parameters: tuple[str, ...]
    construction: tuple[str, ...]
    checks: tuple[str, ...]
    each: tuple[str, ...]
    multi: tuple[str, ...]
