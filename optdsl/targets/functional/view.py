"""The fields of `templates/functional.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    row: str
    unpack: tuple[str, ...]
    body: tuple[str, ...]
