"""The fields of `templates/functional.py.jinja`."""

from __future__ import annotations

from dataclasses import dataclass

Lines = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """A function of a group and a row of one parameter's tensors."""

    name: str
    row: str
    unpack: Lines
    body: Lines


@dataclass(frozen=True, slots=True)
class View:
    """Before the update there is a method for each barrier, at which all parameters give their
    terms; `barriers` lists them."""

    methods: tuple[Method, ...]
    barriers: Lines
