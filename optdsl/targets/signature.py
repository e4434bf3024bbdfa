"""Hyperparameters as constructors write them: types, literals, defaults."""

from __future__ import annotations

import re

from optdsl import printing
from optdsl.ir import Base, Const, Expr, Hyper, refs

TYPES = {Base.REAL: "float", Base.INT: "int", Base.BOOL: "bool", Base.TEXT: "str"}


def is_dependent(hyper: Hyper) -> bool:
    """Whether the default reads other arguments: None then stands for it in the signature."""
    return hyper.default is not None and any(refs(hyper.default))


def default(hyper: Hyper) -> str | None:
    """The default in the signature; None where the argument is required."""
    if hyper.components:
        return f"({', '.join(map(literal, hyper.parts))})"
    if is_dependent(hyper):
        return "None"
    return None if hyper.default is None else literal(hyper.default)


def literal(value: Expr) -> str:
    """A number as the author typed it, in the formatter's spelling: .5E+3 -> 0.5e3"""
    match value:
        case Const(value=float(), symbol="", span=span) if span.text:
            text = span.text.lower().replace("e+", "e")
            return re.sub(r"(?<!\d)\.", "0.", re.sub(r"\.(?!\d)", ".0", text))
        case _:
            return printing.show(value, printing.host)
