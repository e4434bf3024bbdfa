"""Remove local names that nobody reads, and assignments of a name to itself."""

from __future__ import annotations

from dataclasses import replace

from optdsl.ir import Assign, If, Let, Ref, Repeat, Role, Spec, Stmt, reads


def drop_unused(spec: Spec) -> Spec:
    while True:
        read = {r.name for r in reads(spec.body)}
        body = _keep(spec.body, read)
        if body == spec.body:
            return spec
        spec = replace(spec, body=body)


def _keep(body: tuple[Stmt, ...], read: set[str]) -> tuple[Stmt, ...]:
    kept: list[Stmt] = []
    for stmt in body:
        match stmt:
            case Let(name=name) if name not in read:
                continue
            case Assign(target=target) if target.role is Role.LOCAL and target.name not in read:
                continue
            case Assign(target=target, value=Ref() as value, operator="") if value == target:
                continue
            case If():
                then, orelse = _keep(stmt.then, read), _keep(stmt.orelse, read)
                if then or orelse:
                    kept.append(replace(stmt, then=then, orelse=orelse))
            case Repeat():
                inner = _keep(stmt.body, read)
                if inner:
                    kept.append(replace(stmt, body=inner))
            case _:
                kept.append(stmt)
    return tuple(kept)
