"""The fields of `templates/schedule.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """`head` is everything between `def` and the colon; the body may begin with a docstring."""

    head: str
    body: tuple[str, ...]
    decorator: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A docstring's first line is its `headline`; `parameters` are those of the constructor behind
    the optimizer."""

    summary: str
    name: str
    base: str
    headline: str
    documentation: tuple[str, ...]
    attributes: tuple[str, ...]
    parameters: tuple[str, ...]
    construction: tuple[str, ...]
    methods: tuple[Method, ...]
