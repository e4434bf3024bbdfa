"""Hyperparameters as constructors write them: types, defaults, conditions, documentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

from optdsl import printing
from optdsl.ir import Apply, Base, Const, Expr, Hyper, apply, refs
from optdsl.targets.layout import INDENT, WIDTH, indented

Lines = tuple[str, ...]

TYPES = {Base.REAL: "float", Base.INT: "int", Base.BOOL: "bool", Base.TEXT: "str"}
# The entries of a docstring's section begin in this column.
ENTRIES = 12
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


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


def annotation(hyper: Hyper, real: str, called_with: str = "float") -> str:
    """The type of an argument.

    Args:
        hyper: the hyperparameter.
        real: what a real number may be.
        called_with: what a function is called with.
    """
    declared = hyper.type
    if hyper.components:
        optional = hyper.optional_parts
        parts = (f"{real} | None" if c in optional else real for c in hyper.components)
        return f"tuple[{', '.join(parts)}]"
    if declared.choices:
        base = f"Literal[{', '.join(map(quoted, declared.choices))}]"
    elif declared.base is Base.FUNCTION:
        base = f"Callable[[{called_with}], float]"
    else:
        base = real if declared.base is Base.REAL else TYPES[declared.base]
    if declared.many:
        base = f"Iterable[{base}]"
    if declared.per_group or declared.grouped:
        base = f"{base} | list[{base}]"
    return f"{base} | None" if declared.optional or is_dependent(hyper) else base


def parameter(hyper: Hyper, annotation: str) -> str:
    """The argument in a signature."""
    value = default(hyper)
    return f"{hyper.name}: {annotation}" + ("" if value is None else f" = {value}")


def resolution(hyper: Hyper) -> Lines:
    """What gives an argument that was not given a default which reads others."""
    assert hyper.default is not None
    value = printing.show(hyper.default, printing.host)
    return (f"if {hyper.name} is None:", *indented((f"{hyper.name} = {value}",)))


# Conditions


def quoted(text: str) -> str:
    """A text of a spec, which has neither quotes nor backslashes, as a literal."""
    return f'"{text}"'


def shown_names(text: str) -> list[str]:
    """The names whose values a condition's message shows."""
    return [m[1] for m in PLACEHOLDER.finditer(text) if m[1] is not None]


def message(text: str, spell: Callable[[str], str]) -> str:
    """A condition's message as a literal; `spell` says where the value of a name is."""
    if not shown_names(text):
        return quoted(text.replace("{{", "{").replace("}}", "}"))
    return "f" + quoted(
        PLACEHOLDER.sub(lambda m: m[0] if m[1] is None else f"{{{spell(m[1])}}}", text)
    )


def refusal(failed: str, literal: str, error: str = "ValueError") -> Lines:
    """`if failed: raise error(literal)`"""
    return (f"if {failed}:", *indented((f"raise {error}({literal})",)))


def negated(condition: Expr) -> Expr:
    """What is true where a condition fails: also where it compares NaN."""
    match condition:
        case Apply(op="not", args=(wrong,)):
            return wrong
        # As linters want it.
        case Apply(op="eq", args=args):
            return apply("ne", *args)
        case Apply(op="ne", args=args):
            return apply("eq", *args)
        case Apply(op="or", args=(left, right)):
            return apply("and", negated(left), negated(right))
        case _:
            return apply("not", condition)


# Documentation


def described(hyper: Hyper, annotation: str, conditions: Iterable[str], *notes: str) -> Lines:
    """An argument's entry in a docstring: its type, what holds for it, and its default."""
    value = default(hyper)
    if is_dependent(hyper):
        assert hyper.default is not None
        value = printing.show_source(hyper.default)
    words = [", ".join(hyper.components)] if hyper.components else []
    words += notes
    words += [", ".join(conditions)]
    words += ["Required" if value is None else f"Default: {value}"]
    return entry(hyper.name, annotation, ". ".join(w for w in words if w))


def entry(name: str, annotation: str, text: str) -> Lines:
    """An entry among the arguments of a docstring."""
    words = f"{name} ({annotation}): {text}."
    return tuple(textwrap.wrap(words, WIDTH - ENTRIES, subsequent_indent=INDENT))


def wrapped(text: str, indent: int) -> Lines:
    """Words on lines that begin in a column."""
    return tuple(textwrap.wrap(text, WIDTH - indent))
