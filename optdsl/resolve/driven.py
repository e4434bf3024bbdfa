"""An update, a hyperparameter and its schedule -> the update with the value of the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optdsl import ir
from optdsl.ir import Role
from optdsl.ops import Kind
from optdsl.source import Span

Body = tuple[ir.Stmt, ...]


def place(body: Body, value: ir.Expr) -> int:
    """Where a value is known: behind the last statement that changes a slot it reads."""
    slots = {r.name for r in ir.refs(value) if r.role is Role.STATE}
    writes = [n for n, stmt in enumerate(body) if slots & set(written(stmt))]
    return max(writes, default=-1) + 1


def written(stmt: ir.Stmt) -> Iterator[str]:
    return (s.target.name for s in ir.statements((stmt,)) if isinstance(s, ir.Assign))


def first_read(body: Body, name: str) -> Span | None:
    """The first place that reads a hyperparameter."""
    found = (r.span for r in ir.reads(body) if r.name == name and r.role is Role.HYPER)
    return next(found, None)


def driven(body: Body, name: str, value: ir.Expr, span: Span) -> Body:
    """`name` is `value` from where that is known on: a local name, which must be free."""
    at = place(body, value)
    now = ir.Ref(fresh(body, name), Role.LOCAL, Kind.SCALAR, span=span)

    def put(node: ir.Expr) -> ir.Expr:
        is_hyper = isinstance(node, ir.Ref) and node.role is Role.HYPER and node.name == name
        return replace(now, span=node.span) if is_hyper else node

    let = ir.Let(now.name, value, Kind.SCALAR, span)
    after = tuple(ir.map_stmt(s, lambda e: ir.map_expr(e, put)) for s in body[at:])
    return widened((*body[:at], let, *after))


def fresh(body: Body, name: str) -> str:
    taken = {s.name for s in ir.statements(body) if isinstance(s, ir.Let)}
    now = f"{name}_now"
    while now in taken:
        now += "_now"
    return now


def widened(body: Body) -> Body:
    """The local names with the kinds of their values, some of which have become wider."""
    while True:
        kinds: dict[str, Kind] = {}
        for stmt in ir.statements(body):
            match stmt:
                case ir.Let(name=name, value=value, kind=kind):
                    kinds[name] = max(kind, ir.kind_of(value), kinds.get(name, kind))
                case ir.Assign(target=ir.Ref(role=Role.LOCAL, name=name), value=value):
                    kinds[name] = max(ir.kind_of(value), kinds[name])
                case _:
                    pass
        result = tuple(_with_kinds(s, kinds) for s in body)
        if result == body:
            return body
        body = result


def _with_kinds(stmt: ir.Stmt, kinds: dict[str, Kind]) -> ir.Stmt:
    def widen(node: ir.Expr) -> ir.Expr:
        if isinstance(node, ir.Ref) and node.role is Role.LOCAL and node.name in kinds:
            return replace(node, kind=kinds[node.name])
        return node

    match stmt:
        case ir.If():
            then = tuple(_with_kinds(s, kinds) for s in stmt.then)
            orelse = tuple(_with_kinds(s, kinds) for s in stmt.orelse)
            condition = ir.map_expr(stmt.condition, widen)
            return replace(stmt, condition=condition, then=then, orelse=orelse)
        case ir.Repeat():
            inner = tuple(_with_kinds(s, kinds) for s in stmt.body)
            return replace(stmt, count=ir.map_expr(stmt.count, widen), body=inner)
        case ir.Let(name=name):
            return replace(stmt, value=ir.map_expr(stmt.value, widen), kind=kinds[name])
        case ir.Assign(target=target):
            wide = replace(target, kind=kinds.get(target.name, target.kind))
            kept = wide if target.role is Role.LOCAL else target
            return replace(stmt, target=kept, value=ir.map_expr(stmt.value, widen))
        case ir.Descend():
            return replace(stmt, value=ir.map_expr(stmt.value, widen))
