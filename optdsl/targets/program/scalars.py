"""The scalar program -> lines of Python or of Triton, which are the same but for how values are
spelled and rounded."""

from __future__ import annotations

import re
from ctypes import c_float
from typing import Protocol, assert_never

import numpy as np

from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Descend,
    Expr,
    If,
    Let,
    Repeat,
    Role,
    Stmt,
    type_of,
)
from optdsl.ops import OPS, SYMBOLS, Type
from optdsl.targets.layout import comment, indented

Lines = tuple[str, ...]


class Writer(Protocol):
    """How a target spells values of the scalar program."""

    def show(self, expr: Expr) -> str:
        """An expression."""

    def named(self, value: Expr) -> str:
        """An expression that a name is to stand for."""

    def rounded(self, text: str) -> str:
        """A value as the float32 that a slot can hold."""

    def safe(self, name: str) -> str:
        """A name as the target can write it."""


def identifier(name: str) -> str:
    """`param.ndim` -> `param_ndim`, `param.shape[-1]` -> `param_shape_last_1`"""
    return re.sub(r"\W+", "_", name.replace("[-", "_last_")).rstrip("_")


def scalar_lines(body: tuple[Stmt, ...], own: frozenset[str], writer: Writer) -> Lines:
    """The statements, each behind the author's words where `own` names are theirs."""
    return tuple(line for stmt in body for line in _scalar_line(stmt, own, writer))


def _scalar_line(stmt: Stmt, own: frozenset[str], writer: Writer) -> Lines:
    match stmt:
        case Let(name=name, value=value):
            line = f"{writer.safe(name)} = {writer.named(value)}"
            said = "".join(stmt.span.text.removeprefix("let ").split())
            spoken = name not in own or said == "".join(line.split())
            return (line,) if spoken else (comment(stmt.span.text), line)
        case Assign(target=slot, value=value, operator=operator):
            line = writer.show(value) if operator else writer.named(value)
            if operator:
                # The operation is the slot's: its operand is rounded to the slot's type first.
                operand = line if is_single(value) else writer.rounded(line)
                line = f"{writer.safe(slot.name)} {SYMBOLS[operator]} {operand}"
            if slot.role is Role.STATE:
                line = writer.rounded(line)
            return (comment(stmt.span.text), f"{writer.safe(slot.name)} = {line}")
        case If(condition=condition):
            then, orelse = (
                indented(scalar_lines(b, own, writer)) for b in (stmt.then, stmt.orelse)
            )
            lines = (f"if {writer.show(condition)}:", *then)
            return (*lines, "else:", *orelse) if orelse else lines
        case Descend() | Repeat():
            raise AssertionError("neither is scalar work")
        case _:
            assert_never(stmt)


def is_literal(expr: Expr) -> bool:
    """A number, no condition."""
    return isinstance(expr, Const) and type_of(expr) is Type.NUMBER


def is_single(value: Expr) -> bool:
    """Whether it is a literal that float32 holds."""
    match value:
        case Const(value=int() | float() as number):
            return c_float(number).value == number
        case _:
            return False


def computed(expr: Expr) -> Expr:
    """2 ** 0.5 -> 1.4142135623730951: as on the host. Kernels' functions take no two literals."""
    match expr:
        case Apply(op=op, args=args) if all(is_literal(a) for a in args):
            with np.errstate(all="ignore"):
                value = OPS[op].numpy(*(a.value for a in args if isinstance(a, Const)))
            return Const(value.item(), span=expr.span)
        case _:
            return expr
