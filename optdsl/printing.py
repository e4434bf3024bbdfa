"""Expression -> text, for any spelling column, with the parentheses that precedence asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import assert_never

from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stmt,
    map_expr,
)
from optdsl.ops import (
    OPS,
    PROPERTIES,
    SYMBOLS,
    Along,
    Attribute,
    Call,
    Command,
    Conditional,
    Fence,
    Infix,
    KeepDim,
    Level,
    Method,
    Op,
    Phrase,
    Prefix,
    Spelling,
    Superscript,
    Type,
)

Column = Callable[[Op], Spelling | None]
Leaf = Callable[[Const | Ref], str]


class Unspellable(Exception):
    """A target has no spelling for an operator: lowering reports it at the expression's place."""

    def __init__(self, expr: Apply) -> None:
        self.expr = expr
        super().__init__(expr.op)


def python_leaf(leaf: Const | Ref) -> str:
    """Names as they are, numbers so that they read back to the same bits."""
    match leaf:
        case Ref(role=Role.PROPERTY, name=name):
            base, _, index = name.removeprefix("param.").partition("[")
            return PROPERTIES[base].python.format(index=index.rstrip("]"))
        case Ref(role=Role.IS_TENSOR, name=name):
            return f"torch.is_tensor({name})"
        case Ref(name=name):
            return name
        case Const(symbol=symbol) if symbol:
            return f"math.{symbol}"
        case Const(value=str() as text):
            return f'"{text}"'
        case Const(value=value):
            return repr(value)
        case _:
            assert_never(leaf)


def none_tests(expr: Expr) -> Expr:
    """unset(hyper) -> hyper is None, for Python"""

    def test(node: Expr) -> Expr:
        match node:
            case Apply(op="unset", args=(Ref(name=name, role=Role.HYPER),)):
                return Ref(f"{name} is None", Role.LOCAL, node.kind, Type.BOOL)
            case Apply(op="not", args=(Ref(name=name, role=Role.LOCAL) as asked,)) if name.endswith(
                " is None"
            ):
                return replace(asked, name=f"{name.removesuffix('None')}not None")
            case _:
                return node

    return map_expr(expr, test)


def host(op: Op) -> Spelling | None:
    return op.host


def torch(op: Op) -> Spelling | None:
    return op.torch


def triton(op: Op) -> Spelling | None:
    return op.triton


def c(op: Op) -> Spelling | None:
    return op.c


def source(op: Op) -> Spelling | None:
    """The language's own words; a node that it cannot say is shown as a call."""
    return op.source or Call(op.name)


def show(expr: Expr, column: Column, leaf: Leaf = python_leaf) -> str:
    """The text of an expression. Raises Unspellable where the column has no entry."""
    return _show(expr, column, leaf)[0]


def _show(expr: Expr, column: Column, leaf: Leaf) -> tuple[str, Level]:
    """The text and how strongly its outermost operator binds."""
    if not isinstance(expr, Apply):
        text = leaf(expr)
        return text, Level.UNARY if text.startswith("-") else Level.ATOM
    if expr.op == "and" and column in (host, source):
        chain = _chain(expr)
        if chain is not None:
            operands = [_fit(_show(e, column, leaf), Level.SUM) for e in chain[0]]
            links = (
                f" {SYMBOLS[op]} {text}" for op, text in zip(chain[1], operands[1:], strict=True)
            )
            return operands[0] + "".join(links), Level.COMPARE
    spelling = column(OPS[expr.op])
    parts = [_show(a, column, leaf) for a in expr.args]
    match spelling, parts:
        case Infix(symbol=symbol, level=level), [left, right]:
            right_first = level is Level.POWER
            # Comparisons chain in Python: a < b < c is not (a < b) < c.
            chained = level is Level.COMPARE
            low = Level(level + 1) if right_first or chained else level
            high = Level.UNARY if right_first else Level(level + 1)
            # `a or (b and c)`: correct without, but nobody should have to know.
            if level is Level.OR:
                low, high = (low if left[1] is level else Level.NOT), Level.NOT
            hugs = right_first and left[1] >= low and _is_short(left) and _is_short(right)
            space = "" if hugs else " "
            return f"{_fit(left, low)}{space}{symbol}{space}{_fit(right, high)}", level
        case Prefix(symbol=symbol, level=level), [operand]:
            # -(x**y): as formatters write it. -(-x): in C two signs would be one operator.
            doubled = column is c and operand[0].startswith(symbol)
            level_inside = Level.ATOM if operand[1] is Level.POWER or doubled else level
            return f"{symbol}{_fit(operand, level_inside)}", level
        case Call(name=name), _:
            return f"{name}({', '.join(text for text, _ in parts)})", Level.ATOM
        case Along(name=name), [operand, (dim, _)]:
            return f"{name}({operand[0]}, dim={dim})", Level.ATOM
        case KeepDim(name=name), [operand, (dim, _)]:
            return f"{_fit(operand, Level.ATOM)}.{name}(dim={dim}, keepdim=True)", Level.ATOM
        case Attribute(name=name), [operand]:
            return f"{_fit(operand, Level.ATOM)}.{name}", Level.ATOM
        case Method(name=name, scale=scale), [receiver, *rest]:
            arguments = [text for text, _ in rest]
            if scale:
                arguments[-1] = f"{scale}={arguments[-1]}"
            return f"{_fit(receiver, Level.ATOM)}.{name}({', '.join(arguments)})", Level.ATOM
        case Conditional(), [condition, then, orelse]:
            above = Level.OR
            text = f"{_fit(then, above)} if {_fit(condition, above)} else {orelse[0]}"
            return text, Level.TERNARY
        case Phrase(text=text), _:
            return text.format(*(operand for operand, _ in parts)), Level.ATOM
        case Command(name=name), _:
            # As the base of a power it needs parentheses.
            return name + "".join(f"{{{text}}}" for text, _ in parts), Level.UNARY
        case Superscript(), [base, exponent]:
            return f"{_fit(base, Level.ATOM)}^{{{exponent[0]}}}", Level.POWER
        case Fence(left=left_mark, right=right_mark), _:
            inside = ", ".join(text for text, _ in parts)
            return f"{left_mark}{inside}{right_mark}", Level.ATOM
        case _:
            raise Unspellable(expr)


