"""The fields of `templates/eager.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class View:
    unpack: tuple[str, ...]
    advances: tuple[str, ...]
    loop: tuple[str, ...]
    body: tuple[str, ...]
