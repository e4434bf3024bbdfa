"""Names for what has none in a spec: an expression in words, which no other name is."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain, count

from optdsl.ir import Apply, Const, Expr, Let, Ref, Spec, Stmt, statements

# Longer than this, an expression in words is no name.
LONG = 40
WORDS = {
    "add": "plus", "sub": "minus", "div": "over", "rdiv": "over", "mul": "times", "pow": "pow",
    "lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne",
    "and": "and", "or": "or",
}  # fmt: skip
NUMBERS: dict[object, str] = {0: "zero", 1: "one", 2: "two", 0.5: "half", -1: "minus_one"}


def names_of(spec: Spec, body: tuple[Stmt, ...]) -> set[str]:
    """The author's names of hyperparameters and slots, and of what the body makes."""
    found = {name for hyper in spec.hypers for name in (hyper.name, *hyper.components)}
    found |= {state.name for state in spec.states}
    return found | {stmt.name for stmt in statements(body) if isinstance(stmt, Let)}


def in_words(expr: Expr) -> str:
    """`1 - lr * weight_decay` -> `one_minus_lr_times_weight_decay`"""
    match expr:
        case Const(value=bool() | str() as value):
            return re.sub(r"\W", "_", str(value).lower())
        case Const(value=value):
            text = f"{value:g}".replace("-", "m").replace(".", "p").replace("+", "")
            return NUMBERS.get(value, text)
        case Ref(name=name):
            return name.replace(".", "_").replace("[-", "_m").replace("[", "_").rstrip("]")
        case Apply(op=op, args=(left, right)) if op in WORDS:
            return f"{in_words(left)}_{WORDS[op]}_{in_words(right)}"
        case Apply(op="neg", args=(operand,)):
            return f"minus_{in_words(operand)}"
        case Apply(op=op, args=args):
            return "_".join((op, *map(in_words, args)))


def unused(words: str, is_taken: Callable[[str], bool]) -> str:
    """The words, or where they are a name already, the words with the first number that helps."""
    names = chain((words,), (f"{words}_{number}" for number in count(2)))
    return next(name for name in names if not is_taken(name))
