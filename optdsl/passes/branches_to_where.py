"""Make a branch that a scalar slot decides a choice between values: `where`, on both sides of it.

    if rho > 5 { x = e } else { x = f }   ->   x = where(rho > 5, e, x); x = where(rho > 5, x, f)

A scalar slot is a tensor where an update is traced or captured, and a branch in Python would have
to wait for it. Both sides are computed then, so a branch stays one where its body must not be: it
divides hyperparameters, which may raise, or sets a slot that does not exist yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from optdsl.ir import (
    Apply,
    Assign,
    Const,
    Expr,
    If,
    Let,
    Ref,
    Repeat,
    Role,
    Spec,
    Stmt,
    apply,
    expressions,
    is_scalar,
    kind_of,
    map_expr,
    map_stmt,
    refs,
    statements,
    walk,
)
from optdsl.ops import PARTIAL, Kind, Type
from optdsl.passes.naming import LONG, in_words, names_of, unused


def branches_to_where(spec: Spec) -> Spec:
    body = spec.body
    changing = changing_numbers(body)

    def widened(node: Expr) -> Expr:
        """A local number that a slot decides is as wide as the slot."""
        if isinstance(node, Ref) and node.name in changing and node.kind < Kind.SCALAR:
            return replace(node, kind=Kind.SCALAR)
        return node

    body = tuple(map_stmt(s, lambda e: map_expr(e, widened)) for s in body)
    maker = _Maker(spec, changing)
    return replace(spec, body=tuple(maker.block(body)))


class _Maker:
    def __init__(self, spec: Spec, changing: frozenset[str]) -> None:
        self.changing = changing
        self.unset = {s.name for s in spec.states if s.initial is None}
        self.taken = names_of(spec, spec.body)

    def block(self, body: tuple[Stmt, ...]) -> Iterator[Stmt]:
        for stmt in body:
            match stmt:
                case If() if depends(stmt.condition, self.changing) and self.may_compute(stmt):
                    yield from self.choice(stmt)
                case If():
                    then, orelse = tuple(self.block(stmt.then)), tuple(self.block(stmt.orelse))
                    yield replace(stmt, then=then, orelse=orelse)
                case Repeat():
                    yield replace(stmt, body=tuple(self.block(stmt.body)))
                case _:
                    yield stmt

    def may_compute(self, stmt: If) -> bool:
        """Whether both sides can be computed, whatever the condition says."""
        inside = tuple(statements((*stmt.then, *stmt.orelse)))
        nodes = (e for s in inside for x in expressions(s) for e in walk(x))
        partial = any(self.may_raise(e) for e in nodes)
        creates = any(isinstance(s, Assign) and s.target.name in self.unset for s in inside)
        return not (partial or creates)

    def may_raise(self, expr: Expr) -> bool:
        """Whether Python may raise for it: an operator on hyperparameters that some values do not
        have. Of tensors, torch makes inf or NaN there."""
        match expr:
            case Apply(op="div" | "floordiv" | "mod", args=(_, Const(value=divisor))) if divisor:
                return False
            case Apply(op="pow", args=(_, Const(value=int() as power))) if power >= 0:
                return False
            case Apply(op=op):
                return op in PARTIAL and is_scalar(expr) and not depends(expr, self.changing)
            case _:
                return False

    def choice(self, stmt: If) -> Iterator[Stmt]:
        condition = stmt.condition
        written = {s.target.name for s in statements((stmt,)) if isinstance(s, Assign)}
        if any(r.name in written for r in refs(condition)):
            # A branch changes what the condition reads: it is decided before.
            name = self.name(condition)
            yield Let(name, condition, kind_of(condition), condition.span)
            condition = Ref(name, Role.LOCAL, kind_of(condition), Type.BOOL, condition.span)
        yield from self.chosen(self.block(stmt.then), condition, True)
        yield from self.chosen(self.block(stmt.orelse), condition, False)

    def name(self, condition: Expr) -> str:
        words = in_words(condition)
        if len(words) > LONG or words[0].isdigit():
            words = "chosen"
        name = unused(words, self.taken.__contains__)
        self.taken.add(name)
        return name

    def chosen(self, body: Iterator[Stmt], condition: Expr, side: bool) -> Iterator[Stmt]:
        """Statements whose assignments keep the old value on the other side."""
        for stmt in body:
            match stmt:
                case Assign(target=target, value=value, operator=operator):
                    new = apply(operator, target, value, span=value.span) if operator else value
                    sides = (new, target) if side else (target, new)
                    chosen = apply("where", condition, *sides, span=value.span)
                    yield replace(stmt, value=chosen, operator="")
                case If():
                    yield replace(
                        stmt,
                        then=tuple(self.chosen(iter(stmt.then), condition, side)),
                        orelse=tuple(self.chosen(iter(stmt.orelse), condition, side)),
                    )
                case Repeat():
                    inner = self.chosen(iter(stmt.body), condition, side)
                    yield replace(stmt, body=tuple(inner))
                case _:
                    yield stmt


def depends(expr: Expr, changing: frozenset[str]) -> bool:
    """Whether an expression's value depends on a scalar slot. Whether a slot exists does not."""
    match expr:
        case Apply(op="unset"):
            return False
        case Apply(op="host"):
            return True
        case Apply(args=args):
            return any(depends(a, changing) for a in args)
        case Ref(name=name, role=role, kind=kind):
            return (role is Role.STATE and kind is Kind.SCALAR) or name in changing
        case Const():
            return False


def changing_numbers(body: tuple[Stmt, ...]) -> frozenset[str]:
    """The local numbers whose value a scalar slot decides, by what it is or by a branch."""
    found: frozenset[str] = frozenset()
    while True:
        more = frozenset(_decided(body, found, False))
        if more == found:
            return found
        found = more


def _decided(body: tuple[Stmt, ...], found: frozenset[str], inside: bool) -> Iterator[str]:
    for stmt in body:
        match stmt:
            case Let(name=name, value=value) | Assign(target=Ref(name=name), value=value):
                local = isinstance(stmt, Let) or stmt.target.role is Role.LOCAL
                # A name made in a branch ends with it.
                chosen = inside and isinstance(stmt, Assign)
                if local and is_scalar(value) and (chosen or depends(value, found)):
                    yield name
            case If():
                decided = inside or depends(stmt.condition, found)
                yield from _decided((*stmt.then, *stmt.orelse), found, decided)
            case Repeat():
                yield from _decided(stmt.body, found, inside)
            case _:
                pass
