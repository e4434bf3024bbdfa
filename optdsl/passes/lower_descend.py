"""descend e -> param = param - e, after wrappers had their chance at `e`."""

from __future__ import annotations

from dataclasses import replace

from optdsl.ir import Assign, Descend, If, Ref, Repeat, Role, Spec, Stmt, apply
from optdsl.ops import Kind

PARAM = Ref("param", Role.PARAM, Kind.ELEMENTWISE)


def lower_descend(spec: Spec) -> Spec:
    return replace(spec, body=tuple(_lower(s) for s in spec.body))


def _lower(stmt: Stmt) -> Stmt:
    match stmt:
        case Descend(value=value, span=span):
            return Assign(PARAM, apply("sub", PARAM, value, span=value.span), span=span)
        case If():
            return replace(
                stmt,
                then=tuple(_lower(s) for s in stmt.then),
                orelse=tuple(_lower(s) for s in stmt.orelse),
            )
        case Repeat():
            return replace(stmt, body=tuple(_lower(s) for s in stmt.body))
        case _:
            return stmt
