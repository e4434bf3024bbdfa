"""Equations as people read them: for docstrings, and as a page for each definition."""

from optdsl.targets.latex.lower import Symbols, aligned, cases, equations, lower, row, statements
from optdsl.targets.latex.view import Section, View

__all__ = [
    "Section",
    "Symbols",
    "View",
    "aligned",
    "cases",
    "equations",
    "lower",
    "row",
    "statements",
]
