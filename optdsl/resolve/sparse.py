"""Statements -> the first place that a sparse gradient, or rows by themselves, cannot pass."""

from __future__ import annotations

from collections.abc import Iterator

from optdsl.ir import Apply, Const, Expr, Ref, Role, Stmt, expressions, is_scalar, statements
from optdsl.ops import Kind

# How an update treats a sparse gradient: what `sparse` is followed by.
MODES = ("rows", "linear", "only", "none")
# `lerp` is linear, too, but torch has none of sparse tensors.
LINEAR = ("add", "sub", "neg")
SHAPE = ("param.ndim", "param.numel", "param.shape")


def not_linear(body: tuple[Stmt, ...]) -> Expr | None:
    """The first part of an update whose result is not linear in its tensors."""
    return next((e for root in _roots(body) for e in _not_linear(root)), None)


def _not_linear(expr: Expr) -> Iterator[Expr]:
    match expr:
        case Const() | Ref():
            return
        case Apply() if is_scalar(expr):
            yield from (e for e in _parts(expr) if not is_scalar(e))
        case Apply(op=op, args=args) if op in LINEAR and not any(map(is_scalar, args)):
            yield from (e for a in args for e in _not_linear(a))
        case Apply(op="mul", args=(left, right)) if is_scalar(left) != is_scalar(right):
            yield from (*_not_linear(left), *_not_linear(right))
        case Apply(op="div", args=(left, right)) if is_scalar(right):
            yield from (*_not_linear(left), *_not_linear(right))
        case _:
            yield expr


def not_elementwise(body: tuple[Stmt, ...]) -> Expr | None:
    """The first part of an update that reads more than one element of a parameter at a time."""
    return next((e for root in _roots(body) for e in _parts(root) if _reads_whole(e)), None)


def _reads_whole(expr: Expr) -> bool:
    match expr:
        case Const():
            return False
        case Ref(role=Role.PROPERTY, name=name):
            return name.partition("[")[0] in SHAPE
        case Ref(kind=kind) | Apply(kind=kind):
            return kind in (Kind.GLOBAL, Kind.REDUCED, Kind.FACTORED, Kind.MATRIX)


def _roots(body: tuple[Stmt, ...]) -> Iterator[Expr]:
    return (e for stmt in statements(body) for e in expressions(stmt))


def _parts(expr: Expr) -> Iterator[Expr]:
    """The nodes of an expression, but for the slot that `unset` asks about: it is not read."""
    yield expr
    if isinstance(expr, Apply) and expr.op != "unset":
        for arg in expr.args:
            yield from _parts(arg)
