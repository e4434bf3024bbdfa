"""The fields of `templates/foreach.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    agreement: str
    unpack: tuple[str, ...]
    lists: tuple[str, ...]
    advances: tuple[str, ...]
    body: tuple[str, ...]
