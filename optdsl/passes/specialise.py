"""Decide options: a branch on a decided option is replaced by the statements that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optdsl.ir import Apply, Const, Expr, If, Ref, Repeat, Role, Spec, Stmt, map_expr, map_stmt


def specialise(spec: Spec, options: Mapping[str, bool]) -> Spec:
    """The spec with these options as constants. Slots whose condition fails are gone."""

    def decide(expr: Expr) -> Expr:
        match expr:
            case Ref(role=Role.OPTION, name=name) if name in options:
                return Const(options[name], span=expr.span)
            # not true -> false; true and x -> x; false or x -> x; ...
            case Apply(op="not", args=(Const(value=value),)):
                return Const(not value, span=expr.span)
            case Apply(op="and", args=(Const(value=value), right)):
                return right if value else Const(False, span=expr.span)
            case Apply(op="and", args=(left, Const(value=value))):
                return left if value else Const(False, span=expr.span)
            case Apply(op="or", args=(Const(value=value), right)):
                return Const(True, span=expr.span) if value else right
            case Apply(op="or", args=(left, Const(value=value))):
                return Const(True, span=expr.span) if value else left
            case Apply(op="select", args=(Const(value=value), then, orelse)):
                return then if value else orelse
            case _:
                return expr

    def rewrite(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, Repeat):
            inner = tuple(s for each in stmt.body for s in rewrite(each))
            return (replace(stmt, count=map_expr(stmt.count, decide), body=inner),)
        if not isinstance(stmt, If):
            return (map_stmt(stmt, lambda e: map_expr(e, decide)),)
        condition = map_expr(stmt.condition, decide)
        then = tuple(s for inner in stmt.then for s in rewrite(inner))
        orelse = tuple(s for inner in stmt.orelse for s in rewrite(inner))
        if isinstance(condition, Const):
            return then if condition.value else orelse
        return (replace(stmt, condition=condition, then=then, orelse=orelse),)

    states = []
    for state in spec.states:
        when = None if state.when is None else map_expr(state.when, decide)
        if isinstance(when, Const):
            if not when.value:
                continue
            when = None
        states.append(replace(state, when=when))
    return replace(
        spec,
        body=tuple(s for stmt in spec.body for s in rewrite(stmt)),
        states=tuple(states),
    )
