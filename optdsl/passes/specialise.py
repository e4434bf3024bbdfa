"""Decide options: a branch on a decided option is replaced by the statements that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optdsl.ir import Apply, Const, Expr, If, Ref, Repeat, Role, Spec, Stmt, map_expr, map_stmt


def specialise(spec: Spec, options: Mapping[str, bool]) -> Spec:
    """The spec with these options as constants. Slots whose condition fails are gone."""

    def rewrite(stmt: Stmt) -> tuple[Stmt, ...]:
        if isinstance(stmt, Repeat):
            inner = tuple(s for each in stmt.body for s in rewrite(each))
            return (replace(stmt, count=with_options(stmt.count, options), body=inner),)
        if not isinstance(stmt, If):
            return (map_stmt(stmt, lambda e: with_options(e, options)),)
        condition = with_options(stmt.condition, options)
        then = tuple(s for inner in stmt.then for s in rewrite(inner))
        orelse = tuple(s for inner in stmt.orelse for s in rewrite(inner))
        if isinstance(condition, Const):
            return then if condition.value else orelse
        return (replace(stmt, condition=condition, then=then, orelse=orelse),)

    states = []
    for state in spec.states:
        when = None if state.when is None else with_options(state.when, options)
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


def with_options(expr: Expr, options: Mapping[str, bool]) -> Expr:
    """The expression with options as constants."""

    def decide(node: Expr) -> Expr:
        match node:
            case Ref(role=Role.OPTION, name=name) if name in options:
                return Const(options[name], span=node.span)
            case _:
                return settled(node)

    return map_expr(expr, decide)


def settled(expr: Expr) -> Expr:
    """not true -> false; true and x -> x; false or x -> x; x if true else y -> x; ..."""
    match expr:
        case Apply(op="not", args=(Const(value=truth),)):
            return Const(not truth, span=expr.span)
        case Apply(
            op="and" | "or" as op, args=(Const(value=truth), other) | (other, Const(value=truth))
        ):
            return other if truth == (op == "and") else Const(truth, span=expr.span)
        case Apply(op="select", args=(Const(value=truth), then, orelse)):
            return then if truth else orelse
        case _:
            return expr