def _fit(part: tuple[str, Level], least: Level) -> str:
    text, level = part
    return text if level >= least else f"({text})"


SHORT = re.compile(r"-?(\w|\.)+(e[+-]\d+)?")
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


def _chain(expr: Expr) -> tuple[tuple[Expr, ...], tuple[str, ...]] | None:
    """The operands and comparisons of a chain: 0 <= x and x < 1 -> 0 <= x < 1"""
    match expr:
        case Apply(op=op, args=(left, right)) if op in COMPARISONS:
            return (left, right), (op,)
        case Apply(op="and", args=(before, link)):
            chain, end = _chain(before), _chain(link)
            if chain is None or end is None or chain[0][-1] != end[0][0]:
                return None
            return (*chain[0], *end[0][1:]), (*chain[1], *end[1])
        case _:
            return None


def _is_short(part: tuple[str, Level]) -> bool:
    """`ruff format` hugs `**` between simple operands: names, numbers, attributes."""
    return SHORT.fullmatch(part[0]) is not None


def show_spec(spec: Spec) -> str:
    """A spec's program in the language's own words; for people, and for tests of passes."""
    stages = (("stage", stage.body) for stage in (*spec.barriers, *spec.stages))
    parts = [("scalars", spec.scalars), *stages, ("update", spec.body)]
    blocks = [f"{word} {{\n{show_body(body, 1)}\n}}" for word, body in parts if body]
    return "\n".join(blocks)


def show_body(body: tuple[Stmt, ...], depth: int = 0) -> str:
    return "\n".join(line for stmt in body for line in _statement(stmt, "    " * depth))


def show_source(expr: Expr) -> str:
    return show(expr, source, _source_leaf)


def _source_leaf(leaf: Const | Ref) -> str:
    match leaf:
        case Ref(role=Role.IS_TENSOR, name=name):
            return f"is_tensor({name})"
        case Ref(name=name):
            return name
        case Const(value=bool() as value):
            return str(value).lower()
        case Const(value=None):
            return "unset"
        case Const(symbol=symbol) if symbol:
            return symbol
        case _:
            return python_leaf(leaf)


def _statement(stmt: Stmt, indent: str) -> Iterator[str]:
    match stmt:
        case Let(name=name, value=value):
            yield f"{indent}let {name} = {show_source(value)}"
        case Assign(target=target, value=value, operator=operator):
            sign = SYMBOLS[operator] if operator else ""
            yield f"{indent}{target.name} {sign}= {show_source(value)}"
        case Descend(value=value):
            yield f"{indent}descend {show_source(value)}"
        case If(condition=condition, then=then, orelse=orelse):
            yield f"{indent}if {show_source(condition)} {{"
            yield from (line for s in then for line in _statement(s, indent + "    "))
            if orelse:
                yield f"{indent}}} else {{"
                yield from (line for s in orelse for line in _statement(s, indent + "    "))
            yield f"{indent}}}"
        case Repeat(count=count, body=body):
            yield f"{indent}repeat {show_source(count)} {{"
            yield from (line for s in body for line in _statement(s, indent + "    "))
            yield f"{indent}}}"
        case _:
            assert_never(stmt)
