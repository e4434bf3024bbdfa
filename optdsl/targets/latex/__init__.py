"""Equations as people read them: for docstrings, and as a page for each optimizer."""

from optdsl.targets.latex.lower import Symbols, aligned, cases, equations, lower, statements

__all__ = ["Symbols", "aligned", "cases", "equations", "lower", "statements"]
